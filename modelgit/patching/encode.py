"""Writing tensors: hash, ask whether it is known, choose, encode, append — overlapped on a thread pool.

Small tensors (up to a window) are read once.  Larger ones are read twice, once to be hashed and, if they are new, once
to be coded; every leaf of the second reading is hashed again and compared, so that what is stored is what was named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from modelgit.codecs.base import CODECS, Codec, Effort, Layout, Words, layout_of, word_dtype
from modelgit.errors import BugError, RepositoryError
from modelgit.objects import LEAF_BYTES, BlobId, TensorId, TensorSpec, blob_id, leaf_digests, tensor_id
from modelgit.patching.base import WINDOW_BYTES, TensorSource, windows
from modelgit.patching.chain import MAX_DENSE_COST, MAX_SPARSE_COST, SPARSE_BELOW, anchor_of, chain_cost
from modelgit.patching.choose import Choice, estimate_choices, sample_runs
from modelgit.patching.materialise import TensorReader
from modelgit.patching.records import encode_header
from modelgit.progress import SILENT, Progress
from modelgit.store.base import WriteStore

__all__ = [
    "EXTENT_BYTES",
    "BlobSource",
    "SourceChangedError",
    "StoreJob",
    "Stored",
    "TensorWriter",
    "write_blob",
]

EXTENT_BYTES = 64 << 20
_TRY_ALL_BYTES = 64 << 10  # below this every admissible encoding is tried
_BYTES_LAYOUT = Layout(1, False)
_IN_FLIGHT_BYTES = 64 << 20

T = TypeVar("T")
R = TypeVar("R")


class SourceChangedError(RepositoryError):
    """A file gave different bytes when it was read again: somebody is writing it."""

    code = "source-changed"


class StoreJob(NamedTuple):
    """One tensor (or blob, when `spec` is None) to store.

    `parent` is the tensor of the same name in the parent commit: the first candidate for a base, and what changed
    values are counted against.  `name` is what messages call it.
    """

    name: str
    source: TensorSource | BlobSource
    spec: TensorSpec | None
    size: int
    parent: TensorId | BlobId | None = None


class Stored(NamedTuple):
    """What became of a job: `codec` is "known" when nothing had to be written.

    `values_changed` counts elements that differ in bits from `parent`; None when that was not looked at.
    """

    name: str
    id: TensorId | BlobId
    codec: str
    bytes_written: int
    values_changed: int | None


class BlobSource:
    """Bytes in memory as a source."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.spec = TensorSpec(dtype="U8", shape=(len(data),))
        self._data = memoryview(data)

    def read(self, start: int, stop: int) -> memoryview:
        """A slice, not a copy."""
        return self._data[start:stop]


class _Coded(NamedTuple):
    codec: Codec
    base: TensorId | BlobId | None
    payloads: list[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.payloads))


class _Result(NamedTuple):
    id: TensorId | BlobId
    coded: _Coded | None
    changed: int | None


