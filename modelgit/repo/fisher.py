"""Fisher estimates of a repository: made once for given weights, data and estimator, kept, and found again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.schema import TaskSettings
from modelgit.errors import MgitError, UsageError
from modelgit.objects import FisherEstimate, FisherId, Manifest, TensorEntry, TensorId, TensorSpec
from modelgit.objects.manifest import manifest_id
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import BlobSource, StoreJob
from modelgit.progress import SILENT, Progress
from modelgit.repo.load import find_model, view_entries
from modelgit.repo.tasks import code_version, encoded, open_task, task_examples, task_settings
from modelgit.store.durable import write_durably
from modelgit.store.metadata import read_record, write_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["StoredFisher", "diagonal_of", "estimate_fisher", "estimate_for_merge", "list_estimates", "weights_key"]

DEFAULT_EXAMPLES = 512


class StoredFisher(NamedTuple):
    """An estimate of the repository; `cached` says that it was there already."""

    id: FisherId
    estimate: FisherEstimate
    cached: bool


def weights_key(repo: Repository, manifest: Manifest, model: str) -> str:
    """The name of a model's weights: equal for equal tensors, whatever else the commits hold."""
    entry = find_model(manifest, model)
    tensors = sorted((name, tensor.id.hex) for name, tensor in repo.tensors_of(manifest, entry).items())
    tensors += sorted((view.name, view.id.hex) for view in view_entries(repo.views_of(manifest, entry)))
    return blake3(msgspec.json.encode(tensors)).hexdigest()[:24]


def estimate_fisher(
    repo: Repository,
    *,
    task: str | None = None,
    revision: str = "HEAD",
    estimator: str = "auto",
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    progress: Progress = SILENT,
) -> StoredFisher:
    """The Fisher diagonal of a task's model at `revision`, on the first `examples` of its training data.

    Cached by weights, task, data, estimator, number of examples and seed.  Raises UsageError that says what to write in
    mgit.toml when model or data cannot be found.
    """
    name, settings = task_settings(repo, task)
    manifest = repo.manifest_of(repo.resolve(revision))
    return _estimate(repo, manifest, name, settings, estimator, examples, seed, progress)


def _estimate(
    repo: Repository,
    manifest: Manifest,
    name: str,
    settings: TaskSettings,
    estimator: str,
    examples: int,
    seed: int,
    progress: Progress,
) -> StoredFisher:
    data = settings.train or settings.test
    if data is None:
        raise UsageError(f"task `{name}` has no data", hint=f'write `train = "data/train.jsonl"` under [task.{name}]')
    rows, fingerprint = task_examples(repo, settings, data)
    # Where the data lie and how they are called do not matter; what they hold does.
    settings_only = msgspec.structs.replace(settings, train=None, test=None)
    choice = (
        msgspec.to_builtins(settings_only),
        fingerprint,
        estimator,
        min(examples, len(rows)),
        seed,
        code_version(repo, settings),
    )
    key = f"{weights_key(repo, manifest, settings.model)}-{blake3(msgspec.json.encode(choice)).hexdigest()[:24]}"
    file = repo.paths.estimates / key
    known = _read(repo, file.read_text(encoding="ascii").strip()) if file.exists() else None
    if known is not None:
        return known
    from modelgit.fisher.estimate import estimate

    model = open_task(repo, manifest, settings)
    inputs = encoded(repo, manifest, settings, rows, fingerprint)
    diagonal = estimate(model, inputs, estimator=estimator, limit=examples, seed=seed, progress=progress)
    with repo.lock:
        with repo.session() as session:
            writer = repo.writer(session)
            entries = list(_store(writer, diagonal.values))
            record = FisherEstimate(
                of=manifest_id(manifest),
                model=settings.model,
                task=name,
                estimator=diagonal.estimator,
                data=diagonal.data,
                examples=diagonal.examples,
                seed=seed,
                diagonal=tuple(entries),
            )
            object_id = write_record(session, FisherId, record)
            session.seal()
        repo.paths.estimates.mkdir(parents=True, exist_ok=True)
        write_durably(file, f"{object_id}\n".encode())
    return StoredFisher(object_id, record, False)


