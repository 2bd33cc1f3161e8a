"""What makes the values of a merge: strategies, rules for tensors of some names, and their Fisher information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError
from modelgit.merging.base import STATISTICS, STRATEGIES, BoundStrategy, parse_rule, rule_text
from modelgit.objects import FisherEstimate, Manifest, MergeRecipe, UsedFisher
from modelgit.progress import SILENT, Progress
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["ChosenStrategies", "choose_strategies", "recorded_strategies"]


_AVERAGES = frozenset({"fisher", "mats", "regmean"})
"""Strategies that are an average where nothing is known of any side."""


class ChosenStrategies(NamedTuple):
    """The strategy of a merge, those of patterns of names, and by model the Fisher information of each side."""

    bound: BoundStrategy
    rules: Mapping[str, BoundStrategy]
    rule_texts: dict[str, str]
    fishers: Mapping[str, Sequence[FisherEstimate | None]]
    used: tuple[UsedFisher, ...]


def choose_strategies(
    repo: Repository,
    bound: BoundStrategy,
    rule_texts: dict[str, str],
    sides: Sequence[tuple[str, Manifest]],
    base: Manifest,
    models: Sequence[str],
    *,
    notes: list[str],
    progress: Progress = SILENT,
) -> ChosenStrategies:
    """The strategies of a merge with the Fisher information that they need for `models`; `notes` say where it is from.

    `sides` are two or more, each with what it is called.  Where no side of any model has any, `fisher` and its
    kin are an average, and are called so.
    """
    rules = {pattern: parse_rule(text) for pattern, text in rule_texts.items()}
    needs = frozenset().union(*(item.strategy.needs for item in (bound, *rules.values())))
    if not models or not needs & STATISTICS:
        return ChosenStrategies(bound, rules, rule_texts, {}, ())
    from modelgit.repo.patches.fisher import fisher_for_merge

    fishers: dict[str, list[FisherEstimate | None]] = {}
    used = []
    for model in models:
        for label, manifest in sides:
            found = fisher_for_merge(repo, manifest, base, model, grams="grams" in needs, progress=progress)
            fishers.setdefault(model, []).append(found.estimate)
            object_id = None if found.stored is None else found.stored.id
            used.append(UsedFisher(model=model, side=label, how=found.how, words=found.words, estimate=object_id))
            note = f"{label}: {found.words}" if len(models) == 1 else f"{label}, {model}: {found.words}"
            if note not in notes:
                notes.append(note)
    if any(estimate is not None for found in fishers.values() for estimate in found):
        return ChosenStrategies(bound, rules, rule_texts, fishers, tuple(used))
    if any(item.name in _AVERAGES for item in (bound, *rules.values())):
        notes.append("no side has a Fisher estimate: the values were averaged instead, and the recipe says so")
    texts = {
        pattern: rule_text(_averaging(rules[pattern])) if rules[pattern].name in _AVERAGES else text
        for pattern, text in rule_texts.items()
    }
    averaged = {pattern: _averaging(rule) for pattern, rule in rules.items()}
    return ChosenStrategies(_averaging(bound), averaged, texts, {}, tuple(used))


def recorded_strategies(repo: Repository, recipe: MergeRecipe) -> ChosenStrategies:
    """The strategies of a recipe with the very estimates that it names.

    Raises IntegrityError for an estimate that is not here.
    """
    fishers: dict[str, list[FisherEstimate | None]] = {}
    for used in recipe.fishers:
        if used.estimate is not None and not repo.store.has(used.estimate):
            raise IntegrityError(
                f"the merge used a Fisher estimate ({used.estimate.short}, {used.side}) that is not in this repository",
                hint="`mgit fetch --fisher` brings those that were pushed",
            )
        estimate = None if used.estimate is None else read_record(repo.store, used.estimate, FisherEstimate)
        fishers.setdefault(used.model, []).append(estimate)
    known = {model: found for model, found in fishers.items() if any(item is not None for item in found)}
    rules = {pattern: parse_rule(text) for pattern, text in recipe.rules.items()}
    return ChosenStrategies(
        STRATEGIES.get(recipe.strategy).bind(recipe.options), rules, recipe.rules, known, recipe.fishers
    )


def _averaging(bound: BoundStrategy) -> BoundStrategy:
    """What `fisher` and its kin are without any estimate: the average by the same weights.  Others as they are."""
    if bound.name not in _AVERAGES:
        return bound
    return STRATEGIES.get("average").bind({"weights": bound.recipe["weights"]})
