"""Progress and cancellation: one object, passed through, so that the library never prints and can always stop."""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Progress", "SilentProgress"]


class Progress(Protocol):
    """What long work reports to.  Implementations must be safe to call from several threads."""

    def start(self, task: str, total: int, *, unit: str = "B") -> None:
        """A task of `total` units (bytes, examples) begins; a task started again replaces its total."""

    def advance(self, task: str, amount: int) -> None:
        """`amount` more units of `task` are done."""

    def finish(self, task: str) -> None:
        """`task` is over."""

    def check(self) -> None:
        """Raise KeyboardInterrupt if the user asked to stop.  Called between units of work."""


class SilentProgress:
    """Reports nothing and never cancels."""

    def start(self, task: str, total: int, *, unit: str = "B") -> None:
        """Ignore."""

    def advance(self, task: str, amount: int) -> None:
        """Ignore."""

    def finish(self, task: str) -> None:
        """Ignore."""

    def check(self) -> None:
        """Never cancel."""


SILENT: Progress = SilentProgress()
