"""`merge --search`: try strategies and coefficients on data, and merge with the best that the gate lets pass.

No strategy is best everywhere, and the coefficients matter more than the strategy.  All candidates are scored on a few
examples, the better half of them on twice as many, and so on (successive halving; Jamieson and Talwalkar 2016), and
at last the neighbours of the best.
Scores of one round are of the same examples, so that differences between candidates are not those of the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from modelgit.errors import GateRefused, NothingToDo, UsageError
from modelgit.merging.base import BoundStrategy, parse_rule, rule_text
from modelgit.merging.resolve import ruled_resolutions
from modelgit.objects.graph import is_ancestor
from modelgit.objects.merges import MergePlan, MergeState
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.commit import merged_manifest
from modelgit.repo.merges.merge import MergeResult, Sides, configured_rules, merge, sides_of
from modelgit.repo.merges.objectives import Objective, objectives, side_of
from modelgit.repo.merges.plan import Planned, plan_sides

if TYPE_CHECKING:
    from modelgit.repo.gates.sides import ManifestSide
    from modelgit.repo.repository import Repository

__all__ = ["Score", "SearchResult", "default_candidates", "halve", "search", "shares_of"]

_KEPT = 2
"""One in so many candidates goes on to the next round."""
_FIRST = 30
"""The fewest examples of a suite that say anything about a candidate."""


class Score(NamedTuple):
    """A candidate (a strategy as it is typed), the mean score over the suites, and that of each.

    A score is an accuracy, or what a task of the lm-evaluation-harness measures.  `examples` counts those of all
    suites that it was scored on.
    """

    candidate: str
    mean: float
    by_suite: dict[str, float]
    examples: int


class SearchResult(NamedTuple):
    """All candidates, the best first: those that were scored on more examples before the others.

    `evaluated` counts examples times candidates, `exhaustive` what a full sweep would have taken.  `chosen` made the
    merge; `refused` were better and the gate refused them.  `notes` are sentences that belong beside the figures.
    """

    scores: tuple[Score, ...]
    evaluated: int
    exhaustive: int
    chosen: str
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    merged: MergeResult


def default_candidates(*, fisher: bool = True, grams: bool = True) -> tuple[str, ...]:
    """60 strategies with coefficients or more, for two sides.

    With `fisher` those too that need Fisher information, with `grams` those that need Gram matrices.
    """
    tenths = [round(number / 10, 1) for number in range(1, 10)]
    if not fisher:
        tenths = [round(number / 20, 2) for number in range(1, 20)]
    found = [f"average weights={share},{round(1 - share, 2)}" for share in tenths]
    found += [f"task-arithmetic scale={scale}" for scale in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5)]
    found += ["task-arithmetic weights=1,0.6", "task-arithmetic weights=0.6,1"]
    found += [f"ties density={density} scale={scale}" for density in (0.1, 0.2, 0.5) for scale in (1.0, 1.5, 2.0)]
    found += [f"dare density={density} scale={scale}" for density in (0.2, 0.5) for scale in (0.7, 1.0, 1.3)]
    found += [f"breadcrumbs density={density} scale={scale}" for density in (0.5, 0.9) for scale in (0.7, 1.0, 1.3)]
    found += ["della scale=1.0", "della scale=1.5", "sce topk=0.5", "sce", "model-stock", "karcher", "nuslerp"]
    found += [f"slerp t={t}" for t in (0.3, 0.5, 0.7)]
    if fisher:
        found += [f"fisher weights={share},{round(1 - share, 2)}" for share in tenths]
        found += [f"fisher-task scale={scale}" for scale in (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)]
        found += ["fisher-task weights=0.35,0.65 scale=1.75", "fisher-task weights=0.65,0.35 scale=1.75"]
    if grams:
        found += ["regmean", "regmean alpha=0.99", "regmean weights=0.35,0.65", "regmean weights=0.65,0.35", "mats"]
    return tuple(found)


def search(
    repo: Repository,
    revision: str,
    *,
    candidates: Sequence[str] = (),
    suites: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    seed: int = 0,
    exhaustive: bool = False,
    message: str | None = None,
    gate: str = "block",
    progress: Progress = SILENT,
) -> SearchResult:
    """Score candidates for the merge of `revision`, and merge with the best that passes the gate.

    `candidates` are strategies with options as they are typed (none: `default_candidates`).  Scores are those of the
    suites of the work tree, or of `suites`: accuracies on their labelled data or, by suite name, on other files in
    `data`, and the metrics of their tests of kind `lm-eval`.  Data that chose should not be the data that reports.
    `exhaustive` scores every candidate on everything.  Predictions and scores are cached by weights and data: a search
    that was interrupted goes on where it was.  For programs that score a model one candidate at a time is written into
    a temporary directory, which goes when it is scored.

    Raises UsageError without a suite that scores anything, GateRefused when the gate refuses every finalist.
    """
    head = repo.resolve("HEAD")
    if is_ancestor(repo.resolve(revision), head, repo.parents_of):
        raise NothingToDo(f"the branch has {revision} already", hint="`mgit log --graph` shows the history")
    theirs = repo.resolve(revision)
    state = MergeState(
        ours=head,
        theirs=theirs,
        base=None,
        message="",
        strategy="average",
        rules={**configured_rules(repo.settings.merge), **(rules or {})},
    )
    sides = sides_of(repo, state, progress=progress)
    planned = plan_sides(repo, sides, {})
    state = msgspec.structs.replace(state, resolutions=ruled_resolutions(planned.plan.conflicts, state.rules))
    planned = plan_sides(repo, sides, state.resolutions)
    still_open = planned.still_open(state.resolutions)
    if still_open:
        raise UsageError(
            f"the branches conflict ({still_open[0].id}), which no strategy decides",
            hint=f"`mgit merge {revision}` and `mgit resolve`; of a tensor, a rule: --strategy 'NAME=ours'",
        )
    if "combine" not in planned.plan.counts:
        raise UsageError("no tensor was changed on both sides: there is nothing to search", hint="`mgit merge REV`")
    found = objectives(repo, sides.ours.manifest, suites=suites, files=data or {}, seed=seed, progress=progress)
    texts = tuple(candidates) or default_candidates(**_statistics(repo, sides, planned.plan, progress))
    bound = {rule_text(item): item for item in (parse_rule(text) for text in texts)}
    scores, evaluated = _rounds(repo, sides, planned, state, bound, found, exhaustive, progress)
    total = sum(item.size for item in found)
    notes = [item.note for item in found if item.note]
    refused: list[str] = []
    finalists = [score for score in scores if score.examples == scores[0].examples]
    for score in finalists:
        chosen = bound[score.candidate]
        try:
            merged = merge(
                repo,
                revision,
                strategy=chosen.name,
                options={key: str(value) for key, value in chosen.recipe.items()},
                rules=rules,
                message=message,
                fast_forward=False,
                gate=gate,
                progress=progress,
            )
        except GateRefused:
            refused.append(score.candidate)
            if score is finalists[-1]:
                raise
            continue
        return SearchResult(
            scores, evaluated, total * len(bound), score.candidate, tuple(refused), tuple(notes), merged
        )
    raise UsageError("no candidate was given", hint="`--candidate 'ties density=0.2'`")


def _rounds(
    repo: Repository,
    sides: Sides,
    planned: Planned,
    state: MergeState,
    bound: Mapping[str, BoundStrategy],
    scored_by: Sequence[Objective],
    exhaustive: bool,
    progress: Progress,
) -> tuple[tuple[Score, ...], int]:
    """The final order, and the examples that it took."""
    smallest = min(item.size for item in scored_by)

    def score(name: str, share: float) -> Score:
        return _score(repo, sides, planned, state, name, bound[name], scored_by, share, progress)

    return halve(list(bound), [1.0] if exhaustive else shares_of(len(bound), smallest), score, progress=progress)


def halve(
    candidates: Sequence[str],
    shares: Sequence[float],
    score: Callable[[str, float], Score],
    *,
    progress: Progress = SILENT,
) -> tuple[tuple[Score, ...], int]:
    """Score all candidates on the first of `shares` of the examples, and the better half of them on the next.

    At last the neighbours of the best, which are the candidates of its strategy on both sides of it, are scored on the
    same examples where they fell out early: coefficients next to each other differ by less than an early round can see.
    Gives the scores, those of the last round first and the best of a round first, and the examples that were counted.
    Of equal candidates the first one is better.
    """
    place = {name: at for at, name in enumerate(candidates)}
    done: dict[str, Score] = {}

    def look(names: Sequence[str], share: float) -> list[str]:
        """Score them all; the names, best first."""
        progress.start("search", len(names), unit="candidates")
        for name in names:
            progress.check()
            done[name] = score(name, share)
            progress.advance("search", 1)
        progress.finish("search")
        return sorted(names, key=lambda name: (-done[name].mean, place[name]))

    left: Sequence[str] = candidates
    for number, share in enumerate(shares, 1):
        ranked = look(left, share)
        left = ranked if number == len(shares) else ranked[: max(1, len(ranked) // _KEPT)]
    if missed := [name for name in _neighbours(candidates, place[left[0]]) if name not in left]:
        look(missed, shares[-1])
    order = sorted(done.values(), key=lambda item: (-item.examples, -item.mean, place[item.candidate]))
    return tuple(order), sum(item.examples for item in done.values())


def _neighbours(candidates: Sequence[str], at: int) -> list[str]:
    """The candidates before and behind one, if they are of its strategy."""
    near = [candidates[index] for index in (at - 1, at + 1) if 0 <= index < len(candidates)]
    return [name for name in near if name.split()[0] == candidates[at].split()[0]]


def shares_of(candidates: int, examples: int) -> list[float]:
    """The part of the examples of each round, doubling up to all of them.

    As many rounds as leave a few finalists, but none with fewer examples than say anything.
    """
    shares = [1.0]
    left = candidates
    while left > _KEPT and shares[0] * examples / _KEPT >= _FIRST:
        shares.insert(0, shares[0] / _KEPT)
        left //= _KEPT
    return shares


def _score(
    repo: Repository,
    sides: Sides,
    planned: Planned,
    state: MergeState,
    name: str,
    bound: BoundStrategy,
    scored_by: Sequence[Objective],
    share: float,
    progress: Progress,
) -> Score:
    """Merge, predict, count; what was written for it is dropped."""
    chosen = msgspec.structs.replace(state, strategy=bound.name, options=bound.recipe)
    scores = {}
    examples = 0
    with repo.session() as session, ExitStack() as stack:
        manifest = merged_manifest(repo, session, chosen, sides, planned, bound, progress)
        merged: dict[tuple[str, str], ManifestSide] = {}
        for item in scored_by:
            ran_as = (item.settings.device, item.settings.dtype)
            if ran_as not in merged:
                merged[ran_as] = side_of(repo, session, manifest, item.settings, stack, progress)
            scores[item.name], count = item.score(merged[ran_as], share)
            examples += count
        session.abort()
    return Score(name, float(np.mean(list(scores.values()))), scores, examples)


def _statistics(repo: Repository, sides: Sides, plan: MergePlan, progress: Progress) -> dict[str, bool]:
    """Whether some side has (or gets, now) Fisher information, and all sides Gram matrices."""
    from modelgit.repo.patches.fisher import fisher_for_merge

    models = sorted({item.model for item in plan.tensors if item.action == "combine"})
    found = [
        fisher_for_merge(repo, side.manifest, sides.base.manifest, model, grams=True, progress=progress).estimate
        for model in models
        for side in (sides.ours, sides.theirs)
    ]
    return {
        "fisher": any(estimate is not None for estimate in found),
        "grams": all(estimate is not None and bool(estimate.grams) for estimate in found),
    }
