"""Models of the transformers library: built from config.json without its weights, bound to the tensors of a commit.

Nothing is downloaded and no code of the model's own is run, whatever its config.json asks for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import msgspec
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from modelgit.config.schema import TaskKind, TaskSettings
from modelgit.errors import MissingExtraError, UsageError, did_you_mean
from modelgit.models.base import Example, ExampleSet, Likelihood, TaskModel, TensorState
from modelgit.models.bind import BoundModel, bind
from modelgit.models.heads import Logits, NextTokens, SentenceEmbedding, Spans
from modelgit.models.images import image_set
from modelgit.models.kinds import GAUSSIAN_KINDS, LANGUAGE_KINDS, check_kind, task_kind
from modelgit.models.texts import TextLimits, encode_texts

__all__ = ["TRANSFORMERS", "TransformersAdapter"]

_CLASSES: dict[TaskKind, str] = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sentence-embedding": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}
_LABELLED = frozenset({"sequence-classification", "token-classification", "image-classification"})
# Kinds of which the whole model is the body: their outputs are no task's own.
_HEADLESS = LANGUAGE_KINDS | {"sentence-embedding"}
# Keys of config.json that ask for another way to compute, or for code.
_LEFT_OUT = ("auto_map", "torch_dtype", "dtype", "_name_or_path", "transformers_version", "attn_implementation")
_ENTRY = 'write `entry = "module:function"` under the task in mgit.toml to build the model in Python'
_DEFAULT_HEAD = "classifier"


class TransformersAdapter:
    """Every head that `AutoModelFor...` of transformers builds from config.json, in float32 on the CPU.

    The head is that of the task's `kind`, or the one that `architectures` of config.json names.
    """

    name = "transformers"

    def build(self, settings: TaskSettings, state: TensorState, files: Mapping[str, bytes]) -> TaskModel:
        """The model with the weights of `state`; attention is computed step by step ("eager"), for hooks to see.

        Raises MissingExtraError without transformers, UsageError when config.json describes no model with a head of
        this kind, and when a tensor is missing or has another shape.
        """
        kind = _kind(settings, files)
        config = _config(settings, kind, files)
        model = _empty(config, kind, settings)
        tensors = _Names(model, state, settings)
        tensor_of = {name: tensors.find(name) for name, _ in model.named_parameters()}
        # One missing tensor is spoken of, the first; looking for names like it takes a while.
        missing = next((name for name, tensor in tensor_of.items() if tensor not in state), None)
        hints = {
            tensor: _hint(name, tensor, model, state, kind)
            for name, tensor in tensor_of.items()
            if name == missing or tensor in state
        }
        buffers = _buffers(model, tensors)
        bind(model, state, tensor_of, hints=hints, buffers=buffers)
        head = _head(model, kind)
        wrapped = _wrapped(model, kind, settings)
        wrapped.eval()
        likelihood: Likelihood = "gaussian" if kind in GAUSSIAN_KINDS else "categorical"
        return BoundModel(
            wrapped,
            {f"model.{name}": tensor for name, tensor in tensor_of.items()},
            frozenset(f"model.{name}" for name in head),
            _classes(model, kind),
            likelihood,
        )

    def encode(
        self, settings: TaskSettings, examples: tuple[Example, ...], fingerprint: str, files: Mapping[str, bytes]
    ) -> ExampleSet:
        """Tokens by tokenizer.json, or pixels; never more tokens than the model has positions for."""
        kind = _kind(settings, files)
        if kind == "image-classification":
            return image_set(examples, fingerprint, files)
        config = _config(settings, kind, files)
        limits = TextLimits(
            model_type=config.model_type,
            vocab_size=getattr(config, "vocab_size", None) or 0,
            pad_token_id=getattr(config, "pad_token_id", None),
            max_position_embeddings=getattr(config, "max_position_embeddings", None),
            type_vocab_size=getattr(config, "type_vocab_size", None) or 0,
        )
        return encode_texts(settings, examples, fingerprint, files, kind=kind, limits=limits)


TRANSFORMERS = TransformersAdapter()


def _kind(settings: TaskSettings, files: Mapping[str, bytes]) -> TaskKind:
    kind = task_kind(settings, files)
    if kind is None:
        raise UsageError(
            f"config.json of model `{settings.model}` names no head that the transformers adapter knows",
            hint='write `kind = "..."` under the task in mgit.toml, one of ' + ", ".join(_CLASSES),
        )
    check_kind(settings, kind)
    return kind


def _library() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "building the model needs the `transformers` package", hint="`pip install 'modelgit[transformers]'`"
        ) from error
    return transformers


def _config(settings: TaskSettings, kind: TaskKind, files: Mapping[str, bytes]) -> Any:
    """The configuration as transformers reads it, with the task's number of classes."""
    if "config.json" not in files:
        raise UsageError(
            f"model `{settings.model}` has no config.json, from which transformers builds it",
            hint=f"put config.json beside the weights, or {_ENTRY}",
        )
    try:
        values = msgspec.json.decode(files["config.json"], type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"config.json of model `{settings.model}` is not JSON: {error}", hint=_ENTRY) from error
    library = _library()
    model_type = values.get("model_type")
    known = library.CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in known:
        raise UsageError(
            f"config.json of model `{settings.model}` is of type `{model_type}`, which transformers "
            f"{library.__version__} does not know{did_you_mean(str(model_type), known.keys())}",
            hint=_ENTRY,
        )
    for key in ("quantization_config", "is_encoder_decoder"):
        if values.get(key):
            raise UsageError(
                f"config.json of model `{settings.model}` has `{key}`, which the transformers adapter does not compute",
                hint=_ENTRY,
            )
    if values.get("problem_type") == "multi_label_classification":
        raise UsageError(
            f"model `{settings.model}` gives each input several labels, which the transformers adapter does not read",
            hint=_ENTRY,
        )
    for key in _LEFT_OUT:
        values.pop(key, None)
    outputs = 2 if kind == "question-answering" else len(settings.labels) if kind in _LABELLED else 0
    if outputs:
        values["num_labels"] = outputs
        for key in ("id2label", "label2id"):
            values.pop(key, None)
    try:
        with _quiet(library):
            return known[model_type].from_dict(values)
    except Exception as error:
        raise UsageError(
            f"transformers does not understand config.json of model `{settings.model}`: {error}", hint=_ENTRY
        ) from error


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Warnings of transformers are about what is not used here (generation, speed)."""
    level = library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    try:
        yield
    finally:
        library.logging.set_verbosity(level)


class _EmptyOnMeta(TorchFunctionMode):
    """Weights take no memory and no time to initialise; what is computed (frequencies, masks) is there."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`torch.empty` on the meta device, everything else as it is."""
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def _empty(config: Any, kind: TaskKind, settings: TaskSettings) -> nn.Module:
    """The module without weights, weights tied."""
    library = _library()
    try:
        with _quiet(library), _EmptyOnMeta():
            model: nn.Module = getattr(library, _CLASSES[kind]).from_config(
                config, attn_implementation="eager", trust_remote_code=False
            )
    except ImportError as error:
        raise MissingExtraError(f"transformers cannot build model `{settings.model}`: {error}") from error
    except Exception as error:
        raise UsageError(
            f"transformers builds no {kind} model of config.json of model `{settings.model}`: {error}",
            hint=f"say another `kind`, or {_ENTRY}",
        ) from error
    return model


