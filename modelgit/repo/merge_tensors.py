"""The second half of a merge: tensors stream from both sides through the strategy into packs, then the commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from modelgit.merging.base import BoundStrategy, parse_rule
from modelgit.merging.model import ModelMerge
from modelgit.merging.plan import StoredTensor
from modelgit.merging.resolve import Combined, Grown, Taken, resolve_tensor
from modelgit.merging.tensors import TensorParts, compare
from modelgit.objects import FileEntry, FisherEstimate, Literal, Manifest, MergeRecipe, TensorId
from modelgit.objects.manifest import FileContent
from modelgit.objects.merges import MergePlan, MergeState, Resolution
from modelgit.patching.base import TensorSource
from modelgit.patching.encode import StoreJob, TensorWriter, write_blob
from modelgit.progress import Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.commit import CommitResult, write_commit
from modelgit.repo.merge_files import merged_weights
from modelgit.repo.record import write_content_record
from modelgit.repo.update import check_clean, move_worktree
from modelgit.store.fs import PackSession

if TYPE_CHECKING:
    from modelgit.repo.merge import Sides
    from modelgit.repo.repository import Repository

__all__ = ["MergedCommit", "make_commit"]


class MergedCommit(NamedTuple):
    """The commit of a merge, with what there is to say about it."""

    result: CommitResult
    overlap: int
    agree: int
    notes: tuple[str, ...]


class _Tensors(NamedTuple):
    final: dict[str, dict[str, StoredTensor]]
    statistics: dict[str, str]
    notes: tuple[str, ...]
    overlap: int
    agree: int
    encodings: dict[str, int]


def make_commit(
    repo: Repository,
    state: MergeState,
    sides: Sides,
    plan: MergePlan,
    contents: Mapping[str, bytes | None],
    bound: BoundStrategy,
    *,
    gate: str,
    progress: Progress,
) -> MergedCommit:
    """Compute, check and record the merge; the work tree moves last.

    Raises GateRefused (nothing recorded, nothing moved) when the merged model breaks a limit.
    """
    session = repo.session()
    try:
        tensors = _merge_tensors(repo, session, state, sides, plan, bound, progress)
        weights, models = merged_weights(repo, session, sides.ours, sides.theirs, tensors.final)
        files = _merge_files(repo, session, sides, plan, contents)
        manifest = Manifest(files=tuple(sorted([*weights, *files], key=lambda entry: entry.path)), models=tuple(models))
        from modelgit.repo.gate import run_gate

        evaluations = run_gate(repo, session, manifest, state.ours, mode=gate, progress=progress)
        before = sides.ours.manifest
        result = write_commit(
            repo,
            session,
            manifest,
            before,
            compare_manifests(repo, before, manifest, new_store=session),
            message=state.message,
            parents=(state.ours, state.theirs),
            evaluations=evaluations,
            encodings=tensors.encodings,
            recipe=MergeRecipe(
                base=sides.base_id,
                strategy=state.strategy,
                options=state.options,
                rules=state.rules,
                resolutions=state.resolutions,
                statistics=tensors.statistics,
            ),
        )
        check_clean(repo, before, manifest, verb="merging", hint="`mgit restore .` first, or `mgit merge --abort`")
        session.seal()
    except BaseException:
        session.abort()
        raise
    from modelgit.repo.merge import _moved

    view = repo.view()
    move_worktree(
        repo,
        before,
        manifest,
        description=f"merge: {result.commit.subject}",
        view=view,
        after=_moved(view, result.id),
        session=session,
        progress=progress,
    )
    return MergedCommit(result._replace(branch=view.branch), tensors.overlap, tensors.agree, tensors.notes)


def _merge_tensors(
    repo: Repository,
    session: PackSession,
    state: MergeState,
    sides: Sides,
    plan: MergePlan,
    bound: BoundStrategy,
    progress: Progress,
) -> _Tensors:
    final: dict[str, dict[str, StoredTensor]] = {}
    statistics: dict[str, str] = {}
    notes: list[str] = []
    encodings: dict[str, int] = {}
    overlap = agree = 0
    reads = repo.reader(session)
    rules = {pattern: parse_rule(text) for pattern, text in state.rules.items()}
    for model in sorted({decision.model for decision in plan.tensors}):
        base, ours, theirs = (side.side.models.get(model, {}) for side in (sides.base, sides.ours, sides.theirs))
        settled: dict[str, StoredTensor | None] = {}
        parts: list[TensorParts] = []
        grown: dict[str, Grown] = {}
        for decision in plan.tensors:
            if decision.model != model:
                continue
            name = decision.name
            if decision.action == "combine":
                stored = base.get(name)
                usable = stored is not None and stored[0] == ours[name][0]
                parts.append(
                    TensorParts(
                        name=name,
                        spec=ours[name][0],
                        base=stored[1] if usable and stored is not None else None,
                        sides=(ours[name][1], theirs[name][1]),
                    )
                )
            elif decision.action == "conflict":
                text = state.resolutions.get(f"{model}:{name}") or state.resolutions[model]
                outcome = resolve_tensor(
                    name,
                    Resolution.parse(text),
                    reads=reads,
                    base=base.get(name),
                    ours=ours.get(name),
                    theirs=theirs.get(name),
                )
                if isinstance(outcome, Taken):
                    settled[name] = outcome.tensor
                else:
                    parts.append(outcome.parts)
                    if isinstance(outcome, Grown):
                        grown[name] = outcome
                    elif not isinstance(outcome, Combined):
                        raise TypeError(type(outcome))
            else:
                settled[name] = (theirs if decision.action == "theirs" else ours).get(name)
        made: dict[str, StoredTensor] = {}
        if parts:
            split = set()
            progress.start("compare", len(parts), unit="tensors")
            for item in parts:
                progress.check()
                found = compare(reads, item)
                overlap += found.overlap
                agree += found.agree
                if found.sparse and item.base is not None:
                    split.add(item.name)
                progress.advance("compare", 1)
            progress.finish("compare")
            fishers = _fishers(repo, sides, model, bound, rules, notes, progress)
            run = ModelMerge(reads, parts, bound, rules=rules, fishers=fishers, split=split)
            statistics.update({f"{model}|{key}": value for key, value in run.statistics.items()})
            notes += [note for note in run.notes if note not in notes]
            jobs = []
            for item in parts:
                source: TensorSource = run.source(item.name)
                if item.name in grown:
                    source = grown[item.name].source(reads, source)
                # A grown tensor is coded against the side that grew: it has its shape.
                parent = grown[item.name].longer if item.name in grown else item.sides[0]
                jobs.append(StoreJob(item.name, source, source.spec, source.spec.size_bytes, parent))
            progress.start("merge", sum(job.size for job in jobs))
            writer = TensorWriter(session, threads=repo.threads, progress=progress)
            for job, stored_tensor in zip(jobs, writer.store(jobs, task="merge"), strict=True):
                if not isinstance(stored_tensor.id, TensorId) or job.spec is None:
                    raise TypeError(stored_tensor.id)
                made[job.name] = (job.spec, stored_tensor.id)
                if stored_tensor.codec != "known":
                    encodings[stored_tensor.codec] = encodings.get(stored_tensor.codec, 0) + 1
            progress.finish("merge")
        # The order of ours, then what theirs adds: the order of files and tables follows from it.
        order = dict.fromkeys([*ours, *theirs, *base])
        final[model] = {}
        for name in order:
            tensor = made.get(name) or settled.get(name)
            if tensor is not None:
                final[model][name] = tensor
    return _Tensors(final, statistics, tuple(notes), overlap, agree, encodings)


def _fishers(
    repo: Repository,
    sides: Sides,
    model: str,
    bound: BoundStrategy,
    rules: Mapping[str, BoundStrategy],
    notes: list[str],
    progress: Progress,
) -> list[FisherEstimate | None]:
    if not any("fisher" in item.strategy.needs for item in (bound, *rules.values())):
        return []
    from modelgit.repo.fisher import estimate_for_merge

    found = []
    for label, side in (("ours", sides.ours), ("theirs", sides.theirs)):
        estimate, note = estimate_for_merge(repo, side.manifest, sides.base.manifest, model, progress=progress)
        found.append(estimate)
        if note:
            notes.append(f"{label}: {note}")
    return found


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
                entries.append(_store_file(repo, session, path, data, sides.ours.manifest.file(path)))
            continue
        side = sides.theirs if decision.action == "theirs" else sides.ours
        entry = side.manifest.file(path)
        if entry is not None:
            entries.append(entry)
    return entries


def _store_file(repo: Repository, session: PackSession, path: str, data: bytes, before: FileEntry | None) -> FileEntry:
    blob = write_blob(session, data, name=path)
    content = FileContent(format="opaque", segments=(Literal(blob=blob, length=len(data)),))
    base = None if before is None else (before.digest, repo.content_at(before.digest))
    digest = write_content_record(session, content, base)
    return FileEntry(
        path=path, size=len(data), digest=digest, executable=before.executable if before is not None else False
    )
