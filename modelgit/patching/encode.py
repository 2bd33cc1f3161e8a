"""Writing tensors: jobs are planned and coded on a pool of threads, and their records appended in order.

What a large tensor is coded to goes into records that get their id at the end; if it turns out to be known, they are
taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from modelgit.codecs.base import CODECS, Effort
from modelgit.errors import BugError
from modelgit.numerics.nonfinite import ValueCounts
from modelgit.objects import BlobId
from modelgit.parallel import Workers
from modelgit.patching.base import WINDOW_BYTES, TensorReads, windows
from modelgit.patching.coding import CodedWindow, JobCoder, JobPlan, identify
from modelgit.patching.correct import Product
from modelgit.patching.jobs import BlobSource, Stored, StoreJob
from modelgit.patching.leaves import write_leaf_table
from modelgit.patching.materialise import TensorReader
from modelgit.patching.planner import Ids
from modelgit.patching.records import UnitChecks, encode_header
from modelgit.progress import SILENT, Progress
from modelgit.store.base import StagedObject, WriteStore

__all__ = ["CORRECTED", "TensorWriter", "write_blob"]

CORRECTED = "lowrank"
"""What reports call records whose base is corrected, whatever codec lies behind the correction."""

_IN_FLIGHT_BYTES = 64 << 20
_GROUP_BYTES = 1 << 20
_GROUP_JOBS = 256


class _Step(NamedTuple):
    """A window of a plan that is coded by window; all of some others."""

    plan: JobPlan | list[JobPlan]
    start: int = 0
    stop: int = 0


_Done = tuple[JobPlan | list[JobPlan], CodedWindow | None]


class TensorWriter:
    """Stores tensors and blobs through a session, `threads` at a time.

    Anonymous memory is bounded by about 64 MiB of raw tensors in flight and some windows a thread, whatever the sizes.
    With `verify` every unit is decoded again before it is written and compared with what went in.  Bases are read
    through `reader`, from `store` unless given.  `products` gives, by the name of a tensor, what is declared to
    have been added to its parent: that is tried before anything is searched.
    """

    def __init__(
        self,
        store: WriteStore,
        *,
        threads: int,
        effort: Effort = "balanced",
        verify: bool = False,
        reader: TensorReads | None = None,
        products: Callable[[str], Product | None] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self._store = store
        self._coder = JobCoder(
            store,
            reader or TensorReader(store),
            effort=effort,
            verify=verify,
            products=products,
            progress=progress,
        )
        self._threads = max(1, threads)
        self._progress = progress

    def store(self, jobs: Iterable[StoreJob], *, task: str = "store") -> Iterator[Stored]:
        """Store every job, yielding results in order.

        Raises SourceChangedError when a source gives different bytes on a second reading.
        """
        with Workers(self._threads, name="mgit-encode") as workers:
            plans = workers.ordered(
                lambda group: [self._coder.plan(job) for job in group],
                self._groups(jobs),
                ahead=8 * self._threads,
                weight=lambda group: min(sum(job.size for job in group), WINDOW_BYTES),
                limit=_IN_FLIGHT_BYTES,
            )
            steps = workers.ordered(self._run, _steps(plans), ahead=self._threads + 2)
            for plan, window in steps:
                if isinstance(plan, JobPlan):
                    yield self._finish_large(plan, window, steps, task)
                else:
                    yield from (self._finish(item, task) for item in plan)

    def _groups(self, jobs: Iterable[StoreJob]) -> Iterator[list[StoreJob]]:
        """Small tensors by the hundred: handing one over to a thread costs more than coding it."""
        group: list[StoreJob] = []
        size = 0
        for job in jobs:
            self._progress.check()
            if group and (size + job.size > _GROUP_BYTES or len(group) >= _GROUP_JOBS):
                yield group
                group, size = [], 0
            group.append(job)
            size += job.size
        if group:
            yield group

    def _run(self, step: _Step) -> _Done:
        if isinstance(step.plan, JobPlan):
            return step.plan, self._coder.code(step.plan, step.start, step.stop)
        return step.plan, None

    # -- finishing, in the order of the jobs

    def _finish(self, plan: JobPlan, task: str) -> Stored:
        job, object_id, coded = plan.job, plan.id, plan.coded
        if object_id is None:
            raise BugError(f"{job.name} has no id")
        self._progress.advance(task, job.size)
        if coded is None or self._store.has(object_id):
            return Stored(job.name, object_id, "known", 0, plan.changed, plan.nonfinite)
        header = encode_header(coded.codec, plan.layout, coded.checks, prelude=coded.prelude, section=coded.section)
        self._store.append(
            object_id,
            start=0,
            stop=job.size,
            total=job.size,
            header=header,
            payload=(coded.prelude, *coded.payloads),
            base=coded.base,
            positions=None if coded.section is None else coded.section.blob,
        )
        written = coded.size + len(header)
        written += write_leaf_table(self._store, object_id, job.size, job.spec, plan.leaves or ())
        codec = CORRECTED if coded.prelude else coded.codec.name
        return Stored(job.name, object_id, codec, written, plan.changed, plan.nonfinite)

    def _finish_large(self, plan: JobPlan, first: CodedWindow | None, steps: Iterator[_Done], task: str) -> Stored:
        """Write the windows of one tensor as they come."""
        job, choice = plan.job, plan.choice
        if choice is None:
            raise BugError(f"{job.name} was coded without a choice")
        staged = self._store.stage()
        leaves: list[bytes] = []
        checks = UnitChecks()
        begin = end = written = changed = 0
        nonfinite = ValueCounts()
        window = first
        while window is not None:
            prelude = plan.preludes[begin // self._coder.extent_bytes] if plan.preludes else b""
            if end == begin and prelude:
                staged.write([prelude])
            size = min(WINDOW_BYTES, job.size - end)
            end += size
            staged.write(window.payloads)
            checks.extend(window.checks)
            leaves += window.leaves
            changed += window.changed
            nonfinite += window.nonfinite
            self._progress.advance(task, size)
            if end - begin >= self._coder.extent_bytes or end == job.size:
                codec, section = CODECS.get(choice.codec), plan.section
                header = encode_header(codec, plan.layout, checks, prelude=prelude, section=section)
                written += staged.end_record(
                    start=begin,
                    stop=end,
                    total=job.size,
                    header=header,
                    base=plan.base,
                    positions=None if section is None else section.blob,
                )
                begin, checks = end, UnitChecks()
            window = None if end == job.size else next(steps)[1]
        object_id = identify(job, leaves)
        known = self._keep(staged, object_id)
        if not known:
            written += write_leaf_table(self._store, object_id, job.size, job.spec, leaves)
        return Stored(
            job.name,
            object_id,
            "known" if known else CORRECTED if plan.preludes else choice.codec,
            0 if known else written,
            0 if object_id == job.parent else changed if plan.counts else None,
            None if job.spec is None else nonfinite,
        )

    def _keep(self, staged: StagedObject, object_id: Ids) -> bool:
        """Keep what was staged unless the object turned out to be known; returns whether it did."""
        if self._store.has(object_id):
            staged.discard()
            return True
        staged.name(object_id)
        return False


def write_blob(store: WriteStore, data: bytes, *, name: str, parent: BlobId | None = None) -> BlobId:
    """Store bytes without a tensor meaning; returns their id.

    `name` is what messages call them, `parent` an earlier version that they may be coded against.
    """
    job = StoreJob(name, BlobSource(data), None, len(data), parent)
    stored = next(iter(TensorWriter(store, threads=1).store([job])))
    if not isinstance(stored.id, BlobId):
        raise BugError(f"{name} was stored as a {stored.id.KIND}")
    return stored.id


def _steps(groups: Iterable[list[JobPlan]]) -> Iterator[_Step]:
    for group in groups:
        done: list[JobPlan] = []
        for plan in group:
            if plan.choice is None:
                done.append(plan)
                continue
            if done:
                yield _Step(done)
                done = []
            for start, stop in windows(plan.job.size):
                yield _Step(plan, start, stop)
        if done:
            yield _Step(done)
