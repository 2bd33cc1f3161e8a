"""Acceptances: examples of a test that may break, why, and until when."""

from __future__ import annotations

from typing import Literal as OneOf

import msgspec

from modelgit.errors import IntegrityError
from modelgit.objects.statements import Plain, read_statement, time_of, write_statement

__all__ = ["Acceptance", "read_acceptance", "write_acceptance"]


class Acceptance(Plain, frozen=True, kw_only=True):
    """Leave for `examples` (ids, sorted) of `test` in `suite` to be wrong, given at `time` by `author`.

    `expires` is the moment from which it no longer counts, None: never.
    """

    statement_type: OneOf["mgit:acceptance:v1"] = msgspec.field(name="_type")
    suite: str
    test: str
    examples: tuple[str, ...]
    reason: str
    author: str
    time: str
    expires: str | None = None

    def holds(self, now_s: float) -> bool:
        """Whether it counts at a moment, in seconds since 1970."""
        return self.expires is None or now_s < time_of(self.expires)


def write_acceptance(acceptance: Acceptance) -> str:
    """The canonical JSON of an acceptance."""
    return write_statement(acceptance)


def read_acceptance(text: str) -> Acceptance:
    """An acceptance from its JSON.

    Raises IntegrityError for one that does not fit the schema, names no examples, or gives no reason.
    """
    found = read_statement(Acceptance, text, what="the acceptance")
    if not found.examples or list(found.examples) != sorted(set(found.examples)):
        raise IntegrityError("the acceptance names no examples, or not in order")
    if not found.reason.strip():
        raise IntegrityError("the acceptance gives no reason")
    if not found.suite or not found.test:
        raise IntegrityError("the acceptance does not say of which test")
    time_of(found.time)
    if found.expires is not None:
        time_of(found.expires)
    return found
