"""The tensors that a torch pickle describes: which storage, where in it, of which shape, under which name.

What `torch.save` writes is specified by `torch._utils` and `torch.serialization`: a tensor is a call of a rebuild
function with a storage, an offset, a shape and strides (in elements); a storage is a persistent id
`("storage", class, key, device, number of elements)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile, ScannedRange, ScannedTensor
from modelgit.formats.cursor import quoted
from modelgit.formats.pickle_walker import Call, Global, Mapping, Persistent, opaque_hint
from modelgit.formats.torch_globals import DTYPE_NAMES, REBUILD, STORAGE_DTYPES
from modelgit.objects import STORAGE_SUFFIX, TensorSpec, TensorView, check_view, dtype_named, row_major

__all__ = ["Logical", "Storage", "Table", "lay_out", "name_storages", "read_storages", "read_tensors"]

MAX_NAME_CHARACTERS = 4096
_MAX_DEPTH = 32
_MAX_VISITS = 1_000_000
_MAX_DIMENSIONS = 64


class Storage(NamedTuple):
    """A storage: its key, its size in bytes, the dtype of its class ("" when it has none here), bytes per element."""

    key: str
    size: int
    dtype: str
    width: int


class Logical(NamedTuple):
    """A tensor as the pickle describes it; offset in bytes, strides in elements."""

    name: str
    key: str
    spec: TensorSpec
    offset: int
    strides: tuple[int, ...]


class Table(NamedTuple):
    """One stored tensor per storage, in the order in which the storages were asked for, and views over them."""

    tensors: tuple[ScannedTensor, ...]
    views: tuple[TensorView, ...]


class _Damaged(Exception):
    """A description that cannot be; becomes a CheckpointFormatError that names the file and the tensor."""


def _refuse(shown: str, reason: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{shown} describes impossible tensors: {reason}", hint=opaque_hint(shown))


def read_storages(references: Sequence[Persistent], shown: str) -> dict[str, Storage]:
    """The storages that the persistent ids name, by key, in order of first mention.

    Raises CheckpointFormatError for ids of another form, and for two ids that differ about one key.
    """
    found: dict[str, Storage] = {}
    for reference in references:
        storage = _storage(reference)
        if storage is None:
            raise _refuse(shown, f"at byte {reference.offset} a reference that is not to a storage")
        before = found.setdefault(storage.key, storage)
        if before.size != storage.size:
            raise _refuse(shown, f"storage {quoted(storage.key)} is of {before.size} and of {storage.size} bytes")
        if before.dtype != storage.dtype:
            found[storage.key] = before._replace(dtype="U8")
    return found


def _storage(reference: Persistent) -> Storage | None:
    parts = reference.value
    # The old layout has a sixth part, for views of storages, which nothing newer than 2017 uses.
    if not isinstance(parts, tuple) or not 5 <= len(parts) <= 6 or (len(parts) == 6 and parts[5] is not None):
        return None
    kind, cls, key, _, count = parts[:5]
    if not (isinstance(kind, str) and kind == "storage" and isinstance(cls, Global) and isinstance(key, str)):
        return None
    name = cls.name.lstrip("_")
    if name not in STORAGE_DTYPES or not _is_count(count):
        return None
    dtype, width = STORAGE_DTYPES[name]
    return Storage(key, count * width, dtype, width)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _counts(value: object) -> tuple[int, ...]:
    if isinstance(value, Call) and value.callee.name == "Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_DIMENSIONS:
        raise _Damaged("a shape or stride that is no tuple of numbers")
    if not all(_is_count(item) for item in value):
        raise _Damaged("a shape or stride with an impossible number")
    return tuple(value)


def _tensor(name: str, call: Call) -> Logical | None:
    """The tensor that `call` makes; None for one that has no dtype here, or is made in another way."""
    for _ in range(4):  # a parameter around a subclass around a tensor
        kind = REBUILD.get(call.callee.name)
        arguments = call.arguments
        if kind == "parameter" and arguments and isinstance(arguments[0], Call):
            call = arguments[0]
        elif kind == "subclass" and len(arguments) >= 3 and isinstance(arguments[2], tuple):
            inner = arguments[0]
            if not isinstance(inner, Global):
                return None
            call = Call(inner, arguments[2])
        else:
            break
    if kind not in ("tensor", "typed"):
        return None
    if len(arguments) < (7 if kind == "typed" else 4):
        raise _Damaged("too little is said about it")
    reference, start, shape, stride = arguments[:4]
    if not isinstance(reference, Persistent):
        raise _Damaged("it has no storage")
    storage = _storage(reference)
    if storage is None:
        raise _Damaged("it has no storage")
    dtype = storage.dtype
    if kind == "typed":
        given = arguments[6]
        dtype = DTYPE_NAMES.get(given.name, "") if isinstance(given, Global) and given.module == "torch" else ""
    extents, strides = _counts(shape), _counts(stride)
    if len(extents) != len(strides):
        raise _Damaged(f"{len(extents)} dimensions and {len(strides)} strides")
    if not _is_count(start):
        raise _Damaged("it begins nowhere")
    if not dtype:
        return None
    width = dtype_named(dtype).bits // 8
    spec = TensorSpec(dtype=dtype, shape=extents)
    spec.check()
    wanted = row_major(extents)
    # Strides of extents 0 and 1 mean nothing; whatever they are, the elements lie in the same places.
    if (
        all(have == want or extent <= 1 for have, want, extent in zip(strides, wanted, extents, strict=True))
        or 0 in extents
    ):
        strides = ()
    else:
        strides = tuple(
            want if extent == 1 else have for have, want, extent in zip(strides, wanted, extents, strict=True)
        )
    return Logical(name, storage.key, spec, _int(start) * width, strides)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _steps(value: object, shown: str) -> Iterator[tuple[object, object]]:
    """The named parts of a container, with their keys."""
    if isinstance(value, Mapping):
        seen: set[str] = set()
        for key, inner in value.pairs:
            if isinstance(key, str):
                if key in seen:
                    raise _refuse(shown, f"the key {quoted(key)} comes twice in one dictionary")
                seen.add(key)
            yield key, inner
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, Call):
        if REBUILD.get(value.callee.name, "other") == "other":
            yield from enumerate(value.arguments)
        if value.items:
            yield from enumerate(value.items)
        if value.state is not None:
            # The attributes of an object, without a word for "attributes".
            if isinstance(value.state, Mapping):
                yield from value.state.pairs
            else:
                yield "state", value.state


def _label(key: object) -> str | None:
    if isinstance(key, str):
        return key
    if type(key) is int and abs(key) < 1 << 63:
        return str(key)
    return None


def read_tensors(root: object, shown: str) -> list[Logical]:
    """Every tensor that can be reached by name from `root`, in order; names of nested dictionaries are joined by dots.

    Raises CheckpointFormatError for tensors that cannot be, and for a dictionary in which a key comes twice.
    """
    found: list[Logical] = []
    taken: dict[str, int] = {}
    visits = 0
    pending: list[Iterator[tuple[str, object]]] = [iter([("", root)])]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            continue
        name, value = step
        visits += 1
        if visits > _MAX_VISITS:
            raise _refuse(shown, "its containers hold each other again and again")
        if isinstance(value, Call) and value.callee.name in REBUILD:
            try:
                logical = _tensor(name or "tensor", value)
            except (_Damaged, CheckpointFormatError) as error:
                raise _refuse(shown, f"tensor {quoted(name)}: {error}") from None
            if logical is not None:
                found.append(logical._replace(name=_free(logical.name, taken, shown)))
        if isinstance(value, (Mapping, list, tuple, Call)) and len(pending) < _MAX_DEPTH:
            pending.append(_named(name, value, shown))
    return found


def _named(prefix: str, value: object, shown: str) -> Iterator[tuple[str, object]]:
    for key, inner in _steps(value, shown):
        if not isinstance(inner, (Mapping, list, tuple, Call)):
            continue
        label = _label(key)
        if label is not None and len(prefix) <= MAX_NAME_CHARACTERS:
            yield f"{prefix}.{label}" if prefix else label, inner


def _free(name: str, taken: dict[str, int], shown: str) -> str:
    """`name`, made different from those before it: `{"a.b": x, "a": {"b": y}}` has two that read alike."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise _refuse(shown, f"a tensor name of {len(name)} characters")
    if not name.isprintable():
        raise _refuse(shown, f"control characters in the tensor name {quoted(name)}")
    while name in taken:
        taken[name] += 1
        name = f"{name} ({taken[name]})"
    taken[name] = 1
    return name


