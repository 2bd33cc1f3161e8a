"""Models built by the user's own Python: `entry = "module:function"`, run only in a trusted repository."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import cast

import torch
from blake3 import blake3

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Batch, Example, ExampleSet, Likelihood, TaskModel, TensorState
from modelgit.models.bind import BoundModel, bind
from modelgit.models.images import image_set
from modelgit.models.kinds import GAUSSIAN_KINDS, UNLABELLED_KINDS
from modelgit.models.texts import encode_texts
from modelgit.models.tokens import bucketed_order

__all__ = ["InputSet", "build_entry", "encode_entry", "load_entry"]


def build_entry(
    settings: TaskSettings,
    state: TensorState,
    files: Mapping[str, bytes],
    *,
    trusted: bool = False,
    root: Path | None = None,
) -> TaskModel:
    """Call `function(state, files)` of `settings.entry` and make a TaskModel of what it returns.

    A TaskModel is returned as it is.  An `nn.Module` gets the weights of `state`, by parameter name; parameters that
    start with `settings.head` and a dot are the head, and its outputs are means where `settings.kind` is "regression"
    or "sentence-embedding", else logits.  `root` is the directory whose `.py` files go before
    installed packages.  Raises UsageError when the repository is not trusted, when there is no such function, and when
    a parameter has no tensor.
    """
    function = getattr(load_entry(settings, trusted=trusted, root=root), _names(settings)[1], None)
    if not callable(function):
        raise UsageError(f"entry `{settings.entry}` names no function", hint='write `entry = "module:function"`')
    made = function(state, files)
    if not isinstance(made, torch.nn.Module):
        if all(hasattr(made, field) for field in ("module", "tensor_of", "head", "classes")):
            if hasattr(made, "likelihood"):
                return cast(TaskModel, made)
            return BoundModel(made.module, made.tensor_of, made.head, made.classes)
        raise UsageError(f"entry `{settings.entry}` returned {type(made).__name__}, not an nn.Module or a TaskModel")
    tensor_of = {name: name for name, _ in made.named_parameters()}
    buffers = {name for name, _ in made.named_buffers()} & set(made.state_dict())
    hint = f"name the parameters in `{settings.entry}` as the checkpoint does, or return a TaskModel with `tensor_of`"
    bind(
        made,
        state,
        tensor_of,
        hints=dict.fromkeys(tensor_of, hint),
        buffers={name: name for name in buffers if name in state},
    )
    made.eval()
    head = frozenset(name for name in tensor_of if name.startswith(f"{settings.head}."))
    likelihood: Likelihood = "gaussian" if settings.kind in GAUSSIAN_KINDS else "categorical"
    return BoundModel(made, tensor_of, head, _classes(settings, made, head), likelihood)


def encode_entry(
    settings: TaskSettings,
    examples: tuple[Example, ...],
    fingerprint: str,
    files: Mapping[str, bytes],
    *,
    trusted: bool = False,
    root: Path | None = None,
) -> ExampleSet:
    """Inputs by the function `encode` of the entry's module, or by those of the task's kind when it has none.

    `encode(texts, files)` gets a tuple of texts, `encode(examples, files)` one of Examples: what its first parameter
    is called decides.  It returns keyword arguments of the module, tensors whose first axis is the example; a Batch
    of all examples, whose labels and `counted` are then used; or an ExampleSet.  Without it, texts go through
    tokenizer.json and images through preprocessor_config.json, for arguments of the names that transformers uses.
    Raises UsageError as `build_entry` does, and when an axis has another length.
    """
    encode = getattr(load_entry(settings, trusted=trusted, root=root), "encode", None)
    if encode is None:
        if settings.kind == "image-classification":
            return image_set(examples, fingerprint, files)
        return encode_texts(settings, examples, fingerprint, files, kind=settings.kind)
    wants_examples = next(iter(inspect.signature(encode).parameters), "") == "examples"
    made = encode(examples if wants_examples else tuple(example.text for example in examples), files)
    if hasattr(made, "batches"):
        return cast(ExampleSet, made)
    batch = made if isinstance(made, Batch) else Batch(made, _labels(examples), ())
    sized = {**batch.inputs, "labels": batch.labels} | ({} if batch.counted is None else {"counted": batch.counted})
    for name, value in sized.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or len(value) != len(examples):
            raise UsageError(f"`encode` of entry `{settings.entry}` gave `{name}` another length than the examples")
    return InputSet(examples, fingerprint, dict(batch.inputs), batch.labels, batch.counted)


def _labels(examples: tuple[Example, ...]) -> torch.Tensor:
    return torch.tensor([example.label for example in examples], dtype=torch.int64)


@dataclass
class InputSet:
    """Inputs of one size per example, kept whole: tensors whose first axis is the example.

    `labels` are those of the examples where None is given; `counted` says which outputs exist, as in a Batch.
    """

    examples: tuple[Example, ...]
    fingerprint: str
    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None = None
    counted: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Slices of the inputs; only the first `limit` examples take part."""
        labels = _labels(self.examples) if self.labels is None else self.labels
        for positions in bucketed_order((1,) * len(self.examples[:limit]), size, seed=seed):
            rows = torch.tensor(positions)
            yield Batch(
                {name: value[rows] for name, value in self.inputs.items()},
                labels[rows],
                tuple(positions),
                None if self.counted is None else self.counted[rows],
            )

    def select(self, positions: Sequence[int]) -> InputSet:
        """The examples at `positions`; their inputs are copied."""
        rows = torch.tensor(tuple(positions), dtype=torch.int64)
        return InputSet(
            tuple(self.examples[position] for position in positions),
            self.fingerprint,
            {name: value[rows] for name, value in self.inputs.items()},
            None if self.labels is None else self.labels[rows],
            None if self.counted is None else self.counted[rows],
        )


