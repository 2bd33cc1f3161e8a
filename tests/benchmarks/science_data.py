"""What the parts of the science benchmark share: MiniLM, two labelled tasks, and dense fine-tunes that are made once.

| task | texts | split (seed 11) |
|---|---|---|
| trec | questions of TREC by what is asked for, 6 classes | 1,500 train, 500 validation, 1,000 test |
| reviews | sentences of Rotten Tomatoes by sentiment, 2 classes | the same sizes |

`full` trains all 22.6 M weights.  `top` has embeddings and layers 0 to 2 frozen, their outputs computed once for each
text, and trains the upper three layers (5.3 M weights): about a fifth of the time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from parts import Plan
from safetensors.torch import load_file, save_file
from torch import nn

from modelgit.config.schema import TaskSettings
from modelgit.environment import Environment
from modelgit.integrations.demo.assets import fetch_assets
from modelgit.integrations.demo.texts import Row, read_questions, read_reviews, split_rows
from modelgit.integrations.torch_training import TrainReport, train_classifier
from modelgit.models.base import Batch, Example, ExampleSet, TaskModel
from modelgit.models.bert import BERT_CLASSIFIER, initial_head
from modelgit.models.bind import BoundModel
from modelgit.models.tokens import bucketed_order

__all__ = [
    "EPOCHS", "KINDS", "RATES", "SPLIT_SEED", "TASKS", "Kind", "Task", "accuracy", "dense", "encoded",
    "fine_tune", "logits_of", "new_model", "science_task", "task_of", "weights_of",
]  # fmt: skip

Kind = Literal["full", "top"]
KINDS: tuple[Kind, ...] = ("full", "top")
TASKS = ("trec", "reviews")
SPLIT_SEED = 11
EPOCHS = 3
RATES: dict[Kind, float] = {"full": 1e-4, "top": 2e-4}
"""Rates of the dense fine-tunes, usual ones and not tuned (`full` on trec: 94.4 % of the validation questions)."""

_SIZES, _QUICK = (1500, 500, 1000), (96, 64, 64)
_LENGTHS = {"trec": 24, "reviews": 32}
_FROZEN = 3
_BATCH = 64


@dataclass(frozen=True)
class Task:
    """A task's examples, encoded for `kind`, and a model's settings."""

    name: str
    kind: Kind
    settings: TaskSettings
    train: ExampleSet
    validation: ExampleSet
    test: ExampleSet

    @property
    def classes(self) -> int:
        return len(self.settings.labels)


@cache
def _base() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """The published tensors and the small files beside them."""
    folder = fetch_assets(Environment.capture()).model
    files = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    return load_file(folder / "model.safetensors"), files


@cache
def science_task(name: str, kind: Kind = "full", *, quick: bool = False) -> Task:
    """Task `name` with the splits of the module's text, encoded for `kind`."""
    assets = fetch_assets(Environment.capture())
    rows = read_questions(assets.questions) if name == "trec" else read_reviews(assets.reviews)
    return task_of(name, kind, split_rows(rows, *(_QUICK if quick else _SIZES), seed=SPLIT_SEED), _LENGTHS[name])


def task_of(name: str, kind: Kind, parts: Sequence[Sequence[Row]], length: int) -> Task:
    """A task of training, validation and test rows, of texts that are cut after `length` tokens."""
    labels = tuple(sorted({row.label for part in parts for row in part}))
    settings = TaskSettings(model="m", head="classifier", labels=labels, max_length=length)
    return Task(name, kind, settings, *(encoded(settings, kind, part, f"{name}-{at}") for at, part in enumerate(parts)))


def encoded(settings: TaskSettings, kind: Kind, rows: Sequence[Row], fingerprint: str) -> ExampleSet:
    """`rows` as a model of `kind` takes them; the ids of the examples begin with the fingerprint."""
    whole = _encoded(settings, rows, fingerprint)
    return whole if kind == "full" else _HiddenSet.of(_full_model(settings, 0).module, whole)


def _encoded(settings: TaskSettings, rows: Sequence[Row], fingerprint: str) -> ExampleSet:
    examples = tuple(
        Example(f"{fingerprint}-{at}", row.text, settings.labels.index(row.label)) for at, row in enumerate(rows)
    )
    return BERT_CLASSIFIER.encode(settings, examples, fingerprint, _base()[1])


def new_model(task: Task, *, seed: int = 0) -> TaskModel:
    """The published encoder with a new head drawn by `seed`."""
    model = _full_model(task.settings, seed)
    return model if task.kind == "full" else _top_of(model)


