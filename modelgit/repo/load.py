"""Tensors of a revision by name, read when they are asked for, whole or by rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.objects import STORAGE_SUFFIX, Manifest, ModelEntry, TensorEntry, TensorSpec, TensorView, numpy_code
from modelgit.parallel import Workers
from modelgit.patching.base import WINDOW_BYTES
from modelgit.repo.contents import find_model, tensors_of, views_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from modelgit.patching.base import TensorReads
    from modelgit.patching.materialise import TensorReader
    from modelgit.repo.repository import Repository
    from modelgit.store.base import ObjectStore

__all__ = ["LazyTensor", "ModelState", "load", "model_state"]

_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "I64": "int64",
    "U64": "uint64", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_WORD_BYTES = 8  # the longest word of a codec: reads begin and end on such borders

Key = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


class LazyTensor:
    """One stored tensor, or rows of one; nothing is read before it is asked for, and then nothing else.

    Indexing along the first dimension, as in numpy (`t[3]`, `t[10:20]`, `t[::-2]`, `t[0, 1]`), gives another lazy
    tensor.  Arrays are filled in place: memory is the result and a few MiB.
    """

    def __init__(
        self,
        name: str,
        entry: TensorEntry,
        reader: TensorReads,
        *,
        verify: Callable[[], TensorReads],
        threads: int = 1,
        spec: TensorSpec | None = None,
        offset: int = 0,
        rows: range | None = None,
    ) -> None:
        self.name = name
        self.entry = entry
        self.spec = entry.spec if spec is None else spec
        """Dtype and shape of what this gives."""
        self._reader = reader
        self._verify = verify
        self._threads = threads
        self._offset = offset
        self._rows = range(self.spec.shape[0]) if rows is None and self.spec.shape else rows

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, `()` for a scalar."""
        return self.spec.shape

    @property
    def dtype(self) -> str:
        """The dtype by its name in safetensors, as in `spec`."""
        return self.spec.dtype

    @property
    def size_bytes(self) -> int:
        """Raw bytes of what this gives."""
        return self.spec.size_bytes

    def __len__(self) -> int:
        if self._rows is None:
            raise TypeError(f"{self.name} is a scalar")
        return len(self._rows)

    def __getitem__(self, key: Key) -> LazyTensor:
        if key is Ellipsis or key == ():
            return self
        if isinstance(key, tuple):
            first, rest = key[0], key[1:]
            if rest and not isinstance(first, int):
                raise UsageError(f"{self.name}: only the first dimension is read in parts", hint="slice its `.numpy()`")
            return self[first][rest]
        rows, width = self._rows, self._row_bytes()
        if rows is None or width is None:
            what = "is a scalar" if rows is None else f"has rows of {self.spec.dtype} that are no whole bytes"
            raise UsageError(f"{self.name} {what}", hint="`.raw(start, stop)` gives its bytes")
        if isinstance(key, slice):
            chosen = rows[key]
            return self._part((len(chosen), *self.shape[1:]), self._offset, chosen)
        index = operator.index(key)
        if not -len(rows) <= index < len(rows):
            raise IndexError(f"{self.name} has {len(rows)} rows, row {index} is asked for")
        return self._part(self.shape[1:], self._offset + rows[index] * width, None)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows `start` to `stop` (exclusive) of the first dimension; raises UsageError when they are not all there."""
        count = self.shape[0] if self.shape else 0
        if not 0 <= start <= stop <= count:
            shown = f"row {start} is" if stop == start + 1 else f"rows {start}:{stop} are"
            raise UsageError(
                f"{self.name} has {count} rows, and {shown} asked for",
                hint="they are counted from 0; negative ones count from the end",
            )
        return self[start:stop]

    def verified(self) -> LazyTensor:
        """The same, checked against the tensor's id when it is read: by leaves of 4 MiB, not only by checksums."""
        return self._part(self.shape, self._offset, self._rows, reader=self._verify())

    # -- reading

    def raw(self, start: int = 0, stop: int | None = None) -> bytearray:
        """Raw little-endian bytes `start` to `stop`, by default all.  Raises UsageError for a range that is not there.

        Every dtype can be read so, packed sub-byte types and the blocks of GGUF as they are stored.
        """
        end = self.size_bytes if stop is None else stop
        if not 0 <= start <= end <= self.size_bytes:
            raise UsageError(f"{self.name} has {self.size_bytes} bytes, {start} to {end} are asked for")
        out = bytearray(end - start)
        self._fill(memoryview(out), start)
        return out

    def chunks(self) -> Iterator[bytearray]:
        """The raw bytes in order, at most 8 MiB (or one row, where rows are skipped) at a time, on word borders."""
        for start, stop in self._windows(0, self.size_bytes):
            yield self._read(start, stop)

    def numpy(self) -> NDArray[np.generic]:
        """A new array of the tensor's own dtype; those that numpy lacks (BF16, 8-bit floats) are those of `ml_dtypes`.

        Raises UsageError for packed sub-byte types and blocks, which have no element of their own.
        """
        import numpy as np

        out = np.empty(self.shape, self._numpy_dtype())
        self._fill(out.reshape(-1).view(np.uint8).data, 0)
        return out

    def float32(self) -> NDArray[np.float32]:
        """A new float32 array: floats of at most 32 bits exactly, F64 and wide integers rounded.

        Raises UsageError for complex numbers, packed sub-byte types and blocks.
        """
        import numpy as np

        from modelgit.numerics.floats import has_float_values, to_float32

        if self.spec.dtype == "C64" or not has_float_values(self.spec.dtype):
            raise self._no_such("float32 values")
        out = np.empty(self.spec.elements, np.float32)
        done = 0
        for chunk in self.chunks():
            values = to_float32(chunk, self.spec.dtype)
            out[done : done + values.size] = values
            done += values.size
        return out.reshape(self.shape)

    def torch(self) -> torch.Tensor:
        """A new tensor of the same dtype.  Raises UsageError when this torch has no such type."""
        import torch

        name = _TORCH.get(self.spec.dtype)
        if name is None:
            raise self._no_such("elements for torch")
        kind: Any = getattr(torch, name, None)
        if kind is None:
            raise UsageError(f"torch {torch.__version__} has no dtype for {self.spec.dtype} ({self.name})")
        out = torch.empty(self.shape, dtype=kind)
        if self.size_bytes:
            self._fill(out.reshape(-1).view(torch.uint8).numpy().data, 0)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.name} is not in memory: it cannot be had without a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"LazyTensor({self.name}, {self.spec.dtype} {list(self.shape)})"

    # -- within

    def _part(
        self, shape: tuple[int, ...], offset: int, rows: range | None, *, reader: TensorReads | None = None
    ) -> LazyTensor:
        return LazyTensor(
            self.name,
            self.entry,
            reader or self._reader,
            verify=self._verify,
            threads=self._threads,
            spec=TensorSpec(dtype=self.spec.dtype, shape=shape),
            offset=offset,
            rows=rows,
        )

    def _row_bytes(self) -> int | None:
        """Bytes of one row; None where rows are no whole bytes or blocks."""
        try:
            return self.spec.kind.size_of(self.shape[1:])
        except CheckpointFormatError:
            return None

    def _numpy_dtype(self) -> np.dtype[Any]:
        import numpy as np

        code = numpy_code(self.spec.dtype)
        if code is not None:
            return np.dtype(code)
        name = _ML_DTYPES.get(self.spec.dtype)
        if name is None:
            raise self._no_such("elements for numpy")
        import ml_dtypes

        kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return kind

    def _no_such(self, what: str) -> UsageError:
        kind = self.spec.kind
        why = "blocks, which are not taken apart" if kind.is_block else "elements"
        if kind.bits % 8:
            why = f"elements of {kind.bits} bits, packed"
        return UsageError(
            f"{self.name} has no {what}: it holds {self.spec.dtype} {why}", hint="`.raw()` gives its bytes"
        )

    def _is_dense(self) -> bool:
        return self._rows is None or self._rows.step == 1 or len(self._rows) <= 1

    def _first_byte(self) -> int:
        first = self._rows.start if self._rows else 0
        return self._offset + (first * (self._row_bytes() or 0))

    def _windows(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of this tensor's bytes, cut where windows of the stored tensor end: no unit twice."""
        if self._is_dense():
            first = self._first_byte()
            while start < stop:
                end = min(stop, (first + start) // WINDOW_BYTES * WINDOW_BYTES + WINDOW_BYTES - first)
                yield start, end
                start = end
            return
        width = self._row_bytes() or 1
        step = abs(self._rows.step) if self._rows is not None else 1
        size = max(1, WINDOW_BYTES // (width * step)) * width
        for begin in range(start, stop, size):
            yield begin, min(begin + size, stop)

    def _read(self, start: int, stop: int) -> bytearray:
        """Bytes of this tensor that lie in one window."""
        if self._is_dense():
            first = self._first_byte()
            return self._stored(first + start, first + stop)
        import numpy as np

        width = self._row_bytes() or 1
        rows = self._rows or range(0)
        picked = rows[start // width : -(-stop // width)]
        low, high = min(picked), max(picked) + 1
        data = self._stored(self._offset + low * width, self._offset + high * width)
        table = np.frombuffer(data, np.uint8).reshape(high - low, width)
        gathered = bytearray(table[[row - low for row in picked]].data)
        skipped = start // width * width
        return gathered[start - skipped : stop - skipped]

    def _stored(self, start: int, stop: int) -> bytearray:
        size = self.entry.spec.size_bytes
        low, high = start // _WORD_BYTES * _WORD_BYTES, min(-(-stop // _WORD_BYTES) * _WORD_BYTES, size)
        data = self._reader.read(self.entry.id, low, high)
        return data if (low, high) == (start, stop) else data[start - low : stop - low]

    def _fill(self, out: memoryview, begin: int) -> None:
        """Fill `out` with the bytes from `begin` on, several windows at a time."""

        def fill(window: tuple[int, int]) -> None:
            out[window[0] - begin : window[1] - begin] = self._read(*window)

        windows = list(self._windows(begin, begin + out.nbytes))
        threads = min(self._threads, len(windows))
        with Workers(threads, name="mgit-load") as workers:
            for _ in workers.ordered(fill, windows, ahead=2 * threads):
                pass


class ModelState(Mapping[str, LazyTensor]):
    """The tensors of one model of one revision, by logical name.

    `views` are names over (parts of) stored tensors, each with the tensor; what only views show is not listed.
    """

    def __init__(
        self,
        model: str,
        entries: Mapping[str, TensorEntry],
        reader: TensorReader,
        *,
        views: Mapping[str, tuple[TensorEntry, TensorView]] | None = None,
        threads: int = 1,
    ) -> None:
        self.model = model
        self._views = dict(views or {})
        shown = {entry.id for entry, _ in self._views.values()}
        self.entries: dict[str, TensorEntry] = {
            name: entry for name, entry in entries.items() if entry.id not in shown or not name.endswith(STORAGE_SUFFIX)
        }
        for name, (entry, view) in self._views.items():
            self.entries[name] = TensorEntry(name=name, spec=view.spec or entry.spec, id=entry.id)
        self._reader = reader
        self._threads = threads

    @property
    def views(self) -> frozenset[str]:
        """The names that are views of a stored tensor."""
        return frozenset(self._views)

    def __getitem__(self, name: str) -> LazyTensor:
        entry, reader = self.entries[name], self._reader
        if name not in self._views:
            return LazyTensor(
                name, entry, reader, verify=lambda: reader.verifying({entry.id: entry.spec}), threads=self._threads
            )
        from modelgit.patching.views import ViewReader

        stored, view = self._views[name]
        return LazyTensor(
            name,
            entry,
            ViewReader(reader, stored.id, view, stored.spec),
            verify=lambda: ViewReader(reader.verifying({stored.id: stored.spec}), stored.id, view, stored.spec),
            threads=self._threads,
        )

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"ModelState({self.model}, {len(self)} tensors)"

    def arrays(self) -> ArrayState:
        """The same, giving numpy arrays to compute with: what models are built from."""
        return ArrayState(self)


class ArrayState:
    """A `TensorState` over a model's tensors: numpy's own dtypes as they are, BF16 and 8-bit floats as float32."""

    def __init__(self, state: ModelState) -> None:
        self._state = state

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        tensor = self._state[name]
        return tensor.numpy() if numpy_code(tensor.spec.dtype) else tensor.float32()

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def load(repo: Repository, revision: str = "HEAD", *, model: str | None = None) -> ModelState:
    """The tensors of a model of a revision.  Reads metadata only."""
    manifest = repo.manifest_of(repo.resolve(revision))
    return model_state(repo, manifest, find_model(manifest, model))


def model_state(
    repo: Repository, manifest: Manifest, entry: ModelEntry, *, store: ObjectStore | None = None
) -> ModelState:
    """The tensors of one model of a manifest, views included.  Reads metadata only."""
    tensors = tensors_of(repo, manifest, entry, store=store)
    views = views_of(repo, manifest, entry, store=store)
    return ModelState(entry.path, tensors, repo.reader(store), views=views, threads=repo.threads)
