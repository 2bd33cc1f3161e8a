"""What a commit changed, without a word on how it is stored."""

from __future__ import annotations

from typing import Literal as OneOf

from modelgit.objects.canonical import Record
from modelgit.objects.ids import ManifestId, MaskId

__all__ = ["ChangeKind", "FileChange", "Patch", "TensorChange"]

ChangeKind = OneOf["added", "removed", "changed", "respecified"]


class TensorChange(Record, frozen=True, kw_only=True):
    """One tensor of one model.

    `values_changed` counts the elements whose bits differ; None where the two shapes or dtypes cannot be compared.
    """

    model: str
    name: str
    kind: ChangeKind
    elements: int
    values_changed: int | None = None


class FileChange(Record, frozen=True, kw_only=True):
    """One file that holds no tensors, or that appeared or went."""

    path: str
    kind: ChangeKind


class Patch(Record, frozen=True, kw_only=True):
    """The difference between a commit and its first parent.

    `bytes_added` is what the commit's records take: tensors, file contents and manifest; patch, verdicts and commit
    cannot count themselves.

    `exact` is False when the user asked for a lossy commit; `masks` names the FISH masks the patch was made under.
    """

    base: ManifestId | None
    tensors: tuple[TensorChange, ...] = ()
    files: tuple[FileChange, ...] = ()
    masks: tuple[MaskId, ...] = ()
    exact: bool = True
    bytes_added: int = 0
