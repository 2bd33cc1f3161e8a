"""The tensors of a merge: they stream from both sides through the strategy into packs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import BugError
from modelgit.merging.base import BoundStrategy
from modelgit.merging.model import ModelMerge
from modelgit.merging.plan import StoredTensor
from modelgit.merging.resolve import Combined, Taken, Viewed, resolve_tensor, viewed
from modelgit.merging.resolve import Sides as TensorSides
from modelgit.merging.rows import RowPlan, RowViews, ViewSource
from modelgit.merging.tensors import TensorParts, compare
from modelgit.numerics.nonfinite import ValueCounts
from modelgit.objects import FisherEstimate, MergeRecipe, TensorId
from modelgit.objects.merges import MergeState, Overlap, Resolution, TensorDecision
from modelgit.patching.base import TensorReads, TensorSource
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import StoreJob
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.plan import Planned
from modelgit.repo.merges.strategies import ChosenStrategies, choose_strategies, recorded_strategies
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.merges.merge import Sides
    from modelgit.repo.repository import Repository

__all__ = ["MergedTensors", "Work", "compare_all", "measure_overlaps", "merge_tensors", "statistics_of", "store_all"]


class MergedTensors(NamedTuple):
    """What was made, by model and name, and what the strategies had to say: statistics, notes, overlaps."""

    ran: ChosenStrategies
    final: dict[str, dict[str, StoredTensor]]
    statistics: dict[str, str]
    notes: tuple[str, ...]
    overlaps: tuple[Overlap, ...]
    encodings: dict[str, int]
    counted: dict[TensorId, ValueCounts]


class Work(NamedTuple):
    """A model's tensors: settled ones (None: gone), those that a strategy makes, and tables with rows of several."""

    settled: dict[str, StoredTensor | None]
    parts: list[TensorParts]
    viewed: dict[str, Viewed]


def merge_tensors(
    repo: Repository,
    session: PackSession,
    state: MergeState,
    sides: Sides,
    planned: Planned,
    bound: BoundStrategy,
    progress: Progress,
    *,
    recipe: MergeRecipe | None = None,
) -> MergedTensors:
    """Make and store the tensors of a merge; with the `recipe` of an earlier one from what that one found."""
    final: dict[str, dict[str, StoredTensor]] = {}
    statistics: dict[str, str] = {}
    notes = list(planned.notes)
    encodings: Counter[str] = Counter()
    counted: dict[TensorId, ValueCounts] = {}
    overlaps: list[Overlap] = []
    reads = RowViews(repo.reader(session))
    works = _works(reads, sides, planned, state.resolutions)
    combined = [model for model, work in works.items() if work.parts]
    if recipe is None:
        labelled = [("ours", sides.ours.manifest), ("theirs", sides.theirs.manifest)]
        ran = choose_strategies(
            repo, bound, state.rules, labelled, sides.base.manifest, combined, notes=notes, progress=progress
        )
    else:
        ran = recorded_strategies(repo, recipe)
    for model, work in works.items():
        base, ours, theirs = (side.side.models.get(model, {}) for side in (sides.base, sides.ours, sides.theirs))
        made: dict[str, StoredTensor] = {}
        if work.parts or work.viewed:
            found, split = compare_all(reads, model, work.parts, progress)
            fishers = ran.fishers.get(model, ())
            _place_fishers(reads, work, fishers)
            run = ModelMerge(
                reads,
                work.parts,
                ran.bound,
                rules=ran.rules,
                fishers=fishers,
                split=split,
                statistics=None if recipe is None else statistics_of(recipe.statistics, model),
            )
            # Where a side is picked, directions mean nothing.
            overlaps += [item for item in found if not run.strategy_of(item.name).strategy.exact]
            statistics.update({f"{model}|{key}": value for key, value in run.statistics.items()})
            notes += [note for note in run.notes if note not in notes]
            writer = repo.writer(session, progress=progress)
            made = store_all(reads, writer, run, work, encodings, counted, progress)
        # The order of ours, then what theirs adds: the order of files and tables follows from it.
        order = dict.fromkeys([*ours, *theirs, *base])
        chosen = {name: made.get(name) or work.settled.get(name) for name in order}
        final[model] = {name: tensor for name, tensor in chosen.items() if tensor is not None}
    return MergedTensors(ran, final, statistics, tuple(notes), tuple(overlaps), dict(encodings), counted)


def _works(reads: RowViews, sides: Sides, planned: Planned, resolutions: Mapping[str, str]) -> dict[str, Work]:
    """What there is to do, by model."""
    decisions: dict[str, list[TensorDecision]] = {}
    for decision in planned.plan.tensors:
        decisions.setdefault(decision.model, []).append(decision)
    works = {}
    for model, decided in sorted(decisions.items()):
        base, ours, theirs = (side.side.models.get(model, {}) for side in (sides.base, sides.ours, sides.theirs))
        works[model] = _divide(reads, resolutions, model, decided, planned.aligned.get(model, {}), base, ours, theirs)
    return works


