"""Tensors of open files under the ids that merging asks for, as they are or widened to float64."""

from __future__ import annotations

from blake3 import blake3

from modelgit.errors import IntegrityError, UsageError
from modelgit.merging.direct.checkpoint import Located
from modelgit.numerics.floats import has_float_values, to_float64
from modelgit.objects import BlobId, CodedTensor, GramEntry, LeafHasher, TensorId, TensorSpec, tensor_id, triangle_side
from modelgit.patching.base import windows

__all__ = ["CheckpointReads", "OpenDiagonals", "same_bytes"]

_STEP_BYTES = 4 << 20
_WIDE_BYTES = 8
_GRAM = ".gram"


class CheckpointReads:
    """A TensorReads over files; nothing is held but what is asked for.

    An id is that of the content where `add` was told to hash it, and of the place otherwise: hashing reads the tensor.
    """

    def __init__(self) -> None:
        self._found: dict[TensorId, tuple[Located, bool]] = {}

    def add(self, tensor: Located, *, wide: bool = False, hashed: bool = False) -> TensorId:
        """The id under which `tensor` can be read; with `wide`, as float64.

        Raises UsageError for values that are no numbers of their own (packed bits, complex numbers) and must be wide.
        """
        dtype = tensor.spec.dtype
        if wide and (not has_float_values(dtype) or dtype == "C64"):
            raise UsageError(f"{tensor.file.shown} has {dtype} values, which cannot be converted")
        found = _content_id(tensor) if hashed else None
        if found is None or wide:
            place = f"{tensor.file.path}\0{tensor.offset}\0{tensor.spec.size_bytes}" if found is None else found.hex
            found = TensorId(blake3(f"{place}\0{wide}".encode("utf-8", "surrogateescape")).digest())
        self._found[found] = (tensor, wide)
        return found

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> bytearray:
        """Raw bytes `start` to `stop`, of float64 values where the tensor was added as wide."""
        found, wide = self._of(tensor)
        if not wide:
            out = bytearray(stop - start)
            found.file.read_into(found.offset + start, memoryview(out))
            return out
        unit = found.spec.kind.bits // 8
        raw = found.read(start // _WIDE_BYTES * unit, stop // _WIDE_BYTES * unit)
        return bytearray(to_float64(raw, found.spec.dtype).data.cast("B"))

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        """The same into a buffer of the caller's."""
        out[:] = self.read(tensor, start, start + out.nbytes)

    def grain(self, tensor: TensorId | BlobId) -> int:  # noqa: ARG002  (any range of a file can be read)
        """Any range can be read by itself."""
        return 1

    def size(self, tensor: TensorId | BlobId) -> int | None:
        """Raw length in bytes."""
        found, wide = self._of(tensor)
        return found.spec.elements * _WIDE_BYTES if wide else found.spec.size_bytes

    def _of(self, tensor: TensorId | BlobId) -> tuple[Located, bool]:
        if not isinstance(tensor, TensorId) or tensor not in self._found:
            raise IntegrityError(f"{tensor} is in no open file")
        return self._found[tensor]


class OpenDiagonals:
    """The statistics of one side in an open safetensors file, float32: Fisher diagonals by the names of the tensors.

    `NAME.gram` is the upper triangle, row by row, of the mean of x x^T over the inputs x that meet NAME's last axis.
    Raises UsageError for what is neither.
    """

    def __init__(self, reads: CheckpointReads, tensors: dict[str, Located], *, shown: str) -> None:
        self._coded: dict[str, CodedTensor] = {}
        self._grams: dict[str, GramEntry] = {}
        for name, tensor in tensors.items():
            if tensor.spec.dtype != "F32":
                raise UsageError(f"{shown} holds {name} as {tensor.spec.dtype}; statistics are float32")
            layer = name.removesuffix(_GRAM)
            if layer != name:
                size = triangle_side(tensor.spec.elements) if len(tensor.spec.shape) == 1 else 0
                if not size:
                    raise UsageError(f"{shown} holds {name}, which is not the upper triangle of a matrix, in one row")
                self._grams[layer] = GramEntry(name=layer, id=reads.add(tensor), size=size)
                continue
            self._coded[name] = CodedTensor(reads.add(tensor), tensor.spec.shape, None)

    def coded(self) -> dict[str, CodedTensor]:
        """Where the values of each tensor are."""
        return self._coded

    def coded_grams(self) -> dict[str, GramEntry]:
        """Where the Gram matrix of what goes into each linear layer is."""
        return self._grams


def _content_id(tensor: Located) -> TensorId:
    """The id that the tensor has in every repository, from its bytes."""
    hasher = LeafHasher()
    for start, stop in windows(tensor.spec.size_bytes, step_bytes=_STEP_BYTES):
        hasher.update(tensor.read(start, stop))
    spec = TensorSpec(dtype=tensor.spec.dtype, shape=tensor.spec.shape)
    return tensor_id(spec, hasher.finish())


def same_bytes(tensors: list[Located]) -> bool:
    """Whether tensors of one spec hold the same bytes; reads no further than the first difference."""
    first, *others = tensors
    if any(other.spec != first.spec for other in others):
        return False
    for start, stop in windows(first.spec.size_bytes, step_bytes=1 << 20):
        data = first.read(start, stop)
        if any(other.read(start, stop) != data for other in others):
            return False
    return True
