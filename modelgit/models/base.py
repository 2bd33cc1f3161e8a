"""What the rest of the package knows of a model that computes: a module, its inputs, its logits.

A `TaskModel` binds tensors of a commit to a differentiable function, and an `ExampleSet` holds encoded, labelled
inputs.  Adapters make both from `TaskSettings`; Fisher estimation, evaluation and training use nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from modelgit.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from modelgit.config.schema import TaskSettings

__all__ = ["ADAPTERS", "Adapter", "Batch", "Example", "ExampleSet", "TaskModel", "TensorState"]


class TensorState(Protocol):
    """Tensors by logical name, read when asked for: what `Repository.load` returns."""

    def __getitem__(self, name: str) -> NDArray[np.generic]: ...
    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...


class Example(NamedTuple):
    """One labelled text.  `label` indexes the task's labels, -1 when there is none."""

    id: str
    text: str
    label: int


class Batch(NamedTuple):
    """`inputs` are the keyword arguments of the module; `labels` is int64 `[B]`; `indices` are positions in the set."""

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    indices: tuple[int, ...]


class ExampleSet(Protocol):
    """Encoded examples in a fixed order, with a fingerprint of the raw data (hex BLAKE3)."""

    examples: tuple[Example, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches of at most `size` by similar length; shuffled if `seed` is given; only the first `limit` examples."""


class TaskModel(Protocol):
    """A model with a head for one task.

    `module(**batch.inputs)` gives float32 logits `[B, C]`.  `tensor_of` maps each parameter name of the module to the
    logical tensor name in the checkpoint (several parameters may be tied to one tensor).  `head` holds the
    parameter names of the task's head.
    """

    module: torch.nn.Module
    tensor_of: Mapping[str, str]
    head: frozenset[str]
    classes: int


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
    {"bert-classifier": "modelgit.models.bert:BERT_CLASSIFIER"},
)
