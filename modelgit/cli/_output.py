"""The one place that prints: data on stdout, words on stderr, colour on request, every foreign character escaped.

A line is given as parts.  A plain part is escaped; a painted part is escaped and then coloured.  So no string of a
repository or a remote can bring its own escape codes, and no caller has to remember to clean it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TextIO

import click

from modelgit.cli._format import escape

__all__ = [
    "ColorChoice",
    "Output",
    "Painted",
    "Part",
    "blue",
    "bold",
    "columns",
    "dim",
    "green",
    "plain_data",
    "red",
    "yellow",
]

ColorChoice = Literal["auto", "always", "never"]


class Painted(NamedTuple):
    """Text with a colour (a name of click's) or a weight, applied only where colour is wanted."""

    text: str
    fg: str | None = None
    bold: bool = False
    dim: bool = False

    def __str__(self) -> str:
        return self.text


Part = str | Painted


def bold(text: object) -> Painted:
    """What a reader looks for first."""
    return Painted(str(text), bold=True)


def dim(text: object) -> Painted:
    """What can be skipped."""
    return Painted(str(text), dim=True)


def red(text: object) -> Painted:
    """A failure or a loss."""
    return Painted(str(text), fg="red")


def green(text: object) -> Painted:
    """A success or a gain."""
    return Painted(str(text), fg="green")


def yellow(text: object) -> Painted:
    """An id, or something to look at."""
    return Painted(str(text), fg="yellow")


def blue(text: object) -> Painted:
    """A name of a branch, a tag or a remote."""
    return Painted(str(text), fg="cyan")


def columns(
    rows: Sequence[Sequence[Part]], *, right: Iterable[int] = (), gap: int = 2, indent: int = 0
) -> list[list[Part]]:
    """Pad cells so that columns line up; columns in `right` align to the right, the last cell stays as it is."""
    widths: dict[int, int] = {}
    for row in rows:
        for index, cell in enumerate(row):
            widths[index] = max(widths.get(index, 0), len(escape(str(cell))))
    to_right = frozenset(right)
    lines: list[list[Part]] = []
    for row in rows:
        parts: list[Part] = [" " * indent]
        for index, cell in enumerate(row):
            padding = " " * (widths[index] - len(escape(str(cell))))
            last = index == len(row) - 1
            if index in to_right:
                parts += [padding, cell]
            else:
                parts += [cell, "" if last else padding]
            if not last:
                parts.append(" " * gap)
        lines.append(parts)
    return lines


class Output:
    """Where a command writes.

    `line` is for what was asked for (stdout), `say` for what is good to know (stderr, silenced by `--quiet`), `warn`
    for what must be known (stderr, always).
    """

    def __init__(self, *, no_color: bool = False, terminal: str = "") -> None:
        self.color: ColorChoice = "auto"
        self.quiet = False
        self._no_color = no_color or terminal == "dumb"
        self._held: list[str] | None = None

    def line(self, *parts: Part) -> None:
        """One line of data."""
        text = self._render(parts, sys.stdout)
        if self._held is None:
            click.echo(text, color=True)
        else:
            self._held.append(text)

    def lines(self, rows: Iterable[Sequence[Part]]) -> None:
        """Several lines of data."""
        for parts in rows:
            self.line(*parts)

    def raw(self, text: str) -> None:
        """A document as it is (a completion script, a file's text): no escaping, for text that mgit made itself."""
        click.echo(text, nl=not text.endswith("\n"), color=True)

    def binary(self, chunks: Iterable[bytes | bytearray]) -> None:
        """Bytes as they are, for a program to read.  Raises click's UsageError when they would go to a terminal."""
        if _is_terminal(sys.stdout):
            error = click.UsageError("raw bytes would go to a terminal")
            error.hint = "name a file, or pipe them into a program"  # type: ignore[attr-defined]
            raise error
        stream = sys.stdout.buffer
        for chunk in chunks:
            stream.write(chunk)
        stream.flush()

    def say(self, *parts: Part) -> None:
        """One line of words about what happened; not under `--quiet`."""
        if not self.quiet:
            click.echo(self._render(parts, sys.stderr), err=True, color=True)

    def say_lines(self, rows: Iterable[Sequence[Part]]) -> None:
        """Several lines of words."""
        for parts in rows:
            self.say(*parts)

    def warn(self, *parts: Part) -> None:
        """One line that must be seen."""
        click.echo(self._render((Painted("warning: ", fg="yellow"), *parts), sys.stderr), err=True, color=True)

    def error(self, message: str, hint: str | None = None) -> None:
        """What went wrong, and what to type."""
        click.echo(self._render((Painted("error: ", fg="red", bold=True), message), sys.stderr), err=True, color=True)
        if hint:
            click.echo(self._render((Painted("hint: ", fg="cyan"), hint), sys.stderr), err=True, color=True)

    def json(self, schema: str, payload: object) -> None:
        """One JSON document that starts with its schema.

        `payload` is a record or a mapping, in which ids become text; anything else goes under `items`.
        """
        import json

        plain = plain_data(payload)
        fields = plain if isinstance(plain, dict) else {"items": plain}
        # Non-ASCII goes out as \\u so that hidden characters are harmless in a terminal too.
        click.echo(json.dumps({"schema": schema, **fields}, indent=2, ensure_ascii=True), color=False)

    def hold(self) -> None:
        """Keep lines of data until `release`, which shows them page by page if they overflow a terminal."""
        self._held = []

    def release(self) -> None:
        """Show what was held."""
        held, self._held = self._held, None
        if not held:
            return
        if len(held) >= _terminal_size().lines - 1 and _is_terminal(sys.stdout) and _is_terminal(sys.stdin):
            click.echo_via_pager("\n".join(held) + "\n", color=self.colored(sys.stdout))
        else:
            for text in held:
                click.echo(text, color=True)

    def colored(self, stream: TextIO) -> bool:
        """Whether `stream` gets colour."""
        if self.color != "auto":
            return self.color == "always"
        return not self._no_color and _is_terminal(stream)

    @property
    def width(self) -> int:
        """How many characters fit on a line: the terminal's, or 100 where there is none."""
        return _terminal_size().columns

    def _render(self, parts: Iterable[Part], stream: TextIO) -> str:
        colored = self.colored(stream)
        text = "".join(
            click.style(escape(part.text), fg=part.fg, bold=part.bold or None, dim=part.dim or None)
            if colored and isinstance(part, Painted) and part.text
            else escape(str(part))
            for part in parts
        )
        return text.rstrip(" ")


def plain_data(value: object) -> Any:
    """`value` as dicts, lists, text and numbers, with every field of every record, those at their default too.

    Canonical bytes leave defaults out; a program that reads JSON wants to find `"files": []`.
    """
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {field: plain_data(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {field: plain_data(item) for field, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_data(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no word for infinity
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def _terminal_size() -> os.terminal_size:
    import shutil

    return shutil.get_terminal_size((100, 24))


def _is_terminal(stream: TextIO) -> bool:
    return not stream.closed and stream.isatty()
