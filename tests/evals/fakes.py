"""Sides of a comparison for tests of kinds: weights in memory, nothing of a repository."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelgit.config.schema import TaskSettings
from modelgit.config.suites import RunSettings
from modelgit.evals.base import Dataset, SuiteRun
from modelgit.evals.metrics import log_softmax
from modelgit.evals.predictions import Predictions
from modelgit.models.base import Example, ExampleSet, TaskModel
from modelgit.objects import ManifestId
from modelgit.testing.models import TinyModel

TASK = TaskSettings(model="models/tiny", labels=("a", "b", "c"))


class Never:
    """A budget that does not end."""

    def passed(self) -> bool:
        return False


@dataclass
class Told:
    """A side whose predictions are said beforehand, by text; it counts how often scores are kept."""

    said: Mapping[str, Sequence[float]] = field(default_factory=dict)
    name: str = "candidate"
    made: TinyModel | None = None
    folder: Path | None = None
    bytes_and_parameters: tuple[int, int] = (400, 100)
    manifest: ManifestId = field(default_factory=lambda: ManifestId.of(b"m"))
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": "0"})
    kept: dict[str, Any] = field(default_factory=dict)
    loaded: int = 0

    @property
    def weights(self) -> str:
        return f"b3:{self.name}"

    def complete(self, data: Dataset) -> bool:
        return True

    def predictions(self, data: Dataset, indices: NDArray[np.int64] | None = None) -> Predictions:
        wanted = np.arange(len(data), dtype=np.int64) if indices is None else indices
        rows = [self.said[data.examples[int(at)].text] for at in wanted]
        return Predictions(wanted, log_softmax(np.log(np.array(rows))).astype(np.float32))

    def model(self, data: Dataset) -> TaskModel:
        self.loaded += 1
        return self.made.build()

    def encode(self, data: Dataset, indices: NDArray[np.int64]) -> ExampleSet:
        from modelgit.models.load import encode_examples

        chosen = tuple(data.examples[int(at)] for at in indices)
        return encode_examples(
            self.made.settings, chosen, data.fingerprint, self.made.files, trusted=True, root=self.made.root
        )

    def scores(self, key: str) -> Mapping[str, Any] | None:
        return self.kept.get(key)

    def keep_scores(self, key: str, value: Mapping[str, Any]) -> None:
        self.kept[key] = json.loads(msgspec.json.encode(value))

    def checkout(self) -> Path:
        if not (self.folder / "models/tiny").exists():
            self.made.write(self.folder / "models/tiny")
        return self.folder

    def model_path(self, task: TaskSettings) -> str:
        return task.model

    def size(self, task: TaskSettings) -> tuple[int, int]:
        return self.bytes_and_parameters


def examples_of(texts: Sequence[str], labels: Sequence[int] = (), **fields: Sequence[object]) -> tuple[Example, ...]:
    return tuple(
        Example(f"e{at}", text, labels[at] if labels else -1, {name: values[at] for name, values in fields.items()})
        for at, text in enumerate(texts)
    )


def dataset(examples: Sequence[Example], *, task: TaskSettings = TASK, name: str = "data") -> Dataset:
    labels = np.array([example.label for example in examples], dtype=np.int64)
    return Dataset(name=name, task=task, examples=tuple(examples), fingerprint=f"print {name}", labels=labels)


def suite_run(candidate: Told, *baselines: Told, data: Dataset | None = None, **more: Any) -> SuiteRun:
    settings = {
        "identity": "b3:suite",
        "settings": RunSettings(),
        "datasets": {} if data is None else {data.name: data},
        "deadline": Never(),
        "root": Path("."),
        "task": TASK,
        **more,
    }
    return SuiteRun(candidate=candidate, baselines=list(baselines), **settings)
