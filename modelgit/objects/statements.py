"""What statements have in common: JSON in one form only, and times that can be read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from modelgit.errors import IntegrityError

__all__ = ["MAX_STATEMENT_BYTES", "Plain", "read_statement", "time_of", "time_text", "write_statement"]

MAX_STATEMENT_BYTES = 4 << 20
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")


class Plain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A JSON object of a statement; new fields need defaults, which are left out, so that old statements stay."""


P = TypeVar("P", bound=Plain)


def write_statement(statement: Plain) -> str:
    """The canonical JSON of a statement: no spaces, keys sorted, defaults left out."""
    return msgspec.json.encode(statement, order="sorted").decode()


def read_statement(kind: type[P], text: str, *, what: str) -> P:
    """A statement of type `kind`.

    Raises IntegrityError for one that the schema does not take, or that is not in canonical form: a key that is there
    twice would mean one thing to one reader and another to the next.
    """
    if len(text) > MAX_STATEMENT_BYTES:
        raise IntegrityError(f"{what} is longer than {MAX_STATEMENT_BYTES} characters")
    try:
        found = msgspec.json.decode(text.encode(), type=kind)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
        raise IntegrityError(f"{what} is not of the expected form: {_first_line(error)}") from None
    if write_statement(found) != text:
        raise IntegrityError(f"{what} is not in canonical form")
    return found


def _first_line(error: Exception) -> str:
    text = str(error).split("\n", 1)[0]
    return text[:1].lower() + (text[1:200] if text.isprintable() else ascii(text[1:200])[1:-1])


def time_text(seconds: float) -> str:
    """A moment, in seconds since 1970, as `2026-11-27T03:40:00Z`."""
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: str) -> int:
    """The seconds since 1970 of a moment as `time_text` writes it.  Raises IntegrityError for anything else."""
    try:
        if _TIME.match(text):
            return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        pass
    raise IntegrityError(f"{text[:40]!a} is not a time like 2026-11-27T03:40:00Z")
