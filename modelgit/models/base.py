"""What the rest of the package knows of a model that computes: a module, its inputs, its outputs.

A `TaskModel` binds tensors of a commit to a differentiable function, and an `ExampleSet` holds encoded, labelled
inputs.  Adapters make both from `TaskSettings`; Fisher estimation, evaluation and training use nothing else.

Whatever the task, the outputs of one example are R independent distributions.  "categorical" ones have C classes each
and the module gives logits: `[B, C]` for R = 1 (a class for the whole input), `[B, R, C]` else (R tokens of a language
model or of a tagger; the two ends of an answer, where the classes are the tokens).  "gaussian" ones have unit variance
and the module gives means `[B, D]` (a sentence embedding, a regression): KL is then half the squared distance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from modelgit.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from modelgit.config.schema import TaskSettings

__all__ = ["ADAPTERS", "Adapter", "Batch", "Example", "ExampleSet", "Likelihood", "TaskModel", "TensorState"]

Likelihood = Literal["categorical", "gaussian"]


class TensorState(Protocol):
    """Tensors by logical name, read when asked for: what `Repository.load` returns."""

    def __getitem__(self, name: str) -> NDArray[np.generic]: ...
    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...


class Example(NamedTuple):
    """One input and its label.

    `label` indexes the task's labels, -1 when there is none (or when it is no single class).  `text` is the input's
    text, empty when it has none; `fields` are the other fields of the record that the task names: a second text, tags,
    the path of an image.
    """

    id: str
    text: str
    label: int
    fields: Mapping[str, object] = MappingProxyType({})


class Batch(NamedTuple):
    """`inputs` are the keyword arguments of the module, with the example as first axis.

    `labels` is int64 `[B]`, or `[B, R]` where an example has several outputs, -1 where there is none.  `indices` are
    positions in the set.  `counted`, bool `[B, R]`, says which outputs exist (others are padding, and count nowhere);
    None means all.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    indices: tuple[int, ...]
    counted: torch.Tensor | None = None


class ExampleSet(Protocol):
    """Encoded examples in a fixed order, with a fingerprint of the raw data (hex BLAKE3)."""

    examples: tuple[Example, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of at most `size` by similar length; shuffled if `seed` is given; only the first `limit` examples."""

    def select(self, positions: Sequence[int]) -> ExampleSet:
        """The examples at `positions`, in that order, as a set of its own with the same fingerprint."""


class TaskModel(Protocol):
    """A model with a head for one task.

    `module(**batch.inputs)` gives float32 outputs: logits `[B, C]` or `[B, R, C]`, or means `[B, D]`, as `likelihood`
    says (see the module's text).  `classes` is C, the size of the vocabulary for a language model, D for a "gaussian",
    0 where it differs by batch (the tokens of a text).  `tensor_of` maps each parameter name of the module to the
    logical tensor name in the checkpoint (several parameters may be tied to one tensor).  `head` holds the
    parameter names of the task's head.
    """

    module: torch.nn.Module
    tensor_of: Mapping[str, str]
    head: frozenset[str]
    classes: int
    likelihood: Likelihood


class Adapter(Protocol):
    """Builds a task model and encodes data for it."""

    name: str

    def build(self, settings: TaskSettings, state: TensorState, files: Mapping[str, bytes]) -> TaskModel:
        """The module with the weights of `state` copied in.

        `files` holds the small files of the model's directory by base name (`config.json`, `tokenizer.json`).
        Raises UsageError that says what to write in mgit.toml when the settings do not fit the model.
        """

    def encode(
        self, settings: TaskSettings, examples: tuple[Example, ...], fingerprint: str, files: Mapping[str, bytes]
    ) -> ExampleSet:
        """Tokenise `examples`."""


ADAPTERS: Registry[Adapter] = Registry(
    "model adapter",
    "modelgit.adapters",
    {
        "bert-classifier": "modelgit.models.bert:BERT_CLASSIFIER",
        "transformers": "modelgit.models.hf:TRANSFORMERS",
    },
)
