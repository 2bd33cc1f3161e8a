"""How numbers, times and foreign text read in a terminal: pure functions."""

from __future__ import annotations

from modelgit.amounts import size_text as size
from modelgit.reporting.wording import amount

__all__ = ["ago", "duration", "escape", "plural", "size"]

# Control, format (zero width, direction), surrogate, private use, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_STEPS = ((60, "second"), (60, "minute"), (24, "hour"), (7, "day"), (4.35, "week"), (12, "month"))


def escape(text: str) -> str:
    """`text` with every character that could steer a terminal or hide itself written out (`\\x1b`, `\\u202e`).

    Names, messages and errors come from checkpoints and remotes, whose authors are strangers: a commit message must
    not be able to move the cursor, set the window's title or reverse the direction of a line.
    """
    if text.isascii() and text.isprintable():
        return text
    import unicodedata

    return "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """A count with its noun: `1 tensor`, `2,113 values`, `3 branches`."""
    return f"{amount(number)} {noun if number == 1 else many or noun + 's'}"


def ago(seconds: float) -> str:
    """How long ago something was: `just now`, `12 minutes ago`, `3 weeks ago`."""
    if seconds < 0:
        return "in the future"
    if seconds < 5:
        return "just now"
    value = seconds
    for step, unit in _STEPS:
        if value < step:
            return f"{plural(int(value), unit)} ago"
        value /= step
    return f"{plural(int(value), 'year')} ago"


def duration(seconds: float) -> str:
    """How long something took: `0.4 s`, `41 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
