"""What a suite compares, read from manifests: models whose predictions are kept by weights, and recorded data."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.schema import TaskSettings
from modelgit.config.suites import RunSettings
from modelgit.errors import IntegrityError, UsageError
from modelgit.evals.base import Dataset
from modelgit.evals.cache import PredictionCache, ScoreCache, prediction_key, score_key
from modelgit.evals.predictions import Predictions, PredictionSource, predict
from modelgit.evals.prefix import KeptActivations, kept_activations
from modelgit.evals.suites import DataSource
from modelgit.models.base import Example, ExampleSet, TaskModel
from modelgit.models.data import UNLABELLED, read_examples
from modelgit.models.kinds import UNLABELLED_KINDS
from modelgit.objects import Manifest, ManifestId
from modelgit.objects.manifest import manifest_id
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import file_bytes, find_model, model_files, tensors_of, view_entries, views_of
from modelgit.repo.moves import path_elsewhere
from modelgit.repo.tasks import check_data_path, code_version, encoded, library_versions, open_task, task_examples
from modelgit.repo.weights import weights_tree
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["LoadedModels", "ManifestSide", "read_dataset"]

_MODELS_HELD = 2
_EPSILON = {"float64": 2.0**-23, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative rounding of outputs; those of float64 models are kept as float32."""
_ROUNDING = 512


