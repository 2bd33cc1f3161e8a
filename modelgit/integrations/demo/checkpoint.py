"""The base of the demo: the encoder as it was published, and a head for each task, fitted on its frozen features."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from modelgit.config.schema import TaskSettings
from modelgit.integrations.demo.texts import TaskTexts
from modelgit.models.base import Example
from modelgit.models.bert import initial_head
from modelgit.models.load import build_task, encode_examples
from modelgit.progress import SILENT, Progress

if TYPE_CHECKING:
    from modelgit.models.base import ExampleSet, TaskModel

__all__ = ["BODY", "HEADS", "MODEL", "head_name", "write_base"]

MODEL = "models/minilm"
BODY = "model.safetensors"
HEADS = "heads.safetensors"
_SMALL_FILES = ("config.json", "tokenizer.json")
_BATCH = 64
_WEIGHT_DECAY = 3e-3
_STEPS = 100
_EXAMPLES = 1500
_TASK = "Fitting heads"


def head_name(task: str) -> str:
    """The prefix of the tensors of a task's head."""
    return f"heads.{task}"


def write_base(root: Path, published: Path, tasks: Sequence[TaskTexts], *, progress: Progress = SILENT) -> None:
    """Make the checkpoint `models/minilm` in `root`: the files of `published`, and heads.safetensors.

    Each head is fitted on the first 1,500 texts to train on, for which the encoder runs once.
    `published` is a directory with model.safetensors (a BERT encoder), config.json and tokenizer.json.
    """
    folder = root / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    for name in (BODY, *_SMALL_FILES):
        shutil.copyfile(published / name, folder / name)
    files = {name: (folder / name).read_bytes() for name in _SMALL_FILES}
    state: dict[str, NDArray[np.generic]] = dict(load_file(folder / BODY))
    width = state["embeddings.LayerNorm.weight"].shape[0]
    heads: dict[str, NDArray[np.float32]] = {}
    progress.start(_TASK, sum(len(task.train[:_EXAMPLES]) for task in tasks), unit="examples")
    try:
        for task in tasks:
            settings = TaskSettings(
                model=MODEL, head=head_name(task.name), labels=task.labels, max_length=task.max_length
            )
            head = initial_head(settings, width)
            model = build_task(settings, {**state, **head}, files)
            examples = tuple(
                Example(str(number), row.text, task.labels.index(row.label))
                for number, row in enumerate(task.train[:_EXAMPLES])
            )
            features = _features(model, encode_examples(settings, examples, task.name, files), progress)
            labels = torch.tensor([example.label for example in examples])
            weight, bias = _fit(features, labels, len(task.labels))
            heads |= {f"{settings.head}.weight": weight, f"{settings.head}.bias": bias}
    finally:
        progress.finish(_TASK)
    save_file(heads, folder / HEADS, metadata={"format": "pt"})


@torch.no_grad()
def _features(model: TaskModel, examples: ExampleSet, progress: Progress) -> torch.Tensor:
    """What the head sees of each example: float32 `[N, hidden_size]`."""
    rows: list[torch.Tensor] = []
    hook = model.module.get_submodule("head").register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    order: list[int] = []
    try:
        for batch in examples.batches(_BATCH):
            progress.check()
            model.module(**batch.inputs)
            order += batch.indices
            progress.advance(_TASK, len(batch.indices))
    finally:
        hook.remove()
    seen = torch.cat(rows)
    features = torch.empty_like(seen)
    features[order] = seen
    return features


def _fit(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logistic regression with weight decay: convex, so that there is one answer, whatever the machine."""
    inputs = features.double()
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels)
        value = value + _WEIGHT_DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().float().numpy(), bias.detach().float().numpy()
