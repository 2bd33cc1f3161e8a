"""Small objects: canonical records, compressed, checked against their id on every read.

Payload: one byte that says how, then the data.  0 raw, 1 a zstd frame, 2 a zstd frame with the base object's bytes as
its dictionary (a manifest against the parent's costs what changed).
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import zstandard

from modelgit.errors import IntegrityError
from modelgit.objects import ObjectId, decode, encode
from modelgit.store.base import Located, ObjectStore, WriteStore
from modelgit.store.fs import PackGoneError

__all__ = ["MAX_METADATA_BYTES", "read_metadata", "read_record", "write_metadata", "write_record"]

MAX_METADATA_BYTES = 1 << 30
MAX_CHAIN = 64  # links that a reader follows
MAX_WRITTEN_CHAIN = 16  # links that a writer makes; every read of the last version decompresses all of them
_RAW, _ZSTD, _ZSTD_BASE = 0, 1, 2
_LEVEL_SUFFICES_BYTES = 256 << 10
_MAX_WINDOW_LOG = 30
_MAX_TABLE_LOG = 24  # two tables of 64 MiB

R = TypeVar("R", bound=msgspec.Struct)
I = TypeVar("I", bound=ObjectId)  # noqa: E741  (I for id)


def write_metadata(
    writer: WriteStore, object_id: ObjectId, data: bytes, *, base: tuple[ObjectId, bytes] | None = None
) -> None:
    """Append `data` under `object_id`, compressed against `base` (id of the same kind, bytes) if that helps.

    A version whose base is at the end of a long chain is written whole: the next ones are coded against it.
    """
    choices = [(len(data), _RAW, data)]
    if len(data) > 64:
        frame = zstandard.ZstdCompressor(level=6).compress(data)
        choices.append((len(frame), _ZSTD, frame))
        if base is not None and _chain_length(writer, base[0]) < MAX_WRITTEN_CHAIN:
            frame = _against(base[1], data)
            choices.append((len(frame) + 32, _ZSTD_BASE, frame))
    _, how, body = min(choices, key=lambda choice: choice[0])
    writer.append(
        object_id,
        start=0,
        stop=len(data),
        total=len(data),
        header=b"",
        payload=(bytes([how]), body),
        base=base[0] if how == _ZSTD_BASE and base is not None else None,
    )


def _against(base: bytes, data: bytes) -> bytes:
    """A zstd frame of `data` with `base` as its dictionary.

    The levels' own tables are too small for tables of tens of thousands of tensors: of a dictionary that is larger than
    eight times a table only the end is looked at, and what lies further back than the window is forgotten.
    """
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    size = max(len(base), len(data))
    if size <= _LEVEL_SUFFICES_BYTES:
        return zstandard.ZstdCompressor(level=6, dict_data=dictionary).compress(data)
    log = size.bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3,
        source_size=len(data),
        window_log=min(log, _MAX_WINDOW_LOG),
        hash_log=min(log - 2, _MAX_TABLE_LOG),
        chain_log=min(log - 2, _MAX_TABLE_LOG),
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(data)


def _cost(located: Located) -> tuple[bool, int]:
    return located.base is not None, located.length


def _chain_length(store: ObjectStore, object_id: ObjectId) -> int:
    """How many bases lie below the record that a read takes first; the most that is allowed where one is missing."""
    current = object_id
    for length in range(MAX_WRITTEN_CHAIN):
        found = store.locate(current)
        if not found:
            break
        base = min(found, key=_cost).base
        if base is None:
            return length
        current = type(object_id)(base)
    return MAX_WRITTEN_CHAIN


def read_metadata(store: ObjectStore, object_id: ObjectId, *, depth: int = 0) -> bytes:
    """The bytes of a small object, checked against its id.

    Raises IntegrityError when it is missing or damaged, or coded against a chain that is too deep.
    """
    try:
        return _read_any(store, object_id, depth)
    except PackGoneError:  # garbage collection moved it meanwhile: look again, once
        return _read_any(store, object_id, depth)


def _read_any(store: ObjectStore, object_id: ObjectId, depth: int) -> bytes:
    found = store.locate(object_id)
    if not found:
        raise IntegrityError(
            f"{object_id.KIND} {object_id} is missing from the store",
            hint="`mgit fsck` shows what is affected, `mgit fetch --repair` gets it from a remote",
        )
    if depth > MAX_CHAIN:
        raise IntegrityError(f"{object_id.KIND} {object_id} has a chain deeper than {MAX_CHAIN}")
    damage: IntegrityError | None = None
    for located in sorted(found, key=_cost):
        try:
            _, payload = store.read(located)
            data = _inflate(store, object_id, payload, located.total, located.base, depth)
        except IntegrityError as error:
            damage = error
            continue
        if type(object_id).of(data) == object_id:
            return data
        damage = IntegrityError(
            f"{object_id.KIND} {object_id} does not match its bytes", hint="`mgit fsck` shows what is affected"
        )
    raise damage or IntegrityError(f"{object_id.KIND} {object_id} cannot be read")


def _inflate(
    store: ObjectStore, object_id: ObjectId, payload: memoryview, total: int, base: bytes | None, depth: int
) -> bytes:
    if not payload or total > MAX_METADATA_BYTES:
        raise IntegrityError(f"{object_id.KIND} {object_id} has an impossible record")
    how, body = payload[0], bytes(payload[1:])
    if how == _RAW:
        return body
    if how not in (_ZSTD, _ZSTD_BASE) or (how == _ZSTD_BASE) != (base is not None):
        raise IntegrityError(f"{object_id.KIND} {object_id} has an unknown coding {how}")
    dictionary = None
    if base is not None:
        content = read_metadata(store, type(object_id)(base), depth=depth + 1)
        dictionary = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        # The frame's own claim is compared first: zstandard allocates what a frame says before it decodes.
        if zstandard.get_frame_parameters(body).content_size != total:
            raise IntegrityError(f"{object_id.KIND} {object_id} inflates past its declared {total} bytes")
        return zstandard.ZstdDecompressor(max_window_size=1 << 30, dict_data=dictionary).decompress(body)
    except (zstandard.ZstdError, MemoryError) as error:
        raise IntegrityError(f"{object_id.KIND} {object_id} does not decompress: {error}") from None


def write_record(writer: WriteStore, kind: type[I], record: msgspec.Struct) -> I:
    """Append a canonical record and return its id."""
    data = encode(record)
    object_id = kind.of(data)
    write_metadata(writer, object_id, data)
    return object_id


def read_record(store: ObjectStore, object_id: ObjectId, kind: type[R]) -> R:
    """Read and validate a record."""
    return decode(kind, read_metadata(store, object_id), what=f"{object_id.KIND} {object_id}")