class LoadedModels:
    """The models that the sides of a run hold in memory: two at most, the candidate's and one of a baseline's."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, bytes], TaskModel] = OrderedDict()

    def get(self, side: ManifestSide, task: TaskSettings) -> TaskModel:
        """The model of a task, loaded unless it is held; the one that was not used for longest goes."""
        key = (id(side), msgspec.json.encode(task))
        found = self._held.pop(key, None)
        if found is None:
            while len(self._held) >= _MODELS_HELD:
                self._held.popitem(last=False)
            found = side.load(task)
        self._held[key] = found
        return found


class ManifestSide:
    """One model directory tree of a comparison (see `evals.base.Side`), read from a manifest.

    `path_from` is the manifest whose paths the tasks name: where a model was moved, its tensors say which it is.
    """

    def __init__(
        self,
        repo: Repository,
        store: ObjectStore,
        manifest: Manifest,
        *,
        name: str,
        settings: RunSettings,
        models: LoadedModels,
        stack: ExitStack,
        path_from: tuple[ObjectStore, Manifest] | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.name = name
        self.manifest: ManifestId = manifest_id(manifest)
        self.weights = weights_tree(repo, manifest, store=store)
        self.versions: Mapping[str, str] = library_versions()
        self._repo = repo
        self._store = store
        self._content = manifest
        self._settings = settings
        self._models = models
        self._stack = stack
        self._path_from = path_from
        self._progress = progress
        self._sources: dict[str, PredictionSource] = {}
        self._files: Path | None = None
        self._other: ManifestSide | None = None

    # -- predictions

    def complete(self, data: Dataset) -> bool:
        """Whether every prediction on `data` is known already."""
        return self._source(data).complete

    def predictions(self, data: Dataset, indices: NDArray[np.int64] | None = None) -> Predictions:
        """One class for each example, from the cache where these weights have been asked before."""
        return self._source(data).predictions(indices)

    def known(self, data: Dataset) -> Predictions | None:
        """The predictions on `data` that need not be computed."""
        return self._source(data).known()

    def compute(self, data: Dataset, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities, float32 `[n, C]`, at ascending `indices`, computed now whatever is known."""
        model = self.model(data)
        return predict(
            model,
            self.encode(data, indices),
            device=self._settings.device,
            kept=self._kept_activations(model, self._task(data.task)),
            progress=self._progress,
        )

    def compare_with(self, other: ManifestSide) -> None:
        """Say with what this is compared: outputs of the layers that both have are kept, if the settings want it."""
        self._other = other

    def _kept_activations(self, model: TaskModel, task: TaskSettings) -> KeptActivations | None:
        limit = self._repo.settings.storage.activations_mib << 20
        if not limit or self._settings.dtype != "float32":
            return None
        import torch

        files = model_files(self._repo, self._content, task.model, store=self._store)
        context = (
            code_version(self._repo, task),
            msgspec.json.encode(msgspec.structs.replace(task, model="", train=None, test=None)),
            sorted((name, blake3(data).hexdigest()) for name, data in files.items()),
            self._settings.device,
            torch.get_num_threads(),
        )
        kept = kept_activations(
            self._repo.paths.activations,
            limit,
            model,
            self._tensor_ids(task),
            {} if self._other is None else self._other._tensor_ids(task),
            context=repr(context),
        )
        return kept if kept is not None and kept.is_useful else None

    def _tensor_ids(self, task: TaskSettings) -> dict[str, str]:
        entry = find_model(self._content, self.model_path(task))
        tensors = tensors_of(self._repo, self._content, entry, store=self._store)
        return {name: item.id.hex for name, item in tensors.items()}

    def verify(self, data: Dataset, count: int, rng: np.random.Generator) -> int:
        """Compute `count` random predictions that are known already again; returns how many there were to try.

        Raises IntegrityError when a label or a probability is another one than the cache says.
        """
        known = self._source(data).known()
        if known is None or not known.indices.size:
            return 0
        chosen = np.sort(rng.choice(known.indices, size=min(count, known.indices.size), replace=False))
        held = known.take(chosen)
        fresh = Predictions(chosen, self.compute(data, chosen))
        # Batches of other examples change the last bits of sums; anything beyond is another model.
        tolerance = _ROUNDING * _EPSILON[self._settings.dtype]
        gap = np.abs(np.exp(fresh.log_probs.astype(np.float64)) - np.exp(held.log_probs.astype(np.float64)))
        sure = np.minimum(fresh.margins, held.margins) > 2 * tolerance
        wrong = (gap > tolerance).any(axis=1) | (sure & (fresh.labels != held.labels))
        wrong |= np.isnan(fresh.log_probs).any(axis=1) != np.isnan(held.log_probs).any(axis=1)
        if wrong.any():
            raise IntegrityError(
                f"{int(wrong.sum()):,} of {chosen.size:,} cached predictions on {data.name} are not what the model "
                f"{self.name} computes",
                hint=f"remove {self._repo.paths.predictions}",
            )
        return int(chosen.size)

    def _source(self, data: Dataset) -> PredictionSource:
        if data.name not in self._sources:
            task = self._task(data.task)
            self._sources[data.name] = PredictionSource(
                self._key(task, data.fingerprint),
                len(data),
                lambda indices: self.compute(data, indices),
                cache=PredictionCache(self._repo.paths.predictions),
            )
        return self._sources[data.name]

    def _key(self, task: TaskSettings, fingerprint: str) -> str:
        entry = find_model(self._content, task.model)
        tensors = [
            *tensors_of(self._repo, self._content, entry, store=self._store).values(),
            *view_entries(views_of(self._repo, self._content, entry, store=self._store)),
        ]
        files = model_files(self._repo, self._content, entry.path, store=self._store)
        return prediction_key(
            tensors,
            task,
            files,
            fingerprint,
            code=code_version(self._repo, task),
            device=self._settings.device.partition(":")[0],
            dtype=self._settings.dtype,
        )

    # -- models

    def model(self, data: Dataset) -> TaskModel:
        """The model that `data` are for."""
        return self._models.get(self, self._task(data.task))

    def load(self, task: TaskSettings) -> TaskModel:
        """Build the model of a task, on the device and in the dtype of the suite."""
        import torch

        model = open_task(self._repo, self._content, task, store=self._store)
        if self._settings.device != "cpu" or self._settings.dtype != "float32":
            try:
                model.module.to(device=self._settings.device, dtype=getattr(torch, self._settings.dtype))
            except (RuntimeError, AssertionError) as error:  # torch without CUDA fails an assertion
                raise UsageError(
                    f"the suite runs on `{self._settings.device}`, which this machine does not have: {error}",
                    hint='`device = "cpu"` under [run] of the suite',
                ) from error
        return model

    def encode(self, data: Dataset, indices: NDArray[np.int64]) -> ExampleSet:
        """The inputs of the examples at `indices`, in that order."""
        subset = tuple(data.examples[int(index)] for index in indices)
        task = self._task(data.task)
        return encoded(self._repo, self._content, task, subset, data.fingerprint, store=self._store)

    def _task(self, task: TaskSettings) -> TaskSettings:
        path = self.model_path(task)
        return task if path == task.model else msgspec.structs.replace(task, model=path)

    def model_path(self, task: TaskSettings) -> str:
        """Where the task's model is: at its path, or where the one was that was moved there, by its tensors' names.

        Moving a model to another directory must not be a way around limits against the parent, and neither is one more
        tensor (see `moves.path_elsewhere`).  Raises UsageError when there is no such model.
        """
        path: str | None = task.model
        if self._path_from is not None:
            store, manifest = self._path_from
            path = path_elsewhere(self._repo, task.model, manifest, self._content, store=store, other_store=self._store)
        return find_model(self._content, path or task.model).path

    def has_model(self, task: TaskSettings) -> bool:
        """Whether the task's model is there, under its name or another."""
        try:
            self.model_path(task)
        except UsageError:
            return False
        return True

    def size(self, task: TaskSettings) -> tuple[int, int]:
        """Bytes of the stored tensors of the task's model, each once, and its parameters."""
        entry = find_model(self._content, self.model_path(task))
        tensors = tensors_of(self._repo, self._content, entry, store=self._store)
        specs = {(item.id, item.spec.dtype): item.spec for item in tensors.values()}.values()
        return sum(spec.size_bytes for spec in specs), sum(spec.elements for spec in specs)

    # -- what tests keep

    def scores(self, key: str) -> dict[str, Any] | None:
        """What `keep_scores` kept for these weights."""
        return ScoreCache(self._repo.paths.predictions).read(score_key(self.weights, key))

    def keep_scores(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a JSON object for these weights."""
        ScoreCache(self._repo.paths.predictions).write(score_key(self.weights, key), value)

    def checkout(self) -> Path:
        """A directory with the files of the manifest, read-only; it goes when the run ends."""
        if self._files is None:
            self._files = _written(self._repo, self._store, self._content, self._stack, self._progress)
        return self._files


def _written(repo: Repository, store: ObjectStore, manifest: Manifest, stack: ExitStack, progress: Progress) -> Path:
    from modelgit.worktree.snapshots import SnapshotCache, SnapshotSource, Wanted

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mgit-eval-")))
    reader = repo.reader(store)
    source = SnapshotSource(
        content=lambda digest: repo.content_at(digest, store=store), reads=lambda _: reader, copy=lambda *_: False
    )
    files = [Wanted(entry.path, entry.size, entry.digest, entry.executable) for entry in manifest.files]
    return SnapshotCache(folder).build(
        manifest_id(manifest), ".", files, source, name="files", threads=repo.threads, progress=progress
    )


def read_dataset(repo: Repository, store: ObjectStore, manifest: Manifest, source: DataSource) -> Dataset:
    """The examples of a suite from the data file that `manifest` records, or else from the work tree.

    Raises UsageError for a path outside of the repository, and for what cannot be read.
    """
    examples, fingerprint = _examples(repo, store, manifest, source)
    return Dataset(
        name=source.name,
        task=source.task,
        examples=examples,
        fingerprint=fingerprint,
        labels=_labels(source, examples),
        slices={name: _values(name, examples) for name in source.slices},
        clusters=None if source.cluster is None else _clusters(source.cluster, examples),
    )


def _examples(
    repo: Repository, store: ObjectStore, manifest: Manifest, source: DataSource
) -> tuple[tuple[Example, ...], str]:
    check_data_path(source.path)
    recorded = manifest.file(source.path)
    if recorded is None:
        return task_examples(repo, source.task, source.path, id_field=source.id_field, also=source.also)
    # The recorded data, not whatever lies in the work tree by now.
    data = file_bytes(repo, recorded.digest, store=store)
    with tempfile.TemporaryDirectory(prefix="mgit-") as folder:
        file = Path(folder) / Path(source.path).name
        file.write_bytes(data)
        # Images lie beside the file that names them, in the work tree.
        return read_examples(
            file,
            source.task,
            shown=source.path,
            folder=((repo.paths.worktree or Path(folder)) / source.path).parent,
            id_field=source.id_field,
            also=source.also,
        )


def _labels(source: DataSource, examples: Sequence[Example]) -> NDArray[np.int64]:
    """The labels of the task; where it reads none and a test wants some, equal values have equal numbers."""
    field = source.task.label
    if source.task.kind not in UNLABELLED_KINDS or field not in source.also:
        return np.array([example.label for example in examples], dtype=np.int64)
    values = [example.fields.get(field) for example in examples]
    numbers = {value: number for number, value in enumerate(sorted({str(v) for v in values if v is not None}))}
    return np.array([UNLABELLED if value is None else numbers[str(value)] for value in values], dtype=np.int64)


def _values(field: str, examples: Sequence[Example]) -> tuple[str, ...]:
    if not any(field in example.fields for example in examples):
        raise UsageError(f"no example has the field `{field}`, by which the suite slices")
    return tuple(str(example.fields.get(field, "")) for example in examples)


def _clusters(field: str, examples: Sequence[Example]) -> NDArray[np.int64]:
    """One number for each value of the field; an example without a value is a cluster of its own."""
    if not any(field in example.fields for example in examples):
        raise UsageError(f"no example has the field `{field}`, which says what the suite draws together")
    numbers: dict[object, int] = {}
    found = []
    for position, example in enumerate(examples):
        value = example.fields.get(field)
        key: object = ("", position) if value is None else str(value)
        found.append(numbers.setdefault(key, len(numbers)))
    return np.array(found, dtype=np.int64)
