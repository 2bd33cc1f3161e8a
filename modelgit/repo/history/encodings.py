"""`show --storage`: how the tensors that a commit brought are stored, and why.

A record says which way was taken.  Why is worked out again from samples of the tensor and its candidates, so the
estimates are those of this version and of what is stored today.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import MgitError
from modelgit.objects import BlobId, CommitId, MaskId, Record, TensorEntry, TensorId
from modelgit.patching.chain import MAX_COST, chain_cost, chain_links
from modelgit.patching.encode import CORRECTED
from modelgit.patching.jobs import StoredObject, StoreJob
from modelgit.patching.planner import Planner, Weighed
from modelgit.patching.records import sections_of
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import models_of
from modelgit.repo.upkeep.origins import MaskNames, Origin, commits_in_order, origins_of
from modelgit.repo.upkeep.usage import codec_of

if TYPE_CHECKING:
    from modelgit.patching.materialise import TensorReader
    from modelgit.repo.repository import Repository

__all__ = ["Estimate", "TensorEncoding", "encodings"]


class Estimate(Record, frozen=True, kw_only=True):
    """What a way of coding would take in bits per word; it is open when reading it costs no more than is allowed."""

    codec: str
    base: str | None
    bits_per_word: float
    is_open: bool


class TensorEncoding(Record, frozen=True, kw_only=True):
    """How one tensor is stored.

    `depth` counts the bases below it, `cost` is that of reading it in passes over it.  `base` is a name and
    `base_commit` the commit that brought it, None when it is stored whole.  `mask` is the mask that its positions come
    from, or, where no mask is known any more, the blob that holds them.
    """

    model: str
    name: str
    dtype: str
    codec: str
    base: str | None
    base_commit: CommitId | None
    stored_bytes: int
    raw_bytes: int
    depth: int
    cost: float
    estimates: tuple[Estimate, ...] = ()
    reason: str = ""
    mask: MaskId | BlobId | None = None


def encodings(repo: Repository, commit_id: CommitId, *, progress: Progress = SILENT) -> list[TensorEncoding]:
    """The tensors that the commit added or changed against its first parent.  Reads samples of these tensors.

    Raises WeightsPruned when the weights of the commit are gone.
    """
    from modelgit.repo.upkeep.pruned import refuse_pruned

    refuse_pruned(repo, [commit_id])
    commit = repo.commit_at(commit_id)
    manifest = repo.manifest_of(commit_id)
    before = repo.manifest_of(commit.parents[0]) if commit.parents else None
    old = {} if before is None else models_of(repo, before)
    order = commits_in_order(repo, {commit_id})
    origins = origins_of(repo, set(), order)
    found = []
    explainer = _Explainer(repo, order, {key: origin for key, origin in origins.items() if key[0] == "tensor"})
    for model, tensors in models_of(repo, manifest).items():
        for name, entry in tensors.items():
            progress.check()
            previous = old.get(model, {}).get(name)
            if previous is None or previous.id != entry.id:
                found.append(explainer.explain(model, name, entry, previous))
    return found


class _Explainer:
    def __init__(self, repo: Repository, commits: list[CommitId], origins: dict[tuple[str, bytes], Origin]) -> None:
        self._repo = repo
        self._masks = MaskNames(repo, commits)
        self._origins = origins
        self._reader: TensorReader = repo.reader()
        self._planner = Planner(repo.store, self._reader, effort=repo.settings.storage.effort)

    def explain(self, model: str, name: str, entry: TensorEntry, previous: TensorEntry | None) -> TensorEncoding:
        store = self._repo.store
        rows = [row for row in store.locate(entry.id) if not row.is_leaf_table]
        base = min(rows, key=lambda row: (row.base is not None, row.length)).base if rows else None
        rows = [row for row in rows if row.base == base]
        codec = codec_of(self._repo, entry.id, rows)
        weighed = self._weigh(name, entry, previous)
        origin = None if base is None else self._origins.get(("tensor", base))
        cost = chain_cost(store, entry.id)
        stored = sum(row.length for row in rows)
        bits = stored * 8 / max(1, entry.spec.elements)
        return TensorEncoding(
            model=model,
            name=name,
            dtype=entry.spec.dtype,
            codec=codec,
            base=None if base is None else origin.name if origin else TensorId(base).short,
            base_commit=None if origin is None else origin.commit,
            stored_bytes=stored,
            raw_bytes=entry.spec.size_bytes,
            depth=max(0, len(chain_links(store, entry.id)) - 1),
            cost=round(cost, 3),
            estimates=tuple(
                Estimate(
                    codec=item.choice.codec,
                    base=None if item.base is None else self._shown(item.base),
                    bits_per_word=round(item.choice.bits, 3),
                    is_open=item.is_admissible,
                )
                for item in weighed
            ),
            reason=_reason(codec, base, weighed, bits),
            mask=next((self._masks.of(row.positions) for row in rows if row.positions is not None), None),
        )

    def _weigh(self, name: str, entry: TensorEntry, previous: TensorEntry | None) -> list[Weighed]:
        usable = previous is not None and previous.spec.dtype == entry.spec.dtype
        source = StoredObject(self._reader, entry.id, entry.spec)
        job = StoreJob(
            name,
            source,
            entry.spec,
            entry.spec.size_bytes,
            previous.id if usable and previous is not None else None,
            masks=tuple(sections_of(self._repo.store, entry.id)),
        )
        try:
            return self._planner.weigh(job) if entry.spec.size_bytes else []
        except MgitError:
            return []  # what it is compared with lies elsewhere, or was pruned: the record still says what was done

    def _shown(self, base: object) -> str:
        digest = getattr(base, "digest", b"")
        origin = self._origins.get(("tensor", digest))
        if origin is None or origin.commit is None:
            return TensorId(digest).short
        return f"{origin.name}@{origin.commit.short}"


def _reason(codec: str, base: bytes | None, weighed: list[Weighed], bits: float) -> str:
    """Why the record, which takes so many bits a word, is as it is, in one clause."""
    if codec == "elsewhere":
        return "lies elsewhere (`mgit borrow list`)"
    if codec == CORRECTED:
        # No estimate is made of it: that would be the fit itself.
        other = next((f", without it {w.choice.codec} {w.choice.bits:.2f}" for w in weighed if w.is_admissible), "")
        return f"the change is of low rank: {bits:.2f} bits a word{other}"
    if not weighed:
        return "nothing to compare it with is at hand"
    taken = next(
        (w for w in weighed if w.choice.codec == codec and (None if w.base is None else w.base.digest) == base), None
    )
    closed = [w for w in weighed if not w.is_admissible and (taken is None or w.choice.bits < taken.choice.bits)]
    if closed and taken is not None:
        return f"{closed[0].choice.codec} would be smaller, and reading it would cost more than {MAX_COST:.2f} passes"
    if taken is not None and taken == next(w for w in weighed if w.is_admissible):
        others = [w for w in weighed if w.is_admissible and w.choice.codec != codec]
        if not others:
            return "the only way open"
        return f"smallest: {taken.choice.bits:.2f} bits a word, {others[0].choice.codec} {others[0].choice.bits:.2f}"
    if taken is None:
        return "coded against another base, or in a way that is no longer thought of first"
    return "smaller than its estimate: all ways are tried on small tensors"