class _Names:
    """Finds the tensor of each parameter in a checkpoint, whose names may be older or those of a part of the model."""

    def __init__(self, model: nn.Module, state: TensorState, settings: TaskSettings) -> None:
        self.prefix = f"{getattr(model, 'base_model_prefix', '') or '-'}."
        self.head = settings.head
        self.aliases: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.aliases.setdefault(id(parameter), []).append(name)
        self.by_name = dict(model.named_parameters())
        self.known: dict[str, str] = {}
        renamings = _renamings(model)
        for tensor in state:
            renamed = tensor
            for renaming in renamings:
                renamed = renaming(renamed)
            self.known.setdefault(renamed, tensor)
        for tensor in state:
            self.known.setdefault(tensor, tensor)

    def find(self, name: str) -> str:
        """The tensor of parameter or buffer `name`; the name it should have where there is none."""
        parameter = self.by_name.get(name)
        for alias in [name] if parameter is None else self.aliases[id(parameter)]:
            for candidate in self._candidates(alias):
                if candidate in self.known:
                    return self.known[candidate]
        return name

    def _candidates(self, name: str) -> Iterator[str]:
        top, dot, rest = name.partition(".")
        if self.head != _DEFAULT_HEAD and dot and f"{top}." != self.prefix:
            yield f"{self.head}.{rest}"
        yield name
        yield name.removeprefix(self.prefix)
        yield self.prefix + name


