"""Work on several threads with results in order: the one way in which the library uses threads.

Hashing, coding and file access release the interpreter's lock, so that threads are enough.  With one thread everything
runs in the caller, in the order of the results: a test that kills a command at its n-th system call can repeat it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor
    from types import TracebackType

__all__ = ["Workers"]

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A pool of `count` threads, started when it is first needed; a context manager."""

    def __init__(self, count: int, *, name: str) -> None:
        self.count = max(1, count)
        self._name = name
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def ordered(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        *,
        ahead: int,
        weight: Callable[[T], int] = lambda _: 0,
        limit: int = 0,
    ) -> Iterator[R]:
        """`work` of every item, in the order of the items.

        At most `ahead` items are under way or wait to be taken, and no more are begun while their `weight` adds up to
        `limit` (0: no such bound); items are asked for one by one as places become free.
        """
        if self.count == 1:
            yield from map(work, items)
            return
        waiting: deque[tuple[int, Future[R]]] = deque()
        load = 0
        try:
            for item in items:
                heavy = weight(item)
                while waiting and (len(waiting) >= ahead or (limit and load + heavy > limit)):
                    done, future = waiting.popleft()
                    load -= done
                    yield future.result()
                waiting.append((heavy, self._submit(work, item)))
                load += heavy
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, work: Callable[[T], R], item: T) -> Future[R]:
        if self._pool is None:
            # Imported late: this costs more than a whole `status` that reads nothing.
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix=self._name)
        return self._pool.submit(work, item)