def _store(writer: TensorWriter, values: Mapping[str, NDArray[np.float32]]) -> Iterator[TensorEntry]:
    jobs = [
        StoreJob(
            name,
            BlobSource(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data),
            TensorSpec(dtype="F32", shape=tuple(array.shape)),
            array.nbytes,
        )
        for name, array in sorted(values.items())
    ]
    for job, stored in zip(jobs, writer.store(jobs, task="keep"), strict=True):
        if job.spec is not None and isinstance(stored.id, TensorId):
            yield TensorEntry(name=job.name, spec=job.spec, id=stored.id)


def _read(repo: Repository, text: str) -> StoredFisher | None:
    """An estimate by its id; None when the store no longer has all of it (then it is simply made again)."""
    try:
        object_id = FisherId.parse(text)
        record = read_record(repo.store, object_id, FisherEstimate)
    except MgitError:
        return None
    if not all(repo.store.has(entry.id) for entry in record.diagonal):
        return None
    return StoredFisher(object_id, record, True)


def list_estimates(repo: Repository, *, weights: str = "") -> list[StoredFisher]:
    """All estimates that are kept, or those of certain weights, the newest first."""
    if not repo.paths.estimates.is_dir():
        return []
    files = [
        file for file in repo.paths.estimates.iterdir() if file.name.startswith(weights) and "tmp" not in file.name
    ]
    found = []
    for file in sorted(files, key=lambda file: (-file.stat().st_mtime_ns, file.name)):
        stored = _read(repo, file.read_text(encoding="ascii", errors="replace").strip())
        if stored is not None:
            found.append(stored)
    return found


def diagonal_of(repo: Repository, estimate: FisherEstimate) -> dict[str, NDArray[np.float32]]:
    """The diagonal as arrays by tensor name."""
    reader = repo.reader()
    return {
        entry.name: np.frombuffer(reader.read(entry.id, 0, entry.spec.size_bytes), "<f4").reshape(entry.spec.shape)
        for entry in estimate.diagonal
    }


def estimate_for_merge(
    repo: Repository, manifest: Manifest, base: Manifest, model: str, *, progress: Progress = SILENT
) -> tuple[FisherEstimate | None, str | None]:
    """The estimate of one side of a merge, and a sentence about how it was come by, if there is something to say.

    One that is kept for these weights is used.  Otherwise the task whose head this side changed is what the side was
    trained for, and a pass over its data is made; without such a task, or without data, there is none.
    """
    kept = list_estimates(repo, weights=weights_key(repo, manifest, model))
    if kept:
        return kept[0].estimate, None
    tasks = {name: task for name, task in repo.settings.task.items() if task.model == model}
    trained = _tasks_trained(repo, manifest, base, model, tasks)
    chosen = trained[0] if len(trained) == 1 else next(iter(tasks)) if len(tasks) == 1 else None
    if chosen is None:
        why = "no task of mgit.toml computes with it" if not tasks else "which task it was trained for is not clear"
        return None, f"no Fisher estimate, and {why} (`mgit fisher REV --task NAME` makes one)"
    try:
        stored = _estimate(repo, manifest, chosen, tasks[chosen], "auto", DEFAULT_EXAMPLES, 0, progress)
    except MgitError as error:
        return None, f"no Fisher estimate: {error.message}"
    return stored.estimate, f"Fisher estimated on {stored.estimate.examples} examples of task {chosen}"


def _tasks_trained(
    repo: Repository, manifest: Manifest, base: Manifest, model: str, tasks: Mapping[str, TaskSettings]
) -> list[str]:
    now = repo.tensors_of(manifest, find_model(manifest, model))
    try:
        before = repo.tensors_of(base, find_model(base, model))
    except UsageError:
        before = {}
    changed = {name for name, entry in now.items() if name not in before or before[name].id != entry.id}
    return sorted(name for name, task in tasks.items() if any(tensor.startswith(task.head + ".") for tensor in changed))
