"""Mutation fuzzing of parsers and decoders: whatever the bytes, only declared errors may come out.

Deterministic: a seed number and small valid inputs give the same mutants everywhere, so that a finding can be repeated.
Mutants are what breaks parsers of binary formats: flipped bits, lengths and offsets that lie, truncation, repetition,
pieces of one input in another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from modelgit.errors import CheckpointFormatError, IntegrityError, MgitError

__all__ = ["DECLARED", "FuzzOutcome", "MemoryFile", "fuzz", "mutants"]

DECLARED: tuple[type[MgitError], ...] = (CheckpointFormatError, IntegrityError)

_INTEGERS = (
    *(0, 1, 2, 7, 8, 9, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_WIDTHS = (1, 2, 4, 8)
_MAX_GROWTH = 256


class MemoryFile:
    """Bytes as a file open for positional reads: what `CheckpointFormat.scan` takes."""

    def __init__(self, data: bytes, *, name: str) -> None:
        self.data = data
        self.path = Path(name)
        self.shown = name
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; raises CheckpointFormatError when there are fewer."""
        part = self.data[offset : offset + length] if 0 <= offset <= self.size and length >= 0 else b""
        if len(part) != length:
            raise CheckpointFormatError(f"{self.shown} ends early")
        return part


class FuzzOutcome(NamedTuple):
    """How many mutants were tried, and how many of them a parser accepted."""

    tried: int
    accepted: int


def mutants(seeds: Sequence[bytes], *, count: int, seed: int = 0, tokens: Sequence[bytes] = ()) -> Iterator[bytes]:
    """`count` inputs made from `seeds` (valid, best small); `tokens` are byte strings with a meaning to the parser."""
    chance = random.Random(seed)  # noqa: S311 - repeatable on purpose
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(1 + int(chance.expovariate(0.7))):
            _mutate(data, chance, seeds, tokens)
        yield bytes(data)


def fuzz(
    parse: Callable[[bytes], object],
    seeds: Sequence[bytes],
    *,
    count: int = 100_000,
    seed: int = 0,
    tokens: Sequence[bytes] = (),
    declared: tuple[type[BaseException], ...] = DECLARED,
) -> FuzzOutcome:
    """Give `count` mutants to `parse`; every exception that is not `declared` comes through, with the input as a note.

    The seeds themselves must be accepted, or nothing behind the first check would be tried.
    """
    for data in seeds:
        parse(data)
    accepted = 0
    for data in mutants(seeds, count=count, seed=seed, tokens=tokens):
        try:
            parse(data)
        except declared:
            continue
        except BaseException as error:
            error.add_note(f"the input was bytes.fromhex({data.hex()!r})")
            raise
        accepted += 1
    return FuzzOutcome(count, accepted)


def _mutate(data: bytearray, chance: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    size = len(data)
    choice = chance.randrange(10)
    at = chance.randrange(size) if size else 0
    if choice <= 1 and size:
        data[at] ^= 1 << chance.randrange(8)
    elif choice == 2 and size:
        data[at] = chance.randrange(256)
    elif choice in (3, 4) and size:
        width = chance.choice(_WIDTHS)
        at = chance.randrange(max(1, size - width + 1))
        width = min(width, size - at)
        if chance.random() < 0.5:
            value = chance.choice(_INTEGERS)
        else:
            value = int.from_bytes(data[at : at + width], "little") + chance.choice((-9, -8, -4, -1, 1, 4, 8, 9))
        word = (value % (1 << 8 * width)).to_bytes(width, "little")
        data[at : at + width] = word if chance.random() < 0.8 else word[::-1]
    elif choice == 5:
        del data[at : at + 1 + int(chance.expovariate(0.1))]
    elif choice == 6:
        piece = data[at : at + 1 + int(chance.expovariate(0.1))][:_MAX_GROWTH]
        where = chance.randrange(size + 1)
        data[where:where] = piece
    elif choice == 7 and tokens:
        token = chance.choice(tokens)
        data[at : at + (len(token) if chance.random() < 0.5 else 0)] = token
    elif choice == 8:
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[at : at + chance.randrange(1, 33)] = other[start : start + chance.randrange(1, 65)]
    else:
        del data[chance.randrange(size + 1) :]
