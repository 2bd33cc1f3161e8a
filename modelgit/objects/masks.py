"""Sets of positions in named tensors: what a FISH run may train, what a sparse patch touches."""

from __future__ import annotations

from modelgit.objects.canonical import Record
from modelgit.objects.ids import BlobId
from modelgit.objects.tensors import TensorSpec

__all__ = ["Mask", "MaskRegion"]


class MaskRegion(Record, frozen=True, kw_only=True):
    """The positions of one tensor.

    Ascending element indices are coded as a section (`numerics.sections`): bytes `offset` to `offset + length` of the
    blob `positions`, which all tensors of a mask share.  A `length` of 0 is that of masks made before there were
    sections: the blob is this tensor's alone, coded by `numerics.sparse`.  Without `positions` every element is meant
    (a head that trains whole).
    """

    name: str
    spec: TensorSpec
    count: int
    positions: BlobId | None = None
    offset: int = 0
    length: int = 0


class Mask(Record, frozen=True, kw_only=True):
    """Positions by tensor of the model at `model`, and where they came from (a line for people).

    `total` counts the values of the whole model, of which the positions are a share; 0 where that is not known.
    """

    model: str
    regions: tuple[MaskRegion, ...]
    origin: str
    total: int = 0

    @property
    def count(self) -> int:
        """Number of positions in all regions."""
        return sum(region.count for region in self.regions)

    @property
    def elements(self) -> int:
        """Number of elements of all tensors that the mask names."""
        return sum(region.spec.elements for region in self.regions)