def _renamings(model: Any) -> list[Callable[[str], str]]:
    """How names of published checkpoints become those of this version of transformers."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # before version 5, names in modules were those in checkpoints, with this exception
        return [
            lambda name: name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        ]

    def renaming(rule: Any) -> Callable[[str], str]:
        return lambda name: str(rule.rename_source_key(name)[0])

    return [renaming(rule) for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]


def _buffers(model: nn.Module, tensors: _Names) -> dict[str, str]:
    """Buffers that a checkpoint holds, by their tensors; counters may be missing."""
    stored = set(model.state_dict())
    found: dict[str, str] = {}
    for name, buffer in model.named_buffers():
        tensor = tensors.find(name)
        if name in stored and (buffer.is_floating_point() or tensor in tensors.known):
            found[name] = tensor
        elif buffer.is_meta:
            raise UsageError(f"buffer `{name}` of the model is computed in a way that cannot be repeated", hint=_ENTRY)
    return found


def _hint(name: str, tensor: str, model: nn.Module, state: TensorState, kind: TaskKind) -> str:
    """What to write when the tensor of parameter `name` is missing, or is there and does not fit."""
    in_head = not name.startswith(f"{getattr(model, 'base_model_prefix', '')}.") and kind != "sentence-embedding"
    if tensor in state:
        if in_head and kind in _LABELLED:
            return (
                'write `labels = ["first", "second"]` under the task in mgit.toml, in the order of the head\'s outputs'
            )
        return _ENTRY
    if in_head and kind not in LANGUAGE_KINDS:
        return (
            f"the checkpoint holds no head for {kind}, or under another name: write its prefix, "
            f'`head = "..."`, or another `kind` under the task in mgit.toml'
        )
    if in_head:
        return f"the checkpoint holds no head for {kind}: write another `kind` under the task in mgit.toml"
    near = difflib.get_close_matches(tensor, list(state), n=1, cutoff=0.8)
    return f"the nearest name in the checkpoint is `{near[0]}`; {_ENTRY}" if near else _ENTRY


def _head(model: nn.Module, kind: TaskKind) -> frozenset[str]:
    """Parameters that belong to the task and not to the encoder."""
    prefix = getattr(model, "base_model_prefix", "")
    if kind in _HEADLESS or not prefix or not hasattr(model, prefix):
        return frozenset()
    return frozenset(name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}."))


def _wrapped(model: nn.Module, kind: TaskKind, settings: TaskSettings) -> nn.Module:
    if kind == "causal-lm":
        return NextTokens(model)
    if kind == "question-answering":
        return Spans(model)
    if kind == "sentence-embedding":
        return SentenceEmbedding(model, pooling=settings.pooling, normalize=settings.normalize)
    return Logits(model)


def _classes(model: Any, kind: TaskKind) -> int:
    if kind == "question-answering":
        return 0
    if kind in LANGUAGE_KINDS:
        output = model.get_output_embeddings()
        return int(model.config.vocab_size if output is None else output.weight.shape[0])
    if kind == "sentence-embedding":
        return int(model.config.hidden_size)
    return int(model.config.num_labels)
