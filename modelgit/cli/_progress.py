"""Progress in a terminal: bars after half a second, and one plain line per long task where there is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelgit.cli._format import duration, plural, size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from modelgit.cli._output import Output

__all__ = ["TerminalProgress"]

SHOW_AFTER_S = 0.5
REPORT_AFTER_S = 5.0


class _Task:
    __slots__ = ("bar", "done", "started", "total", "unit")

    def __init__(self, total: int, unit: str, started: float) -> None:
        self.total = total
        self.unit = unit
        self.started = started
        self.done = 0
        self.bar: TaskID | None = None


class TerminalProgress:
    """Implements `modelgit.progress.Progress` on stderr; safe to call from several threads.

    On a terminal, bars appear once a task has run for half a second, so that quick commands stay quiet; rich is
    imported only then.  Elsewhere (a log of CI) a task that took over five seconds leaves one line when it ends.
    """

    def __init__(
        self, output: Output, *, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._output = output
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._bars: Bars | None = None
        self._cancelled = False

    def start(self, task: str, total: int, *, unit: str = "B") -> None:
        """A task begins, or learns its total."""
        with self._lock:
            known = self._tasks.get(task)
            if known is None:
                self._tasks[task] = _Task(total, unit, self._clock())
                return
            known.total, known.unit = total, unit
            if self._bars is not None and known.bar is not None:
                self._bars.update(known.bar, total=total)

    def advance(self, task: str, amount: int) -> None:
        """More of a task is done."""
        with self._lock:
            known = self._tasks.get(task)
            if known is None:
                return
            known.done += amount
            if self._terminal and not self._output.quiet and self._clock() - known.started >= SHOW_AFTER_S:
                self._show(task, known)

    def finish(self, task: str) -> None:
        """A task is over."""
        with self._lock:
            known = self._tasks.pop(task, None)
            if known is None:
                return
            seconds = self._clock() - known.started
            if known.bar is not None and self._bars is not None:
                self._bars.update(known.bar, completed=known.total or known.done)
                self._bars.stop_task(known.bar)
            if not self._tasks:
                self._stop()
            if not self._terminal and seconds >= REPORT_AFTER_S:
                self._output.say(f"{task}: {_amount(known.done, known.unit)}, {duration(seconds)}")

    def check(self) -> None:
        """Raise KeyboardInterrupt once `cancel` was called."""
        if self._cancelled:
            raise KeyboardInterrupt

    def cancel(self) -> None:
        """Make every later `check`, in whatever thread, raise KeyboardInterrupt."""
        self._cancelled = True

    def close(self) -> None:
        """Take the bars off the terminal."""
        with self._lock:
            self._tasks.clear()
            self._stop()

    def _show(self, name: str, task: _Task) -> None:
        if self._bars is None:
            self._bars = _make_bars()
            self._bars.start()
        if task.bar is None:
            task.bar = self._bars.add_task(name[:1].upper() + name[1:], total=task.total or None, amount="")
        self._bars.update(task.bar, completed=task.done, amount=_amount(task.done, task.unit))

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _amount(number: int, unit: str) -> str:
    return size(number) if unit == "B" else plural(number, unit, unit)


def _make_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    # markup=False: the names of tasks may hold names of files.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
