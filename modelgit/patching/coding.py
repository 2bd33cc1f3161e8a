"""What a thread does with one tensor: hash it, ask whether it is known, choose how to code it, and code it.

Tensors of up to a window are read once and hashed before anything else.  Larger ones are coded while they are hashed,
piece by piece in a processor's cache.  Only where it is likely that they are known (the samples equal the parent's, or
there is no parent and the store is not empty) they are hashed first, and every leaf of the second reading is hashed
again and compared, so that what is stored is what was named.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from modelgit.codecs.base import CODECS, Codec, Effort, Layout, Words
from modelgit.codecs.lowrank import decode_factors
from modelgit.errors import BugError
from modelgit.numerics.lowrank import Factors, predict
from modelgit.numerics.nonfinite import ValueCounts, count_nonfinite
from modelgit.numerics.scratch import scratch
from modelgit.objects import LEAF_BYTES, LeafHasher, TensorSpec, leaf_digests, raw_id
from modelgit.patching.base import WINDOW_BYTES, TensorReads, windows
from modelgit.patching.choose import Choice, sample_runs
from modelgit.patching.correct import Product
from modelgit.patching.jobs import SourceChangedError, StoreJob
from modelgit.patching.planner import BYTES_LAYOUT, Ids, Planner, buffer, job_layout
from modelgit.patching.positions import Section
from modelgit.patching.records import UnitChecks
from modelgit.patching.samples import take_sample
from modelgit.progress import SILENT, Progress
from modelgit.store.base import WriteStore

__all__ = ["EXTENT_BYTES", "CodedJob", "CodedWindow", "JobCoder", "JobPlan", "identify"]

EXTENT_BYTES = 64 << 20
_TRY_ALL_BYTES = 64 << 10  # below this every admissible encoding is tried


class CodedJob(NamedTuple):
    """A small tensor in units with their checksums.

    `prelude` is the correction of its base, `section` says where its positions lie.
    """

    codec: Codec
    base: Ids | None
    payloads: list[bytes]
    checks: UnitChecks
    prelude: bytes = b""
    section: Section | None = None

    @property
    def size(self) -> int:
        """Bytes without the header."""
        return len(self.prelude) + sum(map(len, self.payloads))


class JobPlan(NamedTuple):
    """What is to be done with a job.

    With an `id` and no `choice` the object is known, or (`coded`) small and coded already.  With a `choice` it is coded
    window by window; `leaves` are then those of a first reading, if there was one.
    """

    job: StoreJob
    layout: Layout
    bases: Sequence[Ids] = ()
    id: Ids | None = None
    coded: CodedJob | None = None
    changed: int | None = None
    nonfinite: ValueCounts | None = None
    choice: Choice | None = None
    leaves: Sequence[bytes] | None = None
    step: int = WINDOW_BYTES
    preludes: Sequence[bytes] = ()  # corrections of the base, one for each extent
    sections: Sequence[Section] = ()  # of masks that positions may come from
    same_size: bool = False  # whether the parent has as many bytes: only then changed values are counted

    @property
    def base(self) -> Ids | None:
        """What the choice is coded against."""
        return None if self.choice is None or self.choice.base is None else self.bases[self.choice.base]

    @property
    def section(self) -> Section | None:
        """Where the choice takes its positions from."""
        return None if self.choice is None or self.choice.mask is None else self.sections[self.choice.mask]

    @property
    def counts(self) -> bool:
        """Whether changed values are counted on the way: where the parent is read anyway."""
        return self.same_size and self.base == self.job.parent


class CodedWindow(NamedTuple):
    """A window of a large tensor in units, their checksums, the digests of its leaves, and what was counted in it."""

    payloads: list[bytes]
    checks: UnitChecks
    leaves: list[bytes]
    changed: int
    nonfinite: ValueCounts


class JobCoder:
    """Plans jobs and codes their windows, on any number of threads at a time.

    Arguments are those of `TensorWriter`.  Holds some windows a thread.
    """

    def __init__(
        self,
        store: WriteStore,
        reader: TensorReads,
        *,
        effort: Effort = "balanced",
        verify: bool = False,
        products: Callable[[str], Product | None] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.extent_bytes = EXTENT_BYTES
        self._store = store
        self._reader = reader
        self._planner = Planner(store, reader, effort=effort, products=products)
        self._effort: Effort = effort
        self._verify = verify
        self._progress = progress
        self._nothing_known = store.is_first
        self._seen: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def plan(self, job: StoreJob) -> JobPlan:
        """All that a small tensor needs; what a large one needs before its windows are coded."""
        return self._plan_small(job) if job.size <= WINDOW_BYTES else self._plan_large(job)

    def _plan_small(self, job: StoreJob) -> JobPlan:
        layout = job_layout(job)
        words, data = buffer("encode.data", job.size, layout)
        job.source.read_into(0, data)
        leaves = leaf_digests(data)
        object_id = identify(job, leaves)
        plan = JobPlan(job, layout, id=object_id, leaves=leaves)
        if job.parent == object_id:
            return plan._replace(changed=0)
        if self._store.has(object_id):
            return plan
        bases = self._planner.bases(job)
        read: dict[int, Words] = {}

        def base_words(index: int) -> Words:
            if index not in read:
                read[index] = self._planner.read_base(bases[index], 0, job.size, layout, f"encode.base{index}")
            return read[index]

        def base_sample(index: int) -> Callable[[], Words]:
            return lambda: take_sample(base_words(index), runs)

        runs = sample_runs(words.size)
        readers = [base_sample(index) for index in range(len(bases))]
        sections = self._planner.sections(job, bases)
        tries_all = job.size <= _TRY_ALL_BYTES
        if tries_all and not bases:
            choices = [Choice("planes", None, 0.0), Choice("raw", None, 0.0)]  # no need to guess
        else:
            choices = self._planner.choices(job, take_sample(words, runs), readers, bases, sections)
        coded = []
        corrected = self._planner.correct(
            job,
            choices[0],
            bases,
            lambda start, stop: data[start:stop],
            lambda index, start, stop: base_words(index).data.cast("B")[start:stop],
            extent_bytes=self.extent_bytes,
        )
        if corrected is not None:
            choice, (prelude,) = corrected
            codec, predicted = CODECS.get(choice.codec), base_words(choice.base or 0).copy()
            predict(decode_factors(prelude, layout, 0, words.size), predicted, 0, predicted)
            payloads = self._encode(codec, words, predicted, layout)
            coded.append(CodedJob(codec, bases[choice.base or 0], payloads, UnitChecks.of(payloads), prelude))
            choices = []
        for choice in choices if tries_all else choices[:1]:
            base = None if choice.base is None else base_words(choice.base)
            codec = CODECS.get(choice.codec)
            section = None if choice.mask is None else sections[choice.mask]
            payloads = self._encode(codec, words, base, layout, job=job, section=section)
            against = None if choice.base is None else bases[choice.base]
            coded.append(CodedJob(codec, against, payloads, UnitChecks.of(payloads), section=section))
        changed = None
        if bases and self._reader.size(bases[0]) == job.size:
            changed = _changed(words, base_words(0), job.spec)
        return plan._replace(
            coded=min(coded, key=lambda item: item.size + (32 if item.base is not None else 0)),
            changed=changed,
            nonfinite=None if job.spec is None else count_nonfinite(words, job.spec.dtype),
        )

    def _plan_large(self, job: StoreJob) -> JobPlan:
        layout = job_layout(job)
        bases = self._planner.bases(job)
        sample, readers = self._planner.sample(job, bases, layout)
        sections = self._planner.sections(job, bases)
        plan = JobPlan(
            job, layout, bases, sections=sections, same_size=bool(bases) and self._reader.size(bases[0]) == job.size
        )
        if self._may_be_known(job, sample, readers):
            leaves = self._hash(job)
            object_id = identify(job, leaves)
            if job.parent == object_id:
                return plan._replace(id=object_id, changed=0)
            if self._store.has(object_id):
                return plan._replace(id=object_id)
            plan = plan._replace(leaves=leaves)
        choice = self._planner.choices(job, sample, readers, bases, sections)[0]
        corrected = self._planner.correct(
            job,
            choice,
            bases,
            job.source.read,
            lambda index, start, stop: self._planner.read_base(bases[index], start, stop, layout, "encode.base").data,
            extent_bytes=self.extent_bytes,
        )
        plan = plan._replace(choice=choice)
        if corrected is not None:
            plan = plan._replace(choice=corrected[0], preludes=corrected[1])
        step = max(CODECS.get(plan.choice.codec).unit_bytes if plan.choice else 0, job.source.step_bytes)
        return plan._replace(step=step if plan.base is None else max(step, self._reader.grain(plan.base)))

    def _may_be_known(self, job: StoreJob, sample: Words, readers: Sequence[Callable[[], Words]]) -> bool:
        """Whether it is worth hashing a large tensor before anything is coded.

        Without a parent it may be anything that is stored, or a copy of what this writer has just met.
        """
        key = (job.size, xxhash.xxh3_64_intdigest(sample.data))
        with self._lock:
            met = key in self._seen
            self._seen.add(key)
        if met:
            return True
        return np.array_equal(readers[0](), sample) if readers else not self._nothing_known

    def _hash(self, job: StoreJob) -> list[bytes]:
        leaves = LeafHasher()
        for start, stop in windows(job.size, step_bytes=max(job.source.step_bytes, 1 << 20)):
            self._progress.check()
            _, data = buffer("encode.data", stop - start, BYTES_LAYOUT)
            job.source.read_into(start, data)
            leaves.update(data)
        return leaves.finish()

    def code(self, plan: JobPlan, start: int, stop: int) -> CodedWindow:
        """Read, hash and encode one window in pieces."""
        job, layout, base, choice = plan.job, plan.layout, plan.base, plan.choice
        if choice is None:
            raise BugError(f"{job.name} was to be coded without a choice")
        codec = CODECS.get(choice.codec)
        factors = self._factors(plan, start)
        leaves = LeafHasher()
        payloads: list[bytes] = []
        changed = 0
        nonfinite = ValueCounts()
        for low in range(start, stop, plan.step):
            self._progress.check()
            high = min(low + plan.step, stop)
            words, data = buffer("encode.data", high - low, layout)
            job.source.read_into(low, data)
            leaves.update(data)
            against = None
            if base is not None:
                against = self._planner.read_base(base, low, high, layout, "encode.base")
                if plan.counts:
                    changed += _changed(words, against, job.spec)
                if factors is not None:
                    predict(factors, against, low // layout.word_bytes, against)
            first = low // layout.word_bytes
            payloads += self._encode(codec, words, against, layout, job=job, section=plan.section, first=first)
            if job.spec is not None:
                nonfinite += count_nonfinite(words, job.spec.dtype)
        found = leaves.finish()
        first = start // LEAF_BYTES
        if plan.leaves is not None and list(plan.leaves[first : first + len(found)]) != found:
            raise SourceChangedError(
                f"{job.name} changed while it was being committed",
                hint="wait until nothing writes the file, then run `mgit commit` again",
            )
        return CodedWindow(payloads, UnitChecks.of(payloads), found, changed, nonfinite)

    def _factors(self, plan: JobPlan, start: int) -> Factors | None:
        """The correction of the base in the extent that begins at or before byte `start`."""
        if not plan.preludes:
            return None
        number = start // self.extent_bytes
        begin, width = number * self.extent_bytes, plan.layout.word_bytes
        words = (min(begin + self.extent_bytes, plan.job.size) - begin) // width
        return decode_factors(plan.preludes[number], plan.layout, begin // width, words)

    def _encode(
        self,
        codec: Codec,
        words: Words,
        base: Words | None,
        layout: Layout,
        *,
        job: StoreJob | None = None,
        section: Section | None = None,
        first: int = 0,
    ) -> list[bytes]:
        """The units of words from word `first` of a job on, positions from `section` if there is one."""
        step = codec.unit_bytes // layout.word_bytes
        payloads = []
        for at in range(0, max(1, words.size), step):
            unit = words[at : at + step]
            against = None if base is None else base[at : at + step]
            if job is not None:
                codec = self._planner.mask(codec, section, job, first + at, first + at + unit.size)
            payload = codec.encode(unit, layout, base=against, effort=self._effort)
            if self._verify:
                again = scratch("encode.again", unit.size, unit.dtype)
                codec.decode(payload, layout, again, base=against)
                if not np.array_equal(again, unit):
                    raise BugError(f"the codec {codec.name} does not give back what it was given")
            payloads.append(payload)
        return payloads


def _changed(words: Words, base: Words, spec: TensorSpec | None) -> int:
    """Elements that differ; an element may be several words (C64) or a part of one (F4)."""
    if spec is not None and spec.kind.bits == 8 * 2 * words.dtype.itemsize:
        return int(np.count_nonzero((words != base).reshape(-1, 2).any(axis=1)))
    return int(np.count_nonzero(words != base))


def identify(job: StoreJob, leaves: Sequence[bytes]) -> Ids:
    """The id of a job whose leaves have these digests."""
    return raw_id(job.size, job.spec, leaves)
