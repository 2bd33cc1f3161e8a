"""Fisher estimates of a repository: made once for given weights, data and estimator, kept, and found again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.schema import TaskSettings
from modelgit.errors import MgitError, UsageError
from modelgit.objects import CodedTensor, FisherEstimate, FisherId, GramEntry, KeptEstimate, Manifest
from modelgit.objects.manifest import manifest_id
from modelgit.patching.base import TensorReads
from modelgit.patching.statistics import read_values, store_triangles, store_values
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model, tensors_of
from modelgit.repo.statistics import find_kept, keep, kept_estimates, weights_key
from modelgit.repo.tasks import code_version, encoded, open_task, task_examples, task_settings
from modelgit.store.metadata import read_record, write_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "DEFAULT_EXAMPLES",
    "DEFAULT_SETTLE",
    "Diagonal",
    "FisherOrigin",
    "FoundFisher",
    "PassOptions",
    "StoredFisher",
    "diagonal_of",
    "estimate_fisher",
    "fisher_for_merge",
    "list_estimates",
    "shown_fisher",
    "stored_fisher",
]

DEFAULT_EXAMPLES = 512
DEFAULT_SETTLE = 0.8
"""The overlap of two halves at which a ranking counts as settled (see `fisher.settling`)."""

FisherOrigin = Literal["kept", "received", "made", "none"]


class PassOptions(NamedTuple):
    """How a pass is made: see `estimate_fisher`."""

    estimator: str = "auto"
    examples: int = DEFAULT_EXAMPLES
    seed: int = 0
    exact_storage: bool = False
    settle: float | None = DEFAULT_SETTLE
    grams: bool = False


_USUAL = PassOptions()


class StoredFisher(NamedTuple):
    """An estimate of the repository; `cached` says that it was there already, `origin` from which remote ("": none).

    `bytes_written` is what storing it cost, `resumed` how many of its examples an interrupted pass had seen.
    """

    id: FisherId
    estimate: FisherEstimate
    cached: bool
    origin: str = ""
    bytes_written: int = 0
    resumed: int = 0

    @property
    def words(self) -> str:
        """Where it comes from, for people: what a report says beside a number that rests on it."""
        estimate = self.estimate
        what = f"{estimate.examples} examples of task {estimate.task} ({estimate.estimator})"
        what += ", with Gram matrices" if estimate.grams else ""
        if not self.cached:
            return f"Fisher estimated now on {what}"
        if self.origin:
            return f"Fisher received from {self.origin}, estimated on {what}"
        return f"Fisher kept from an earlier pass over {what}"


class FoundFisher(NamedTuple):
    """The answer to "which Fisher?": an estimate, or None, and in `words` where it comes from or why there is none."""

    how: FisherOrigin
    words: str
    stored: StoredFisher | None = None

    @property
    def estimate(self) -> FisherEstimate | None:
        """The estimate, if there is one."""
        return None if self.stored is None else self.stored.estimate


class Diagonal(Mapping[str, NDArray[np.float32]]):
    """A stored diagonal by tensor name: each array is read when it is asked for, and not kept."""

    def __init__(self, reads: TensorReads, tensors: Mapping[str, CodedTensor]) -> None:
        self._reads = reads
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        return read_values(self._reads, tensor, 0, tensor.elements).reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def diagonal_of(repo: Repository, estimate: FisherEstimate) -> Diagonal:
    """The diagonal as float32 arrays by tensor name, read one at a time."""
    return Diagonal(repo.reader(), estimate.coded())


def estimate_fisher(
    repo: Repository,
    *,
    task: str | None = None,
    revision: str = "HEAD",
    estimator: str = "auto",
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    exact_storage: bool = False,
    settle: float | None = DEFAULT_SETTLE,
    grams: bool = False,
    progress: Progress = SILENT,
) -> StoredFisher:
    """The Fisher diagonal of a task's model at `revision`, on at most `examples` of its training data.

    The pass ends early when the ranking has settled: when the top 0.5 % by two halves of the examples overlap by the
    share `settle` twice in a row (None: never).  Cached by weights, task, data and all arguments; an interrupted pass
    is continued.  Where the data are not at hand, the newest estimate of that task that is kept for these weights is
    the answer.  `exact_storage` keeps float32 values in place of one-byte codes; `grams` takes, on the same examples,
    the Gram matrices of what goes into linear layers, too.  Raises UsageError that says what to write in mgit.toml
    when model or data cannot be found.
    """
    options = PassOptions(estimator, examples, seed, exact_storage, settle, grams)
    name, settings = task_settings(repo, task)
    manifest = repo.manifest_of(repo.resolve(revision))
    return _estimate(repo, manifest, name, settings, options, progress)


def _estimate(
    repo: Repository, manifest: Manifest, name: str, settings: TaskSettings, options: PassOptions, progress: Progress
) -> StoredFisher:
    weights = weights_key(repo, manifest, settings.model)
    data = settings.train or settings.test
    try:
        if data is None:
            raise UsageError(
                f"task `{name}` has no data", hint=f'write `train = "data/train.jsonl"` under [task.{name}]'
            )
        rows, fingerprint = task_examples(repo, settings, data)
    except UsageError:
        # Without data nothing can be made; what came from elsewhere, or was made when there were data, will do.
        for known in list_estimates(repo, weights=weights):
            right = known.estimate.task == name and options.estimator in ("auto", known.estimate.estimator)
            if right and _has_grams(known, options):
                return known
        raise
    # Where the data lie and how they are called do not matter; what they hold does.
    settings_only = msgspec.structs.replace(settings, train=None, test=None)
    code = code_version(repo, settings)
    pass_of = (msgspec.to_builtins(settings_only), fingerprint, options.estimator, options.seed, code)
    choice = (*pass_of, min(options.examples, len(rows)), options.settle)
    plain, more = _key(weights, choice), _key(weights, (*choice, "grams"))
    key = more if options.grams else plain
    for kept in kept_estimates(repo, weights=weights):
        found = _read(repo, kept) if kept.key in {key, more} else None
        if found is not None and not (options.exact_storage and found.estimate.scales):
            return found
    from modelgit.fisher.estimate import Accumulator
    from modelgit.fisher.grams import gram_matrices
    from modelgit.repo.patches.fisher_passes import run_pass

    model = open_task(repo, manifest, settings)
    inputs = encoded(repo, manifest, settings, rows, fingerprint)
    # More examples of the same pass begin with the same ones: what is saved is good for any number.
    saved = repo.paths.passes / _key(weights, pass_of)
    with Accumulator(
        model,
        inputs,
        estimator=options.estimator,
        limit=options.examples,
        seed=options.seed,
        stop_when_settled=options.settle,
        progress=progress,
    ) as work:
        resumed = run_pass(work, saved)
        diagonal, seen = work.result(), work.seen
    del work
    inputs_seen = gram_matrices(model, inputs, seen, progress=progress) if options.grams else None
    with repo.session() as session:
        writer = repo.writer(session, progress=progress)
        stored = store_values(writer, diagonal.values, exact=options.exact_storage, progress=progress)
        grams: tuple[GramEntry, ...] = ()
        more_bytes = 0
        if inputs_seen is not None:
            grams, more_bytes = store_triangles(writer, inputs_seen.matrices, inputs_seen.first, progress=progress)
        record = FisherEstimate(
            of=manifest_id(manifest),
            model=settings.model,
            task=name,
            estimator=diagonal.estimator,
            data=diagonal.data,
            examples=diagonal.examples,
            seed=options.seed,
            diagonal=stored.tensors,
            weights=weights,
            scales=stored.scales,
            head=tuple(sorted(diagonal.head)),
            requested=options.examples,
            criterion=diagonal.criterion,
            overlap=diagonal.overlap,
            grams=grams,
        )
        object_id = write_record(session, FisherId, record)
        session.seal()
        keep(repo, [(key, object_id)], f"fisher: {name}", session=session)
    saved.unlink(missing_ok=True)
    return StoredFisher(object_id, record, False, "", stored.bytes_written + more_bytes, resumed)


def _key(weights: str, choice: tuple[object, ...]) -> str:
    return f"{weights}-{blake3(msgspec.json.encode(choice)).hexdigest()[:24]}"


def _has_grams(stored: StoredFisher, options: PassOptions | None) -> bool:
    """Whether it has Gram matrices where these are asked for."""
    return options is None or not options.grams or bool(stored.estimate.grams)


def _read(repo: Repository, kept: KeptEstimate) -> StoredFisher | None:
    """A kept estimate; None when the store no longer has all of it (then it is simply made again)."""
    try:
        record = read_record(repo.store, kept.id, FisherEstimate)
    except MgitError:
        return None
    if not all(repo.store.has(entry.id) for entry in record.stored):
        return None
    return StoredFisher(kept.id, record, True, kept.origin)


def stored_fisher(repo: Repository, name: str) -> StoredFisher:
    """The kept estimate whose id begins with `name`, or the "latest".  Raises UsageError when there is none."""
    kept = find_kept(repo, name)
    found = _read(repo, kept)
    if found is None:
        raise UsageError(
            f"the Fisher estimate {kept.id.short} is not whole here", hint=f"`mgit fisher remove {kept.id.short}`"
        )
    return found


def shown_fisher(repo: Repository, name: str, *, task: str | None = None) -> StoredFisher:
    """The newest estimate of the weights at the revision `name` (for `task`), or the one whose id `name` begins.

    Raises UsageError when there is neither.
    """
    try:
        manifest = repo.manifest_of(repo.resolve(name))
    except MgitError:
        return stored_fisher(repo, name)
    keys = {weights_key(repo, manifest, model.path) for model in manifest.models}
    for kept in kept_estimates(repo):
        if kept.weights in keys and (found := _read(repo, kept)) and task in (None, found.estimate.task):
            return found
    of, option = ("", "") if task is None else (f" of task {task}", f" --task {task}")
    raise UsageError(
        f"no Fisher estimate{of} is kept of the weights at {name}", hint=f"`mgit fisher {name}{option}` makes one"
    )


def list_estimates(repo: Repository, *, weights: str = "") -> list[StoredFisher]:
    """All estimates that are kept, or those of certain weights, the newest first."""
    found = (_read(repo, kept) for kept in kept_estimates(repo, weights=weights))
    return [stored for stored in found if stored is not None]


def _fisher_for(
    repo: Repository,
    manifest: Manifest,
    settings: TaskSettings,
    task: str,
    *,
    options: PassOptions | None = _USUAL,
    progress: Progress = SILENT,
) -> FoundFisher:
    """The Fisher of a task's model in `manifest`: one that is kept for that task, or one that is made now.

    Without `options` none is made.  What cannot be had is no error: `words` say why.
    """
    weights = weights_key(repo, manifest, settings.model)
    for stored in list_estimates(repo, weights=weights):
        if stored.estimate.task == task and _has_grams(stored, options):
            return _found(stored)
    if options is None:
        return FoundFisher(
            "none", f"no Fisher estimate of task {task} is kept (`mgit fisher REV --task {task}` makes one)"
        )
    try:
        return _found(_estimate(repo, manifest, task, settings, options, progress))
    except MgitError as error:
        return FoundFisher("none", f"no Fisher estimate: {error.message}")


def _found(stored: StoredFisher) -> FoundFisher:
    how: FisherOrigin = "made" if not stored.cached else "received" if stored.origin else "kept"
    return FoundFisher(how, stored.words, stored)


def fisher_for_merge(
    repo: Repository,
    manifest: Manifest,
    base: Manifest,
    model: str,
    *,
    grams: bool = False,
    progress: Progress = SILENT,
) -> FoundFisher:
    """The Fisher of one side of a merge; with `grams` an estimate that has Gram matrices, if there can be one.

    One that is kept for these weights is used, whatever its task.  Otherwise the task whose head this side changed is
    what the side was trained for, and a pass over its data is made; without such a task, or without data, there is
    none.
    """
    tasks = {name: task for name, task in repo.settings.task.items() if task.model == model}
    trained = _tasks_trained(repo, manifest, base, model, tasks)
    chosen = trained[0] if len(trained) == 1 else next(iter(tasks)) if len(tasks) == 1 else None
    kept = list_estimates(repo, weights=weights_key(repo, manifest, model))
    kept.sort(key=lambda item: item.estimate.task != chosen)
    fitting = [item for item in kept if item.estimate.grams or not grams]
    if fitting:
        return _found(fitting[0])
    if chosen is not None:
        options = _USUAL._replace(grams=grams)
        made = _fisher_for(repo, manifest, tasks[chosen], chosen, options=options, progress=progress)
        if made.stored is not None:
            return made
    if kept:
        found = _found(kept[0])
        return found._replace(words=f"{found.words}; it has no Gram matrices, and none can be made here")
    if chosen is None:
        why = "no task of mgit.toml computes with it" if not tasks else "which task it was trained for is not clear"
        return FoundFisher("none", f"no Fisher estimate, and {why} (`mgit fisher REV --task NAME` makes one)")
    return made


def _tasks_trained(
    repo: Repository, manifest: Manifest, base: Manifest, model: str, tasks: Mapping[str, TaskSettings]
) -> list[str]:
    now = tensors_of(repo, manifest, find_model(manifest, model))
    try:
        before = tensors_of(repo, base, find_model(base, model))
    except UsageError:
        before = {}
    changed = {name for name, entry in now.items() if name not in before or before[name].id != entry.id}
    return sorted(name for name, task in tasks.items() if any(tensor.startswith(task.head + ".") for tensor in changed))
