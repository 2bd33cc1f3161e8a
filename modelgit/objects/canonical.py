"""Canonical bytes of records: deterministic msgpack, validated on the way in, refused unless canonical."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from modelgit.errors import IntegrityError
from modelgit.objects.ids import ObjectId

__all__ = ["Record", "decode", "encode", "to_builtins"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything that is persisted or returned.

    New fields must have defaults: defaults are left out of the canonical bytes, so old objects keep their ids.
    Only None, True, False, 0, "" and empty collections will do: msgspec recognises a default by identity, and other
    values are not one object in every process.  What is stored has at most 15 fields: from 16 on msgpack writes another
    header, even where most fields are left out.
    """


R = TypeVar("R", bound=msgspec.Struct)


def _to_wire(value: Any) -> Any:
    if isinstance(value, ObjectId):
        return value.digest
    raise NotImplementedError(f"{type(value).__name__} cannot be stored")


def _to_text(value: Any) -> Any:
    if isinstance(value, ObjectId):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be shown")


def _from_wire(kind: type, value: Any) -> Any:
    if issubclass(kind, ObjectId):
        if not isinstance(value, bytes) or len(value) != 32:
            raise ValueError("not a 32-byte object id")
        return kind(value)
    raise NotImplementedError(f"{kind.__name__} cannot be read")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_wire, order="deterministic")
_MAP_16, _SHORT_MAP = 0xDE, 16
_DECODERS: dict[type, msgspec.msgpack.Decoder[Any]] = {}


def encode(record: msgspec.Struct) -> bytes:
    """The canonical bytes of `record`; equal records give equal bytes on every machine."""
    data = _ENCODER.encode(record)
    if data[0] == _MAP_16 and data[1] == 0 and data[2] < _SHORT_MAP:
        # msgspec sizes the head of a map by the fields of the class, not by those that are written: without this, a
        # class that grows past 15 fields would give its old objects other bytes.  Nested records stay below (tested).
        return bytes((0x80 | data[2],)) + data[3:]
    return data


def decode(kind: type[R], data: bytes | memoryview, *, what: str = "record") -> R:
    """Read a record of type `kind`.

    Raises IntegrityError when the bytes do not validate or are not the canonical bytes of what they say: two
    byte strings for one record would be two ids for one object.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind, dec_hook=_from_wire)
    try:
        record: R = decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} does not read as a {kind.__name__}: {error}") from None
    if encode(record) != data:
        raise IntegrityError(f"{what} is not in canonical form")
    return record


def to_builtins(record: object) -> Any:
    """Plain dicts, lists and strings, ids as text: for `--json` output."""
    return msgspec.to_builtins(record, enc_hook=_to_text)
