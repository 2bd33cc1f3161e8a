"""`soften`: the largest part of a commit's change that the gate lets pass.

Blending a new model with the one before keeps most of what it gained and takes back most of what it broke (Zhang et al.
2024, "Backward Compatible Weight Interpolation"): the blend (1 - α) parent + α commit is a gate of its own for each α.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import GateRefused, NothingToDo, RepositoryError, UsageError
from modelgit.merging.base import parse_rule
from modelgit.merging.model import ModelMerge
from modelgit.merging.tensors import TensorParts
from modelgit.objects import CommitId, Manifest
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.gates.gate import RefusedWithRecords, run_gate
from modelgit.repo.merges.commit import move_to
from modelgit.repo.merges.files import OpenSide, merged_weights, open_side
from modelgit.repo.merges.state import refuse_during_merge
from modelgit.repo.merges.tensors import Work, store_all
from modelgit.repo.tracking.commit_records import CommitResult, write_commit
from modelgit.repo.tracking.training import training_of
from modelgit.repo.tracking.update import check_clean
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from collections import Counter

    from modelgit.numerics.nonfinite import ValueCounts
    from modelgit.objects import EvalRecord, TensorId
    from modelgit.repo.repository import Repository

__all__ = ["Probe", "Softened", "soften"]

_STEPS = 32
"""Blends are whole numbers of 32nds: five probes find the largest that passes."""


class Probe(NamedTuple):
    """A blend that was tried, whether the gate let it pass, and the verdicts."""

    alpha: float
    passed: bool
    records: tuple[EvalRecord, ...]


class Softened(NamedTuple):
    """The blend that was recorded: `alpha` of the change of `of` over `parent`; `probes` in the order of trying."""

    alpha: float
    of: CommitId
    parent: CommitId
    probes: tuple[Probe, ...]
    commit: CommitResult


def soften(repo: Repository, *, message: str | None = None, progress: Progress = SILENT) -> Softened:
    """Find the largest blend of the current commit with its parent that passes the gate, and commit it on top.

    The gate compares with the parents, as for the commit itself (which `mgit commit --gate warn` records although it
    broke a limit).  Tensors that are no floats, or that the parent does not have in this form, stay as in the commit.

    Raises NothingToDo when the commit passes as it is, GateRefused when even the smallest blend does not.
    """
    with repo.writing():
        refuse_during_merge(repo, "a blend")
        head = repo.head()
        parents = () if head is None else repo.parents_of(head)
        if head is None or not parents:
            raise RepositoryError("there is no parent to blend with", hint="`mgit log` shows the history")
        parent = parents[0]  # of a merge, the side that it went to
        new, old = (open_side(repo, repo.manifest_of(commit)) for commit in (head, parent))
        check_clean(repo, new.manifest, Manifest(), verb="blending", hint="`mgit commit --gate warn -m …` first")
        blend = _Blend(repo, old, new, parents, progress)
        return _search(repo, blend, head, parent, message, progress)


def _search(
    repo: Repository, blend: _Blend, head: CommitId, parent: CommitId, message: str | None, progress: Progress
) -> Softened:
    probes: list[Probe] = []
    if blend.try_out(1.0, probes) is not None:
        raise NothingToDo("the commit passes the gate as it is", hint="`mgit eval HEAD` shows the verdicts")
    passing, failing = 0, _STEPS
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if blend.try_out(middle / _STEPS, probes) is None:
            failing = middle
        else:
            passing = middle
    if not passing:
        raise GateRefused(
            f"not even 1/{_STEPS} of the change passes the gate", hint="`mgit eval HEAD` shows what is broken"
        )
    alpha = passing / _STEPS
    subject = repo.commit_at(head).subject
    with repo.session() as session:
        manifest, _ = blend.write(session, alpha)
        before = repo.manifest_of(head)
        records = next(probe.records for probe in probes if probe.alpha == alpha)
        result = write_commit(
            repo,
            session,
            manifest,
            before,
            compare_manifests(repo, before, manifest, new_store=session),
            message=message or f"Soften to {alpha:.0%}: {subject}",
            parents=(head,),
            evaluations=records,
            training=training_of(repo, head),
            trailers={"soften": f"{alpha:g} of {head} over {parent}"},
        )
        session.seal()
    move_to(repo, head, result.id, verb="soften", session=session, progress=progress)
    made = result._replace(branch=repo.view().branch)
    return Softened(alpha, head, parent, tuple(probes), made)


class _Blend:
    """Two commits of which blends can be made."""

    def __init__(
        self, repo: Repository, old: OpenSide, new: OpenSide, parents: Sequence[CommitId], progress: Progress
    ) -> None:
        self.repo, self.new, self.parents, self.progress = repo, new, parents, progress
        self.parts: dict[str, list[TensorParts]] = {}
        for model, tensors in new.side.models.items():
            before = old.side.models.get(model, {})
            self.parts[model] = [
                TensorParts(name=name, spec=spec, base=None, sides=(before[name][1], tensor))
                for name, (spec, tensor) in sorted(tensors.items())
                if name in before and before[name][0] == spec and before[name][1] != tensor and spec.kind.is_float
            ]
        if not any(self.parts.values()):
            raise UsageError("the commit changed no weights that could be blended", hint="`mgit show` says what it did")

    def write(self, session: PackSession, alpha: float) -> tuple[Manifest, dict[TensorId, ValueCounts]]:
        """The manifest of a blend, its tensors in `session`, and what the writer saw of them."""
        from collections import Counter

        repo = self.repo
        reads = repo.reader(session)
        counted: dict[TensorId, ValueCounts] = {}
        encodings: Counter[str] = Counter()
        rule = parse_rule(f"average weights={1 - alpha!r},{alpha!r}")
        tensors = {}
        for model, parts in self.parts.items():
            run = ModelMerge(reads, parts, rule)
            writer = repo.writer(session, progress=self.progress)
            made = store_all(reads, writer, run, Work({}, parts, {}), encodings, counted, self.progress)
            tensors[model] = {**self.new.side.models[model], **made}
        weights, models = merged_weights(repo, session, self.new, self.new, tensors)
        others = [entry for entry in self.new.manifest.files if entry.path not in self.new.weights]
        files = tuple(sorted([*weights, *others], key=lambda entry: entry.path))
        return Manifest(files=files, models=tuple(models)), counted

    def try_out(self, alpha: float, probes: list[Probe]) -> tuple[EvalRecord, ...] | None:
        """The verdicts on a blend; None when the gate refuses it."""
        self.progress.check()
        with self.repo.session() as session:
            try:
                manifest, counted = self.write(session, alpha)
                records = tuple(
                    run_gate(self.repo, session, manifest, self.parents, counted=counted, progress=self.progress)
                )
                probes.append(Probe(alpha, True, records))
                return records
            except RefusedWithRecords as refusal:
                probes.append(Probe(alpha, False, refusal.records))
                return None
            finally:
                session.abort()