def _names(settings: TaskSettings) -> tuple[str, str]:
    module, colon, function = (settings.entry or "").partition(":")
    if not colon or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"entry `{settings.entry}` is not of the form module:function")
    return module, function


def _classes(settings: TaskSettings, module: torch.nn.Module, head: frozenset[str]) -> int:
    if settings.kind == "question-answering":
        return 0
    if settings.labels and settings.kind not in UNLABELLED_KINDS:
        return len(settings.labels)
    sizes = {parameter.shape[0] for name, parameter in module.named_parameters() if name in head and parameter.ndim}
    if len(sizes) != 1 and settings.kind in UNLABELLED_KINDS:
        return 0
    if len(sizes) != 1:
        raise UsageError(
            f"the number of classes of entry `{settings.entry}` is unknown",
            hint="write `labels = [...]` under the task in mgit.toml, one name per class",
        )
    return int(sizes.pop())


def load_entry(settings: TaskSettings, *, trusted: bool, root: Path | None) -> ModuleType:
    """The module of `settings.entry`, run: one that lies in `root` before an installed one.

    Raises UsageError when it is not trusted or not there.
    """
    name, _ = _names(settings)
    if not trusted:
        raise UsageError(f"entry `{settings.entry}` is code, and this repository is not trusted", hint="`mgit trust`")
    source = root.joinpath(*name.split(".")).with_suffix(".py") if root is not None else None
    with _importable(root):
        if source is None or not source.is_file():
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not name.startswith(error.name):
                    raise
                raise UsageError(f"entry `{settings.entry}`: there is no module `{name}`") from error
        # Under a name of its own: two repositories may both have a `model.py`, and a changed file must count.  What was
        # read is what runs: bytecode beside the file may be of another one (an edit within the same second).
        code = source.read_bytes()
        unique = f"modelgit_entry_{blake3(str(source).encode() + code).hexdigest()[:16]}"
        loader = _SourceLoader(unique, str(source), code)
        spec = importlib.util.spec_from_loader(unique, loader)
        if spec is None:
            raise UsageError(f"entry `{settings.entry}`: {source.name} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module  # dataclasses and pickling look a class's module up
        loader.exec_module(module)
        return module


class _SourceLoader(SourceFileLoader):
    """Loads a module from source that was read already."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the form of the protocol
        """The code of the source, whatever bytecode lies beside it."""
        return self.source_to_code(self._source, self.path)


@contextmanager
def _importable(root: Path | None) -> Iterator[None]:
    """Let the entry import its siblings while it is loaded, and nothing after that."""
    if root is None:
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
