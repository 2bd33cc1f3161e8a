"""numpy's `.npy` files: a header that is a Python literal, then the elements as they are.

The format is that of https://numpy.org/neps/nep-0001-npy-format.html, versions 1 to 3.  The header is read by one
expression in the only form that numpy writes; arrays of Python objects (pickles) are followed, never unpickled.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple, NoReturn

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile, ScannedTensor
from modelgit.formats.lookalikes import refuse_pointer
from modelgit.formats.opaque import record_whole
from modelgit.formats.pickle_walker import PickleWindow, Walker, opaque_hint
from modelgit.formats.torch_globals import is_allowed
from modelgit.formats.torch_pickle import Table, lay_out
from modelgit.objects import STORAGE_SUFFIX, TensorSpec, TensorView

__all__ = ["NPY", "NPY_MAGIC", "Array", "NpyFormat", "array_table", "read_array"]

NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 64 << 10
_MAX_DIMENSIONS = 64
_HEADER = re.compile(
    rb"\{'descr': (?:'(?P<descr>[^'\\\x00-\x1f\x7f-\xff]{1,40})'|(?P<structured>\[[^\n]{0,60000}\])),"
    rb" 'fortran_order': (?P<fortran>True|False),"
    rb" 'shape': \((?P<shape>(?:[0-9]{1,19}L?(?:, ?[0-9]{1,19}L?){0,63},?)?)\),? ?\}[ \n]{0,60000}"
)
_DTYPES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<f2": "F16", "<u4": "U32", "<i4": "I32",
    "<f4": "F32", "<u8": "U64", "<i8": "I64", "<f8": "F64", "<c8": "C64",
}  # fmt: skip


class Array(NamedTuple):
    """An array in a file: where its elements begin, and its tensor.

    `spec` is None for elements that have no name here (text, records, numbers in big-endian order); `why` says so.
    `is_fortran` says that the first dimension is the contiguous one; `spec` has the shape that people see.
    """

    start: int
    spec: TensorSpec | None
    is_fortran: bool
    why: str


def _refuse(shown: str, reason: str) -> NoReturn:
    raise CheckpointFormatError(f"{shown} is not a well-formed numpy array: {reason}", hint=opaque_hint(shown))


def read_array(file: ReadAt, start: int, size: int, shown: str) -> Array:
    """The header of the array that is `size` bytes of `file` from `start` on; messages call it `shown`.

    Raises CheckpointFormatError for a header that numpy would not write, sizes that lie, and an array of objects whose
    pickle holds a foreign global.
    """
    head = file.read(start, min(size, 256))
    if head[:6] != NPY_MAGIC or len(head) < 10 or not 1 <= head[6] <= 3 or head[7]:
        _refuse(shown, "it does not begin as one")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    begin = 8 + width
    if length > MAX_HEADER_BYTES or begin + length > size:
        _refuse(shown, f"its header is {length} bytes long")
    if begin + length > len(head):
        head = file.read(start, begin + length)
    match = _HEADER.fullmatch(head, begin, begin + length)
    if match is None:
        _refuse(shown, "its header is not one that numpy writes")
    shape = tuple(int(part.rstrip(b"L")) for part in match["shape"].replace(b",", b" ").split())
    data = size - begin - length
    if match["descr"] is None:
        return Array(start + begin + length, None, False, "it holds records")
    descr = match["descr"].decode("ascii")
    if descr in ("|O", "O"):
        window = PickleWindow(file, start + begin + length, start + size)
        Walker(window, is_allowed).walk()
        return Array(start + begin + length, None, False, "it holds Python objects")
    dtype = _DTYPES.get(descr)
    if dtype is None:
        big = descr.startswith(">") and "<" + descr[1:] in _DTYPES
        why = "its numbers are big-endian" if big else f"its elements are of the type {descr}"
        return Array(start + begin + length, None, False, why)
    spec = TensorSpec(dtype=dtype, shape=shape)
    spec.check()
    if spec.size_bytes != data:
        _refuse(shown, f"its header promises {spec.size_bytes} bytes of elements, it holds {data}")
    is_fortran = match["fortran"] == b"True" and sum(extent > 1 for extent in shape) > 1 and 0 not in shape
    return Array(start + begin + length, spec, is_fortran, "")


def array_table(arrays: list[tuple[str, Array]]) -> Table:
    """The tensors of named arrays, all of which have a spec.

    An array in Fortran order is stored with its dimensions reversed, as `NAME (storage)`, under a transposed view.
    """
    tensors: list[ScannedTensor] = []
    views: list[TensorView] = []
    names = {name for name, _ in arrays}
    for number, (name, array) in enumerate(arrays):
        spec = array.spec or TensorSpec(dtype="U8")
        if not array.is_fortran:
            tensors.append(ScannedTensor(name, spec))
            continue
        stored = f"{name}{STORAGE_SUFFIX}"
        while stored in names:
            stored += "'"
        names.add(stored)
        tensors.append(ScannedTensor(stored, TensorSpec(dtype=spec.dtype, shape=tuple(reversed(spec.shape)))))
        strides = tuple(math.prod(spec.shape[:axis]) for axis in range(len(spec.shape)))
        views.append(TensorView(name=name, tensor=number, spec=spec, strides=strides))
    return Table(tuple(tensors), tuple(views))


class NpyFormat:
    """A literal range for the header, and one tensor, called after the file."""

    name = "npy"

    def detect(self, head: bytes, name: str) -> bool:
        """By the magic number, or by name."""
        return head.startswith(NPY_MAGIC) or name.lower().endswith(".npy")

    def scan(self, file: ReadAt) -> ScannedFile:
        """Read the header; the elements themselves are not read.

        Raises CheckpointFormatError for a file that is truncated or malformed, and for pickles with a foreign global.
        """
        refuse_pointer(file.read(0, min(file.size, 256)), file.size, file.shown)
        array = read_array(file, 0, file.size, file.shown)
        if array.spec is None:
            return record_whole(file, array.why)
        name = file.path.stem if file.path.stem.isprintable() else "array"
        table = array_table([(name or "array", array)])
        return lay_out(self.name, file.size, table, [(array.start, array.spec.size_bytes)])


NPY = NpyFormat()
