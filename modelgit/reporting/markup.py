"""Foreign texts in HTML."""

from __future__ import annotations

from html import escape

from modelgit.reporting.wording import printable

__all__ = ["paragraph", "text"]


def text(value: str) -> str:
    """A foreign text for a page: control characters written out, markup escaped."""
    return escape(printable(value))


def paragraph(value: str) -> str:
    """The same for a text of several lines, whose line breaks stay."""
    return "\n".join(map(text, value.splitlines()))