def _full_model(settings: TaskSettings, seed: int) -> TaskModel:
    tensors, files = _base()
    width = json.loads(files["config.json"])["hidden_size"]
    state = {name: value.numpy() for name, value in tensors.items()} | initial_head(settings, width, seed=seed)
    return BERT_CLASSIFIER.build(settings, state, files)


class _TopLayers(nn.Module):
    """The upper layers of a BertClassifier, its mean over tokens and its head, on cached hidden states."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.layer = nn.ModuleDict(
            {str(at): part for at, part in enumerate(whole.body.encoder["layer"]) if at >= _FROZEN}
        )
        self.head = whole.head

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        attend = attention_mask.bool()[:, None, None, :]
        for layer in self.layer.values():
            hidden = layer(hidden, attend)
        weights = attention_mask.to(hidden.dtype)[:, :, None]
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def _top_of(model: TaskModel) -> TaskModel:
    module = _TopLayers(model.module)
    tensor_of = {
        name: model.tensor_of[f"body.encoder.{name}" if name.startswith("layer.") else name]
        for name, _ in module.named_parameters()
    }
    return BoundModel(module.eval(), tensor_of, model.head, model.classes)


@dataclass
class _HiddenSet:
    """What the frozen layers make of each example: float32 `[T, D]` without padding."""

    examples: tuple[Example, ...]
    fingerprint: str
    hidden: tuple[torch.Tensor, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, whole: nn.Module, data: ExampleSet) -> _HiddenSet:
        body = whole.body
        layers = body.encoder["layer"]
        seen: dict[int, torch.Tensor] = {}
        kept: list[torch.Tensor] = []
        hook = layers[_FROZEN].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        for batch in data.batches(_BATCH):
            body(**batch.inputs)
            lengths = batch.inputs["attention_mask"].sum(1).tolist()
            for at, (index, length) in enumerate(zip(batch.indices, lengths, strict=True)):
                seen[index] = kept[-1][at, :length].clone()
            kept.clear()
        hook.remove()
        return cls(data.examples, data.fingerprint, tuple(seen[at] for at in range(len(seen))))

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """`hidden`, float32 `[B, T, D]`, and `attention_mask`."""
        for positions in bucketed_order(tuple(len(rows) for rows in self.hidden[:limit]), size, seed=seed):
            rows = [self.hidden[at] for at in positions]
            hidden = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.arange(hidden.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
            labels = torch.tensor([self.examples[at].label for at in positions])
            yield Batch({"hidden": hidden, "attention_mask": mask.long()}, labels, tuple(positions))

    def select(self, positions: Sequence[int]) -> _HiddenSet:
        """The examples at `positions`."""
        chosen = tuple(self.examples[at] for at in positions)
        return replace(self, examples=chosen, hidden=tuple(self.hidden[at] for at in positions))


def fine_tune(
    model: TaskModel, task: Task, *, lr: float | None = None, epochs: int = EPOCHS, seed: int = 0, **options: object
) -> TrainReport:
    """Train `model` in place on the task's training texts: AdamW, batches of 16, and what `options` say (a mask)."""
    rate = RATES[task.kind] if lr is None else lr
    return train_classifier(model, task.train, epochs=epochs, lr=rate, seed=seed, **options)


def dense(plan: Plan, task: Task, *, seed: int = 0) -> TaskModel:
    """The dense fine-tune with head and order of `seed`, made when first asked for and kept in the work folder."""
    path = plan.work / f"dense-{task.name}-{task.kind}-{seed}{'-quick' if plan.quick else ''}.safetensors"
    model = new_model(task, seed=seed)
    if path.exists():
        model.module.load_state_dict(load_file(path))
    else:
        fine_tune(model, task, seed=seed, epochs=1 if plan.quick else EPOCHS)
        plan.work.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.module.state_dict().items()}, path)
    model.module.eval()
    return model


@torch.no_grad()
def logits_of(model: TaskModel, examples: ExampleSet) -> torch.Tensor:
    """Float32 logits `[N, C]` in the order of the examples."""
    rows: dict[int, torch.Tensor] = {}
    for batch in examples.batches(_BATCH):
        rows |= zip(batch.indices, model.module(**batch.inputs), strict=True)
    return torch.stack([rows[at] for at in range(len(rows))])


def accuracy(model: TaskModel, examples: ExampleSet) -> float:
    """Per cent of the examples whose top class is their label."""
    labels = torch.tensor([example.label for example in examples.examples])
    return float((logits_of(model, examples).argmax(1) == labels).double().mean()) * 100


def weights_of(model: TaskModel) -> dict[str, torch.Tensor]:
    """Copies of the weights by tensor name."""
    return {
        model.tensor_of[name]: value.detach().clone()
        for name, value in model.module.named_parameters()
        if name in model.tensor_of
    }