def measure_overlaps(
    repo: Repository, sides: Sides, planned: Planned, *, progress: Progress = SILENT
) -> tuple[Overlap, ...]:
    """How far the sides moved apart, for each tensor that both changed and that is not in conflict.  Reads these."""
    tensors = tuple(decision for decision in planned.plan.tensors if decision.action == "combine")
    chosen = planned._replace(plan=msgspec.structs.replace(planned.plan, tensors=tensors))
    reads = RowViews(repo.reader())
    found: list[Overlap] = []
    for model, work in _works(reads, sides, chosen, {}).items():
        found += compare_all(reads, model, work.parts, progress)[0]
    return tuple(found)


def _place_fishers(views: RowViews, work: Work, fishers: Sequence[FisherEstimate | None]) -> None:
    """Give the tables of `work` their Fisher diagonals, row by row as the tables themselves."""
    if not any(fishers):
        return
    diagonals = [None if estimate is None else estimate.coded() for estimate in fishers]
    for number, parts in enumerate(work.parts):
        if parts.name in work.viewed:
            found = [None if entries is None else entries.get(parts.name) for entries in diagonals]
            work.parts[number] = work.viewed[parts.name].with_fishers(views, found)


def _divide(
    reads: RowViews,
    resolutions: Mapping[str, str],
    model: str,
    decisions: Sequence[TensorDecision],
    aligned: Mapping[str, RowPlan],
    base: Mapping[str, StoredTensor],
    ours: Mapping[str, StoredTensor],
    theirs: Mapping[str, StoredTensor],
) -> Work:
    """Which tensors of a model are one side's as they are, and which a strategy has to make."""
    work = Work({}, [], {})
    for decision in decisions:
        name = decision.name
        sides = TensorSides(base.get(name), ours.get(name), theirs.get(name))
        table = aligned.get(name)
        said = resolutions.get(f"{model}:{name}")  # about what could be combined, too: directions can be in conflict
        if decision.action == "combine" and table is None and said is None:
            ancestor = sides.base[1] if sides.base is not None and sides.base[0] == ours[name][0] else None
            pair = (ours[name][1], theirs[name][1])
            work.parts.append(TensorParts(name=name, spec=ours[name][0], base=ancestor, sides=pair))
        elif decision.action in ("combine", "conflict"):
            if decision.action == "combine" and table is not None and said is None:
                outcome: Taken | Combined | Viewed = viewed(name, table, sides, reads)
            else:
                outcome = resolve_tensor(
                    name, Resolution.parse(said or resolutions[model]), sides, reads, aligned=table
                )
            if isinstance(outcome, Taken):
                work.settled[name] = outcome.tensor
            elif isinstance(outcome, Combined):
                work.parts.append(outcome.parts)
            else:
                work.viewed[name] = outcome
                if outcome.parts is not None:
                    work.parts.append(outcome.parts)
        else:
            work.settled[name] = (theirs if decision.action == "theirs" else ours).get(name)
    return work


def compare_all(
    reads: TensorReads, model: str, parts: Sequence[TensorParts], progress: Progress
) -> tuple[list[Overlap], set[str]]:
    """How much the sides overlap in each tensor, and the tensors of which some side changed little."""
    overlaps = []
    split = set()
    progress.start("compare", len(parts), unit="tensors")
    for item in parts:
        progress.check()
        found = compare(reads, item)
        if found.overlap:
            opposed = found.overlap - found.agree
            overlaps.append(Overlap(model=model, name=item.name, values=found.overlap, opposed=opposed))
        if found.sparse and item.base is not None:
            split.add(item.name)
        progress.advance("compare", 1)
    progress.finish("compare")
    return overlaps, split


def store_all(
    reads: TensorReads,
    writer: TensorWriter,
    run: ModelMerge,
    work: Work,
    encodings: Counter[str],
    counted: dict[TensorId, ValueCounts],
    progress: Progress,
) -> dict[str, StoredTensor]:
    """Make and store every tensor of a model; each source goes when its tensor is stored."""
    specs = {item.name: item.spec for item in work.parts} | {name: item.spec for name, item in work.viewed.items()}

    def jobs() -> Iterator[StoreJob]:
        for item in work.parts:
            source: TensorSource = run.source(item.name)
            parent = work.viewed[item.name].parent if item.name in work.viewed else item.sides[0]
            yield StoreJob(item.name, source, source.spec, source.spec.size_bytes, parent)
        for name, table in work.viewed.items():
            if table.view is not None:
                source = ViewSource(reads, table.spec, table.view)
                yield StoreJob(name, source, table.spec, table.spec.size_bytes, table.parent)

    made: dict[str, StoredTensor] = {}
    progress.start("merge", sum(spec.size_bytes for spec in specs.values()))
    for stored in writer.store(jobs(), task="merge"):
        if not isinstance(stored.id, TensorId):
            raise BugError(f"{stored.name} was stored as a {stored.id.KIND}")
        made[stored.name] = (specs[stored.name], stored.id)
        if stored.nonfinite is not None:
            counted[stored.id] = stored.nonfinite
        if stored.codec != "known":
            encodings[stored.codec] += 1
    progress.finish("merge")
    return made


def statistics_of(statistics: Mapping[str, str], model: str) -> dict[str, str]:
    """Those of a recipe's statistics that a model's first pass found."""
    prefix = f"{model}|"
    return {key[len(prefix) :]: value for key, value in statistics.items() if key.startswith(prefix)}