class TensorWriter:
    """Stores tensors and blobs through a session, `threads` at a time.

    Anonymous memory is bounded by about 64 MiB of raw tensors in flight plus one extent, whatever the sizes.
    """

    def __init__(
        self, store: WriteStore, *, threads: int, effort: Effort = "balanced", progress: Progress = SILENT
    ) -> None:
        self._effort = effort
        self._store = store
        self._reader = TensorReader(store)
        self._threads = max(1, threads)
        self._progress = progress

    def store(self, jobs: Iterable[StoreJob], *, task: str = "store") -> Iterator[Stored]:
        """Store every job, yielding results in order.

        Raises SourceChangedError when a source gives different bytes on its second reading.
        """
        with ThreadPoolExecutor(self._threads, thread_name_prefix="mgit-encode") as pool:
            waiting: deque[tuple[StoreJob, Future[_Result]]] = deque()
            in_flight = 0
            try:
                for job in jobs:
                    self._progress.check()
                    if job.size > WINDOW_BYTES:
                        while waiting:
                            yield self._finish(*waiting.popleft(), task)
                        in_flight = 0
                        yield self._store_large(job, pool, task)
                        continue
                    while waiting and in_flight + job.size > _IN_FLIGHT_BYTES:
                        in_flight -= waiting[0][0].size
                        yield self._finish(*waiting.popleft(), task)
                    waiting.append((job, pool.submit(self._prepare_small, job)))
                    in_flight += job.size
                    while len(waiting) > 8 * self._threads:
                        in_flight -= waiting[0][0].size
                        yield self._finish(*waiting.popleft(), task)
                while waiting:
                    yield self._finish(*waiting.popleft(), task)
            finally:
                for _, future in waiting:
                    future.cancel()

    # -- small: one window

    def _prepare_small(self, job: StoreJob) -> _Result:
        data = job.source.read(0, job.size)
        leaves = leaf_digests(data)
        object_id = _identify(job, leaves)
        if job.parent == object_id:
            return _Result(object_id, None, 0)
        if self._store.has(object_id):
            return _Result(object_id, None, None)
        layout = _layout(job)
        words = np.frombuffer(data, word_dtype(layout))
        bases = self._bases(job)
        read: dict[int, Words] = {}

        def base_words(index: int) -> Words:
            if index not in read:
                read[index] = np.frombuffer(self._reader.read(bases[index], 0, job.size), word_dtype(layout))
            return read[index]

        choices = self._choices(job, layout, bases, lambda start, stop: words[start:stop], base_words)
        tried = choices if job.size <= _TRY_ALL_BYTES else choices[:1]
        coded = [
            _encode_window(
                choice, words, None if choice.base is None else base_words(choice.base), layout, bases, self._effort
            )
            for choice in tried
        ]
        best = min(coded, key=lambda item: item.size + (32 if item.base is not None else 0))
        changed = None
        if job.parent is not None and bases and bases[0] == job.parent:
            changed = _changed(words, base_words(0), job.spec)
        return _Result(object_id, best, changed)

    def _finish(self, job: StoreJob, future: Future[_Result], task: str) -> Stored:
        result = future.result()
        self._progress.advance(task, job.size)
        written = 0
        codec = "known"
        if result.coded is not None and not self._store.has(result.id):
            written = self._append(result.id, 0, job.size, job.size, result.coded, _layout(job))
            codec = result.coded.codec.name
        return Stored(job.name, result.id, codec, written, result.changed)

    # -- large: many windows, twice

    def _store_large(self, job: StoreJob, pool: ThreadPoolExecutor, task: str) -> Stored:
        spans = list(windows(job.size))
        leaves: list[bytes] = []
        for part in self._ordered(pool, spans, lambda span: _leaves(job, *span)):
            leaves += part
            self._progress.check()
        object_id = _identify(job, leaves)
        if job.parent == object_id or self._store.has(object_id):
            self._progress.advance(task, job.size)
            return Stored(job.name, object_id, "known", 0, 0 if job.parent == object_id else None)
        layout = _layout(job)
        bases = self._bases(job)
        choice = self._choose_large(job, layout, bases)
        count = job.parent is not None and choice.base is not None and bases[choice.base] == job.parent

        def encode(span: tuple[int, int]) -> tuple[_Coded, int]:
            start, stop = span
            data = job.source.read(start, stop)
            first = start // LEAF_BYTES
            if leaf_digests(data) != leaves[first : first + WINDOW_BYTES // LEAF_BYTES]:
                raise SourceChangedError(
                    f"{job.name} changed while it was being committed",
                    hint="wait until nothing writes the file, then run `mgit commit` again",
                )
            words = np.frombuffer(data, word_dtype(layout))
            base = None
            if choice.base is not None:
                base = np.frombuffer(self._reader.read(bases[choice.base], start, stop), word_dtype(layout))
            coded = _encode_window(choice, words, base, layout, bases, self._effort)
            return coded, _changed(words, base, job.spec) if count and base is not None else 0

        written = changed = 0
        extent: list[bytes] = []
        begin = 0
        coded = None
        for (_, stop), (coded, differing) in zip(spans, self._ordered(pool, spans, encode), strict=True):
            extent += coded.payloads
            changed += differing
            self._progress.advance(task, min(WINDOW_BYTES, job.size))
            self._progress.check()
            if stop - begin >= EXTENT_BYTES or stop == job.size:
                whole = coded._replace(payloads=extent)
                written += self._append(object_id, begin, stop, job.size, whole, layout)
                extent, begin = [], stop
        return Stored(job.name, object_id, choice.codec, written, changed if count else None)

    def _choose_large(self, job: StoreJob, layout: Layout, bases: Sequence[TensorId | BlobId]) -> Choice:
        width = layout.word_bytes

        def sample(read: Callable[[int, int], bytes | bytearray | memoryview]) -> Words:
            parts = [np.frombuffer(read(a * width, b * width), word_dtype(layout)) for a, b in runs]
            return np.concatenate(parts)

        runs = sample_runs(job.size // width)
        readers = [
            (lambda base=base: sample(lambda start, stop: self._reader.read(base, start, stop))) for base in bases
        ]
        choices = estimate_choices(sample(job.source.read), readers, layout)
        return self._admissible(choices, bases, layout)[0]

    def _ordered(self, pool: ThreadPoolExecutor, items: Sequence[T], work: Callable[[T], R]) -> Iterator[R]:
        """Map in parallel, in order, with only a few items in flight."""
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > self._threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    # -- choosing

    def _bases(self, job: StoreJob) -> list[TensorId | BlobId]:
        """Candidates: the tensor in the parent, and the whole one at the end of its chain (see `chain`)."""
        if job.parent is None or self._reader.size(job.parent) != job.size or job.size == 0:
            return []
        bases: list[TensorId | BlobId] = [job.parent]
        anchor = anchor_of(self._store, job.parent)
        if anchor is not None and anchor != job.parent:
            bases.append(anchor)
        return bases

    def _choices(
        self,
        job: StoreJob,
        layout: Layout,
        bases: Sequence[TensorId | BlobId],
        words: Callable[[int, int], Words],
        base_words: Callable[[int], Words],
    ) -> list[Choice]:
        runs = sample_runs(job.size // layout.word_bytes)

        def sample(read: Callable[[int, int], Words]) -> Words:
            return np.concatenate([read(start, stop) for start, stop in runs])

        readers = [
            (lambda index=index: sample(lambda start, stop: base_words(index)[start:stop]))
            for index in range(len(bases))
        ]
        return self._admissible(estimate_choices(sample(words), readers, layout), bases, layout)

    def _admissible(self, choices: list[Choice], bases: Sequence[TensorId | BlobId], layout: Layout) -> list[Choice]:
        """Leave out what would make reading too costly."""
        costs = [chain_cost(self._store, base) for base in bases]
        kept = []
        for choice in choices:
            if choice.base is not None:
                cost = costs[choice.base]
                # A sparse record of most values is read like a dense one, and must not chain like a small patch.
                is_dense = choice.codec == "delta" or choice.bits > SPARSE_BELOW * 8 * layout.word_bytes
                if cost + 1.0 > MAX_DENSE_COST if is_dense else cost > MAX_SPARSE_COST:
                    continue
            kept.append(choice)
        return kept

    def _append(
        self, object_id: TensorId | BlobId, start: int, stop: int, total: int, coded: _Coded, layout: Layout
    ) -> int:
        header = encode_header(coded.codec, layout, coded.payloads)
        self._store.append(
            object_id, start=start, stop=stop, total=total, header=header, payload=coded.payloads, base=coded.base
        )
        return coded.size + len(header)


def write_blob(store: WriteStore, data: bytes, *, name: str) -> BlobId:
    """Store bytes without a tensor meaning; returns their id.  `name` is what messages call them."""
    stored = next(iter(TensorWriter(store, threads=1).store([StoreJob(name, BlobSource(data), None, len(data))])))
    if not isinstance(stored.id, BlobId):
        raise BugError(f"{name} was stored as a {stored.id.KIND}")
    return stored.id


def _encode_window(
    choice: Choice,
    words: Words,
    base: Words | None,
    layout: Layout,
    bases: Sequence[TensorId | BlobId],
    effort: Effort,
) -> _Coded:
    codec = CODECS.get(choice.codec)
    step = codec.unit_bytes // layout.word_bytes
    payloads = [
        codec.encode(words[at : at + step], layout, base=None if base is None else base[at : at + step], effort=effort)
        for at in range(0, max(1, words.size), step)
    ]
    return _Coded(codec, None if choice.base is None else bases[choice.base], payloads)


def _changed(words: Words, base: Words, spec: TensorSpec | None) -> int:
    """Elements that differ; an element may be several words (C64) or a part of one (F4)."""
    if spec is not None and spec.kind.bits == 8 * 2 * words.dtype.itemsize:
        return int(np.count_nonzero((words != base).reshape(-1, 2).any(axis=1)))
    return int(np.count_nonzero(words != base))


def _layout(job: StoreJob) -> Layout:
    return _BYTES_LAYOUT if job.spec is None else layout_of(job.spec)


def _identify(job: StoreJob, leaves: Sequence[bytes]) -> TensorId | BlobId:
    return blob_id(job.size, leaves) if job.spec is None else tensor_id(job.spec, leaves)


def _leaves(job: StoreJob, start: int, stop: int) -> list[bytes]:
    return leaf_digests(job.source.read(start, stop))
