"""The second half of a merge: tensors stream from both sides through the strategy into packs, then the commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.errors import BugError, MergeConflicts
from modelgit.merging.base import STRATEGIES, BoundStrategy
from modelgit.merging.model import ModelMerge
from modelgit.merging.plan import StoredTensor
from modelgit.merging.resolve import Combined, Taken, Viewed, resolve_tensor, viewed
from modelgit.merging.resolve import Sides as TensorSides
from modelgit.merging.rows import RowPlan, RowViews, ViewSource
from modelgit.merging.tensors import TensorParts, compare
from modelgit.numerics.nonfinite import ValueCounts
from modelgit.objects import CommitId, FileEntry, FisherEstimate, Literal, Manifest, MergeRecipe, TensorId
from modelgit.objects.manifest import FileContent
from modelgit.objects.merges import MergePlan, MergeState, Overlap, Resolution, TensorDecision
from modelgit.patching.base import TensorReads, TensorSource
from modelgit.patching.encode import TensorWriter, write_blob
from modelgit.patching.jobs import StoreJob
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.commit_records import CommitResult, write_commit
from modelgit.repo.merge_files import merged_weights, open_side
from modelgit.repo.merge_plan import Planned, plan_sides
from modelgit.repo.merge_strategies import ChosenStrategies, choose_strategies, recorded_strategies
from modelgit.repo.record import write_content_record
from modelgit.repo.training import training_of
from modelgit.repo.update import check_clean, move_worktree
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from modelgit.repo.merge import Sides
    from modelgit.repo.repository import Repository

__all__ = [
    "MergedCommit",
    "Work",
    "compare_all",
    "make_commit",
    "measure_overlaps",
    "merged_manifest",
    "move_to",
    "remade",
    "statistics_of",
    "store_all",
    "store_file",
    "virtual_base",
]


class MergedCommit(NamedTuple):
    """The commit of a merge, with what there is to say about it; `strategy` is the one that ran."""

    result: CommitResult
    strategy: str
    overlaps: tuple[Overlap, ...]
    notes: tuple[str, ...]


class _Tensors(NamedTuple):
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


def make_commit(
    repo: Repository,
    state: MergeState,
    sides: Sides,
    planned: Planned,
    bound: BoundStrategy,
    *,
    gate: str,
    keep: bool = True,
    progress: Progress,
) -> MergedCommit | None:
    """Compute, check and record the merge.

    The work tree and the branch move unless more is `todo`, or nothing is to be kept.

    None for a pick that changes nothing.  Raises GateRefused (nothing recorded, nothing moved) when the merged model
    breaks a limit.
    """
    start = repo.manifest_of(state.head)
    with repo.session() as session:
        tensors = _merge_tensors(repo, session, state, sides, planned, bound, progress)
        manifest, before = _manifest_of(repo, session, sides, planned, tensors), sides.ours.manifest
        if state.verb and (manifest.files, manifest.models) == (before.files, before.models):
            session.abort()
            return None
        from modelgit.repo.gate import run_gate

        parents = (state.ours,) if state.verb else (state.ours, state.theirs)
        evaluations = run_gate(repo, session, manifest, parents, mode=gate, counted=tensors.counted, progress=progress)
        result = write_commit(
            repo,
            session,
            manifest,
            before,
            compare_manifests(repo, before, manifest, new_store=session),
            message=state.message,
            parents=parents,
            author=state.author or None,
            evaluations=evaluations,
            training=training_of(repo, state.ours),
            encodings=tensors.encodings,
            trailers={state.verb: str(state.source)} if state.source is not None else None,
            recipe=MergeRecipe(
                base=sides.base_id,
                strategy=tensors.ran.bound.name,
                options=tensors.ran.bound.recipe,
                rules=tensors.ran.rule_texts,
                resolutions=state.resolutions,
                statistics=tensors.statistics,
                fishers=tensors.ran.used,
                theirs=state.theirs if state.verb else None,
            ),
        )
        made = MergedCommit(result, tensors.ran.bound.name, tensors.overlaps, tensors.notes)
        if not keep:
            session.abort()
            return made
        verb = "merging" if not state.verb else f"the {state.verb}"
        check_clean(
            repo,
            start,
            manifest,
            verb=verb,
            hint="`mgit commit -m …` first, or `mgit restore .` to give the changes up",
        )
        session.seal()
    if state.todo:
        return made
    move_to(repo, state.head, result.id, verb=state.name, session=session, progress=progress)
    return made._replace(result=result._replace(branch=repo.view().branch))


def move_to(
    repo: Repository,
    start: CommitId,
    commit: CommitId,
    *,
    verb: str,
    session: PackSession | None = None,
    progress: Progress = SILENT,
) -> None:
    """Bring the work tree and the current branch from `start`, where they are, to `commit`."""
    view = repo.view()
    move_worktree(
        repo,
        repo.manifest_of(start),
        repo.manifest_of(commit),
        description=f"{verb}: {repo.commit_at(commit).subject}",
        view=view,
        after=view.with_head(commit),
        session=session,
        progress=progress,
    )


def virtual_base(
    repo: Repository, bases: Sequence[CommitId], state: MergeState, *, progress: Progress = SILENT
) -> Manifest:
    """One common ancestor made of several, each merged with the next as `state` says, oldest first.

    So histories that merged each other meet at what these merges made, and a change that came over either way counts
    once.  What conflicts is the newer base's.  The result is in no commit; garbage collection takes it.
    """
    from modelgit.repo.merge import open_sides

    ordered = sorted(bases, key=lambda commit: (repo.commit_at(commit).committer.time_s, commit))
    bound = STRATEGIES.get(state.strategy).bind(state.options)
    merged, manifest = ordered[0], repo.manifest_of(ordered[0])
    for commit in ordered[1:]:
        sides = open_sides(repo, merged, commit, virtual=lambda found: virtual_base(repo, found, state))
        sides = sides._replace(ours=open_side(repo, manifest))
        planned, taken = plan_sides(repo, sides, {}), dict[str, str]()
        while planned.still_open(taken):
            taken |= {conflict.id: "take theirs" for conflict in planned.still_open(taken)}
            planned = plan_sides(repo, sides, taken)
        with repo.session() as session:
            inner = msgspec.structs.replace(state, resolutions=taken)
            tensors = _merge_tensors(repo, session, inner, sides, planned, bound, progress)
            manifest = _manifest_of(repo, session, sides, planned, tensors)
            session.seal()
        merged = commit
    return manifest


def merged_manifest(
    repo: Repository,
    session: PackSession,
    state: MergeState,
    sides: Sides,
    planned: Planned,
    bound: BoundStrategy,
    progress: Progress = SILENT,
) -> Manifest:
    """What a merge without conflicts would give, its tensors written to `session`."""
    tensors = _merge_tensors(repo, session, state, sides, planned, bound, progress)
    return _manifest_of(repo, session, sides, planned, tensors)


def _manifest_of(
    repo: Repository,
    session: PackSession,
    sides: Sides,
    planned: Planned,
    tensors: _Tensors,
) -> Manifest:
    """The manifest of merged tensors and files."""
    weights, models = merged_weights(repo, session, sides.ours, sides.theirs, tensors.final)
    files = _merge_files(repo, session, sides, planned.plan, planned.contents)
    return Manifest(files=tuple(sorted([*weights, *files], key=lambda entry: entry.path)), models=tuple(models))


def _merge_tensors(
    repo: Repository,
    session: PackSession,
    state: MergeState,
    sides: Sides,
    planned: Planned,
    bound: BoundStrategy,
    progress: Progress,
    *,
    recipe: MergeRecipe | None = None,
) -> _Tensors:
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
    return _Tensors(ran, final, statistics, tuple(notes), tuple(overlaps), dict(encodings), counted)


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


def remade(repo: Repository, state: MergeState, recipe: MergeRecipe, sides: Sides, *, progress: Progress) -> Manifest:
    """The manifest that a recipe gives again; nothing is kept.

    Raises MergeConflicts when conflicts are open that the recipe has no word on.
    """
    planned = plan_sides(repo, sides, state.resolutions)
    still_open = planned.still_open(state.resolutions)
    if still_open:
        raise MergeConflicts(f"the recipe does not decide {still_open[0].id}", conflicts=still_open)
    bound = STRATEGIES.get(recipe.strategy).bind(recipe.options)
    with repo.session() as session:
        tensors = _merge_tensors(repo, session, state, sides, planned, bound, progress, recipe=recipe)
        manifest = _manifest_of(repo, session, sides, planned, tensors)
        session.abort()
    return manifest


def _merge_files(
    repo: Repository,
    session: PackSession,
    sides: Sides,
    plan: MergePlan,
    contents: Mapping[str, bytes | None],
) -> list[FileEntry]:
    entries = []
    for decision in plan.files:
        path = decision.path
        if path in contents:
            data = contents[path]
            if data is not None:
                entries.append(store_file(repo, session, path, data, sides.ours.manifest.file(path)))
            continue
        side = sides.theirs if decision.action == "theirs" else sides.ours
        entry = side.manifest.file(path)
        if entry is not None:
            entries.append(entry)
    return entries


def store_file(repo: Repository, session: PackSession, path: str, data: bytes, before: FileEntry | None) -> FileEntry:
    """Store a merged file without weights, against what it was `before`."""
    blob = write_blob(session, data, name=path)
    content = FileContent(format="opaque", segments=(Literal(blob=blob, length=len(data)),))
    base = None if before is None else (before.digest, repo.content_at(before.digest))
    digest = write_content_record(session, content, base)
    return FileEntry(
        path=path, size=len(data), digest=digest, executable=before.executable if before is not None else False
    )
