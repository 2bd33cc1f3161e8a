"""Files of SentencePiece (`tokenizer.model`, `spiece.model`): pieces that both sides added, in one file.

A file is a protobuf message (sentencepiece_model.proto of github.com/google/sentencepiece): ModelProto.pieces, field 1,
each a text (1), a score (2, a float) and a type (3); how it was trained and how text is normalised are messages of
their own.  A token's row is the place of its piece.  Fields are walked within bounds and without a protobuf library;
what is not understood is kept as it is, or is a conflict where both sides changed it.

Held are the bytes of the three files and their pieces: some MB.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from modelgit.merging.learned import Clash, decided
from modelgit.objects.merges import SideName

__all__ = ["FILES", "PLAIN_FILES", "Piece", "PieceModel", "merge_models", "read_model"]

PLAIN_FILES = ("tokenizer.model", "spiece.model", "spm.model")
"""Files in which the place of a piece is its row; tokenizers with other files put tokens of their own between."""
FILES = (*PLAIN_FILES, "sentencepiece.bpe.model")

_SHOWN = 24
_MAX_BYTES = 64 << 20
_MAX_FIELDS = 1 << 21
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _SELF_TEST = 1, 2, 4  # of ModelProto
_TEXT, _SCORE, _TYPE = 1, 2, 3  # of SentencePiece
_VOCAB_SIZE = 4  # of TrainerSpec
_NUMBERED = {40: 0, 41: 1, 42: 2, 43: -1}
"""Of TrainerSpec: the places of the pieces for unknown text, beginning, end and padding, where it says nothing else."""
_NOWHERE = (1 << 64) - 1
_ENCODES = frozenset({3, 24, 35, 44, 45, 46, 47, 48})
"""Of TrainerSpec: what else an encoder reads; the rest says how the pieces were found."""


class _Field(NamedTuple):
    """A field of a message: its number and wire type, its whole bytes, and those of its value alone."""

    number: int
    wire: int
    whole: bytes
    value: bytes


class _BothChanged(Exception):
    """Both sides changed what an encoder reads, and not alike."""


class Piece(NamedTuple):
    """A piece: its text, score and type, and its field as it is written."""

    text: str
    score: float
    kind: int
    whole: bytes


class PieceModel(NamedTuple):
    """A file: its pieces in order, and the bytes of all other fields by number (those of TrainerSpec apart).

    `counts` are the numbers in the TrainerSpec that speak of pieces: how many there are, and the places of some.
    """

    pieces: tuple[Piece, ...]
    fields: Mapping[int, bytes]
    trainer: Mapping[int, bytes]
    counts: Mapping[int, int]

    def named(self, number: int) -> str:
        """The piece whose place field `number` of the TrainerSpec is; "" for none."""
        place = self.counts.get(number, _NUMBERED[number])
        return self.pieces[place].text if 0 <= place < len(self.pieces) else ""


def read_model(data: bytes) -> PieceModel | None:
    """The pieces of a file; None for what is not one, or has a piece twice or a score that is no number."""
    if len(data) > _MAX_BYTES:
        return None
    pieces: list[Piece] = []
    fields: dict[int, list[bytes]] = {}
    trainer: dict[int, list[bytes]] = {}
    counts: dict[int, int] = {}
    try:
        for field in _fields(data):
            if field.number == _PIECES:
                pieces.append(_piece(field))
            elif field.number == _TRAINER and field.wire == _BYTES:
                for inner in _fields(field.value):
                    if inner.number in (_VOCAB_SIZE, *_NUMBERED) and inner.wire == _VARINT:
                        counts[inner.number] = _varint(inner.value, 0)[0]
                    else:
                        trainer.setdefault(inner.number, []).append(inner.whole)
            else:
                fields.setdefault(field.number, []).append(field.whole)
    except (ValueError, IndexError, struct.error):
        return None
    if not pieces or len({piece.text for piece in pieces}) != len(pieces):
        return None
    return PieceModel(tuple(pieces), _joined(fields), _joined(trainer), counts)


def _joined(fields: Mapping[int, list[bytes]]) -> dict[int, bytes]:
    return {number: b"".join(found) for number, found in fields.items()}


def merge_models(
    base: bytes | None, ours: bytes, theirs: bytes, *, first: SideName | None = None
) -> bytes | Clash | None:
    """One file with the pieces of both: ours in their order, then those that theirs alone has.

    Scores, types and settings are merged three-way; where both changed one of them differently that is a clash, unless
    one side goes `first`.  Tests of itself that a file holds are left out: new pieces may cut their texts otherwise.
    None where a file cannot be read.
    """
    known = [None if data is None else read_model(data) for data in (base, ours, theirs)]
    before, mine, other = known
    if mine is None or other is None or (base is not None and before is None):
        return None
    old = {piece.text: piece for piece in before.pieces} if before is not None else {}
    new = {piece.text: piece for piece in other.pieces}
    pieces: list[Piece] = []
    for piece in mine.pieces:
        their = new.pop(piece.text, piece)
        chosen = _piece_of(old.get(piece.text), piece, their, first)
        if chosen is None:
            return _clash(piece, their)
        pieces.append(chosen)
    pieces += new.values()
    try:
        fields = _settled(before.fields if before else {}, mine.fields, other.fields, first, must={*mine.fields})
        trainer = _settled(before.trainer if before else {}, mine.trainer, other.trainer, first, must=_ENCODES)
        counts = _numbered(before, mine, other, [piece.text for piece in pieces], first)
    except _BothChanged as clash:
        return Clash(f"changed {clash}", "changed it too")
    fields.pop(_SELF_TEST, None)
    trainer |= {number: _as_varint(number << 3) + _as_varint(value) for number, value in counts.items()}
    if trainer:
        body = b"".join(trainer[number] for number in sorted(trainer))
        fields[_TRAINER] = _as_varint(_TRAINER << 3 | _BYTES) + _as_varint(len(body)) + body
    return b"".join(piece.whole for piece in pieces) + b"".join(fields[number] for number in sorted(fields))


def _piece_of(base: Piece | None, ours: Piece, theirs: Piece, first: SideName | None) -> Piece | None:
    before, mine, other = ((piece.score, piece.kind) if piece else None for piece in (base, ours, theirs))
    chosen = decided(before, mine, other, first)
    return None if chosen is None else ours if chosen == mine else theirs


def _clash(ours: Piece, theirs: Piece) -> Clash:
    """What each side says of one piece, by the first thing that differs."""
    text = repr(ours.text[:_SHOWN])
    if ours.score != theirs.score:
        return Clash(f"scores {text} {ours.score:g}", f"scores it {theirs.score:g}")
    return Clash(f"gives {text} type {ours.kind}", f"gives it type {theirs.kind}")


def _numbered(
    base: PieceModel | None, ours: PieceModel, theirs: PieceModel, texts: list[str], first: SideName | None
) -> dict[int, int]:
    """How many pieces there are, and the new places of those that the settings name."""
    found = {_VOCAB_SIZE: len(texts)} if _VOCAB_SIZE in ours.counts else {}
    places = {text: place for place, text in enumerate(texts)}
    for number in sorted({*ours.counts, *theirs.counts} - {_VOCAB_SIZE}):
        before = None if base is None else base.named(number)
        chosen = decided(before, ours.named(number), theirs.named(number), first)
        if chosen is None:
            raise _BothChanged(f"setting {number}")
        found[number] = places.get(chosen, _NOWHERE)
    return found


def _settled(
    base: Mapping[int, bytes],
    ours: Mapping[int, bytes],
    theirs: Mapping[int, bytes],
    first: SideName | None,
    *,
    must: Collection[int],
) -> dict[int, bytes]:
    """The fields of both, and ours where both changed one that is not among those that `must` agree."""
    found: dict[int, bytes] = {}
    for number in sorted({*ours, *theirs}):
        mine, other, before = (side.get(number, b"") for side in (ours, theirs, base))
        chosen = decided(before, mine, other, first)
        if chosen is None and number in must and number != _SELF_TEST:
            raise _BothChanged(f"setting {number}")
        found[number] = mine if chosen is None else chosen
    return found


def _piece(field: _Field) -> Piece:
    text, score, kind = "", 0.0, 1
    if field.wire != _BYTES:
        raise ValueError("a piece in another form")
    for inner in _fields(field.value):
        if (inner.number, inner.wire) == (_TEXT, _BYTES):
            text = inner.value.decode("utf-8")
        elif (inner.number, inner.wire) == (_SCORE, _FIXED32):
            score = struct.unpack("<f", inner.value)[0]
        elif (inner.number, inner.wire) == (_TYPE, _VARINT):
            kind = _varint(inner.value, 0)[0]
        elif inner.number in (_TEXT, _SCORE, _TYPE):
            raise ValueError("a piece in another form")
    if not text or not math.isfinite(score):
        raise ValueError("a piece without a text or a score")
    return Piece(text, score, kind, field.whole)


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of a message.  Raises ValueError or IndexError for what is none."""
    at = count = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, at = _varint(data, at)
            end = at + length
        elif wire in (_FIXED64, _FIXED32):
            end = at + (8 if wire == _FIXED64 else 4)
        elif wire == _VARINT:
            end = _varint(data, at)[1]
        else:
            raise ValueError("an unknown wire type")
        count += 1
        if not number or end > len(data) or count > _MAX_FIELDS:
            raise ValueError("a field past the end of its message, or too many of them")
        yield _Field(number, wire, data[start:end], data[at:end])
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 integer of at most 64 bits, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
    return value, at


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
