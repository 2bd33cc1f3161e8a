"""The journal of a run under a mask: one line of JSON for each step, which says that nothing else moved.

A segment begins with a line of `start` (the mask's fingerprint, and that of every tensor outside the mask) and has a
line of `step` for each optimizer step that was checked and a line of `end`; a run that goes on after a stop appends
another segment.  What a leak at one step changed shows in that step's line even when a later step takes it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from modelgit.errors import UsageError

__all__ = ["JournalEnd", "JournalStart", "JournalStep", "JournalWriter", "Leak", "Watched", "read_journal"]

ALGORITHM = "xxh3-128"


class Watched(msgspec.Struct, frozen=True):
    """A tensor outside the mask, in whole or in part: dtype (safetensors' name), shape, fingerprint at the start.

    `aliases` are the other names of a tied parameter.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    aliases: tuple[str, ...] = ()


class Leak(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor that differs outside the mask, and in how many values (None: it is only known that some differ)."""

    tensor: str
    values: int | None = None


class JournalStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="start"):
    """The first line of a segment.

    `first` is the number of its first step, `every` how many steps lie between two checks, `masked` how many
    positions train, `mask` and `digest` are fingerprints of the mask and of everything outside it.
    """

    version: int = 1
    algorithm: str = ALGORITHM
    first: int = 1
    every: int = 1
    optimizer: str
    masked: int
    mask: str
    digest: str
    tensors: dict[str, Watched]


class JournalStep(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="step", omit_defaults=True):
    """A step that was checked: `digest` of everything outside the mask after it, `lr` of each parameter group.

    `violations` is the number of values that differ from the start; a tensor of which it is not known counts as one.
    """

    step: int
    digest: str
    violations: int
    optimizer: str
    lr: tuple[float, ...]
    leaks: tuple[Leak, ...] = ()


class JournalEnd(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="end"):
    """The run let go of the mask after `steps` steps of this segment; `digest` is what it left outside of it."""

    steps: int
    digest: str


Line = JournalStart | JournalStep | JournalEnd


class JournalWriter:
    """Appends lines to the journal at `path`; every line is handed to the system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken = max((line.step for _, line in read_journal(path) if isinstance(line, JournalStep)), default=0)
        """The last step of the segments before."""
        self._file: IO[bytes] | None = None

    def write(self, line: Line) -> None:
        """Append one line.  Raises UsageError when it cannot be written."""
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _drop_cut_line(self.path)
                self._file = self.path.open("ab", buffering=0)
            self._file.write(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise UsageError(f"the journal {self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _drop_cut_line(path: Path) -> None:
    """Take away what a crash left of a last line, or the next one would be glued to it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        kept = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(kept)


class NumberedLine(NamedTuple):
    """A line and its number in the file, from 1."""

    number: int
    line: Line


def read_journal(path: Path) -> Iterator[NumberedLine]:
    """The lines of the journal; none for a file that is not there.

    A last line that was cut by a crash is left out.  Raises UsageError for anything else that is no journal.
    """
    decoder = msgspec.json.Decoder(Line)
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n"):
                return
            try:
                line = decoder.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise UsageError(f"line {number} of {path} is no line of a run's journal: {error}") from error
            if isinstance(line, JournalStart) and (line.version, line.algorithm) != (1, ALGORITHM):
                raise UsageError(
                    f"the journal {path} has version {line.version} ({line.algorithm}), which this mgit does not read",
                    hint="`pip install --upgrade modelgit`",
                )
            yield NumberedLine(number, line)
