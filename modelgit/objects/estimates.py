"""Fisher estimates as records: what merging, masks and diffs may rely on without knowing how they were made."""

from __future__ import annotations

from modelgit.objects.canonical import Record
from modelgit.objects.ids import ManifestId
from modelgit.objects.tensors import TensorEntry

__all__ = ["FisherEstimate"]


class FisherEstimate(Record, frozen=True, kw_only=True):
    """The diagonal of a Fisher information matrix.

    `of` is the manifest whose weights it was taken at; `model` and `task` say of which function; `data` is the
    fingerprint of the inputs; `diagonal` holds one float32 tensor of squared units 1/weight^2 (nats) per parameter,
    averaged over `examples`.
    """

    of: ManifestId
    model: str
    task: str
    estimator: str
    data: str
    examples: int
    seed: int
    diagonal: tuple[TensorEntry, ...]