def name_storages(storages: Sequence[Storage], logical: Sequence[Logical], shown: str) -> Table:
    """One stored tensor per storage, and a view for every name that is not exactly one of them.

    A storage that is the bytes of a whole tensor, in order, becomes that tensor: it has the dtype and shape, and
    thereby the id, that the same tensor has in a safetensors file.  Any other storage becomes a one-dimensional tensor
    `NAME (storage)`, after the first tensor over it (or its key).
    Raises CheckpointFormatError for a tensor that reaches beyond its storage.
    """
    over: dict[str, list[Logical]] = {storage.key: [] for storage in storages}
    for item in logical:
        over[item.key].append(item)
    tensors: list[ScannedTensor] = []
    views: list[TensorView] = []
    names = {item.name for item in logical}
    for number, storage in enumerate(storages):
        items = over[storage.key]
        whole = next(
            (item for item in items if not item.offset and not item.strides and item.spec.size_bytes == storage.size),
            None,
        )
        if whole is not None:
            stored = ScannedTensor(whole.name, whole.spec)
        else:
            dtype = items[0].spec.dtype if items else storage.dtype or "U8"
            width = dtype_named(dtype).bits // 8
            if storage.size % width:
                dtype, width = "U8", 1
            name = f"{items[0].name if items else storage.key}{STORAGE_SUFFIX}"
            while name in names:
                name += "'"
            names.add(name)
            if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS + 20:
                raise _refuse(shown, f"the storage key {quoted(storage.key)}")
            stored = ScannedTensor(name, TensorSpec(dtype=dtype, shape=(storage.size // width,)))
        tensors.append(stored)
        for item in items:
            if item is whole:
                continue
            spec = None if item.spec == stored.spec else item.spec
            view = TensorView(name=item.name, tensor=number, spec=spec, offset=item.offset, strides=item.strides)
            try:
                check_view(view, stored.spec)
            except CheckpointFormatError as error:
                raise _refuse(shown, error.message) from None
            views.append(view)
    return Table(tuple(tensors), tuple(views))


def lay_out(name: str, size: int, table: Table, places: Sequence[tuple[int, int]]) -> ScannedFile:
    """The scan of a file of `size` bytes whose stored tensor number i lies at `places[i]` (start, length).

    Tensors are numbered in the order of the file; `places` must not overlap.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    ranges: list[ScannedRange] = []
    position = 0
    for number, index in enumerate(order):
        start, length = places[index]
        if start > position:
            ranges.append(ScannedRange(position, start - position, None))
        ranges.append(ScannedRange(start, length, number))
        position = start + length
    if position < size:
        ranges.append(ScannedRange(position, size - position, None))
    new = {index: number for number, index in enumerate(order)}
    views = sorted(table.views, key=lambda view: new[view.tensor])
    return ScannedFile(
        name,
        size,
        tuple(ranges),
        tuple(table.tensors[index] for index in order),
        tuple(msgspec.structs.replace(view, tensor=new[view.tensor]) for view in views),
    )
