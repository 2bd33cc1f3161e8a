"""A BERT encoder in plain torch with Hugging Face tensor names, mean pooling and a linear head per task."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example, ExampleSet, TaskModel, TensorState
from modelgit.models.bind import BoundModel, bind
from modelgit.models.texts import TextLimits, encode_texts

__all__ = ["BERT_CLASSIFIER", "BertClassifier", "BertClassifierAdapter", "BertConfig", "initial_head"]

_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_ENTRY_HINT = 'write `entry = "module:function"` under the task in mgit.toml to build the model in Python'


class BertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a Hugging Face config.json that shapes the computation; other keys are ignored."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    model_type: str = "bert"
    pad_token_id: int = 0

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> BertConfig:
        """Parse `config.json`.  Raises UsageError when it is missing or describes another architecture."""
        if "config.json" not in files:
            raise UsageError("the model's directory has no config.json, which gives the sizes of the encoder")
        try:
            config = msgspec.json.decode(files["config.json"], type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UsageError(f"config.json is not that of a BERT model: {error}", hint=_ENTRY_HINT) from error
        if config.model_type != "bert":
            raise UsageError(f"config.json describes a `{config.model_type}` model, not `bert`", hint=_ENTRY_HINT)
        if config.hidden_act not in _ACTIVATIONS or config.position_embedding_type != "absolute":
            raise UsageError(
                f"config.json asks for activation `{config.hidden_act}` and `{config.position_embedding_type}` "
                "positions, which the bert-classifier adapter does not compute",
                hint=_ENTRY_HINT,
            )
        if config.hidden_size % config.num_attention_heads:
            raise UsageError(
                f"config.json divides {config.hidden_size} units among {config.num_attention_heads} attention heads"
            )
        return config


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape

        def split(values: torch.Tensor) -> torch.Tensor:
            return values.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.query(hidden)), split(self.key(hidden)), split(self.value(hidden)), attn_mask=attend
        )
        return mixed.transpose(1, 2).reshape(batch, length, width)


class _Output(nn.Module):
    """A projection back to the residual stream, and the normalisation after the sum."""

    def __init__(self, inner: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, inner: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.LayerNorm(self.dense(inner) + residual)
        return normed


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(config), "output": _Output(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = _Output(config.intermediate_size, config)
        self.approximate = _ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        hidden = self.attention["output"](self.attention["self"](hidden, attend), hidden)
        inner = functional.gelu(self.intermediate["dense"](hidden), approximate=self.approximate)
        output: torch.Tensor = self.output(inner, hidden)
        return output


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding, which is drawn at random except on the meta device: there torch loads its compiler to draw."""
    values = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=values if values.is_meta else nn.init.normal_(values))


class _Encoder(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": _table(config.vocab_size, width),
                "position_embeddings": _table(config.max_position_embeddings, width),
                "token_type_embeddings": _table(config.type_vocab_size, width),
                "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = self.embeddings["LayerNorm"](
            self.embeddings["word_embeddings"](input_ids)
            + self.embeddings["position_embeddings"](positions)
            + self.embeddings["token_type_embeddings"](
                torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            )
        )
        attend = attention_mask.bool()[:, None, None, :]
        for layer in self.encoder["layer"].children():
            hidden = layer(hidden, attend)
        weights = attention_mask.to(hidden.dtype)[:, :, None]
        pooled: torch.Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return pooled


class BertClassifier(nn.Module):
    """Encoder, mean over the attended tokens, one linear layer.  It has no dropout, so training is deterministic."""

    def __init__(self, config: BertConfig, classes: int) -> None:
        super().__init__()
        self.body = _Encoder(config)
        self.head = nn.Linear(config.hidden_size, classes)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits `[B, C]` of `input_ids` and `attention_mask` (1 where there is a token), both int64 `[B, T]`.

        `token_type_ids` tells the texts of a pair apart; without it there is one text.
        """
        logits: torch.Tensor = self.head(self.body(input_ids, attention_mask, token_type_ids))
        return logits


def initial_head(settings: TaskSettings, width: int, *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Tensors for a new, untrained head: weights from N(0, 1/`width`), biases zero.

    `width` is the encoder's hidden size.  Raises UsageError when the settings name fewer than two labels.
    """
    classes = len(settings.labels)
    if classes < 2:
        raise UsageError(f"a new head `{settings.head}` needs the task's labels", hint=_labels_hint())
    weight = np.random.default_rng(seed).standard_normal((classes, width)) / math.sqrt(width)
    return {
        f"{settings.head}.weight": weight.astype(np.float32),
        f"{settings.head}.bias": np.zeros(classes, np.float32),
    }


def _labels_hint() -> str:
    return 'write `labels = ["first", "second"]` under the task in mgit.toml'


class BertClassifierAdapter:
    """Classifiers on a BERT encoder (`embeddings.*`, `encoder.layer.*`, with or without the prefix `bert.`).

    The head is read from the tensors `HEAD.weight` `[C, hidden_size]` and `HEAD.bias` `[C]`; `pooler.*` and other
    tensors take no part.
    """

    name = "bert-classifier"

    def build(self, settings: TaskSettings, state: TensorState, files: Mapping[str, bytes]) -> TaskModel:
        """The classifier in float32, on the CPU.

        Raises UsageError when config.json is not BERT's, when a tensor is missing or has another shape, and when the
        head's outputs are not as many as the task's labels.
        """
        _check_kind(settings)
        config = BertConfig.read(files)
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in state else ""
        weight, bias = f"{settings.head}.weight", f"{settings.head}.bias"
        head_hint = (
            f'the head\'s tensors start with `{settings.head}`; write `head = "..."` under the task in mgit.toml'
        )
        if weight not in state:
            raise UsageError(
                f"the checkpoint has no tensor `{weight}`, the head of the task",
                hint=f'{head_hint}, add one to the checkpoint, or do without: `kind = "sentence-embedding"`',
            )
        classes = int(state[weight].shape[0])
        if settings.labels and len(settings.labels) != classes:
            raise UsageError(
                f"tensor `{weight}` has {classes} outputs and the task names {len(settings.labels)} labels",
                hint=_labels_hint(),
            )
        with torch.device("meta"):  # nothing is allocated or initialised twice
            module = BertClassifier(config, classes)
        tensor_of = {
            name: prefix + name.removeprefix("body.") if name.startswith("body.") else f"{settings.head}{name[4:]}"
            for name, _ in module.named_parameters()
        }
        hints = dict.fromkeys(tensor_of.values(), _ENTRY_HINT) | {weight: head_hint, bias: head_hint}
        bind(module, state, tensor_of, hints=hints)
        module.eval()
        return BoundModel(module, tensor_of, frozenset({"head.weight", "head.bias"}), classes)

    def encode(
        self, settings: TaskSettings, examples: tuple[Example, ...], fingerprint: str, files: Mapping[str, bytes]
    ) -> ExampleSet:
        """Word pieces, at most `max_length` of them (never more than the model has positions for)."""
        _check_kind(settings)
        config = BertConfig.read(files)
        limits = TextLimits(
            model_type="bert",
            pad_token_id=config.pad_token_id,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
        )
        return encode_texts(settings, examples, fingerprint, files, limits=limits)


def _check_kind(settings: TaskSettings) -> None:
    if settings.kind not in (None, "sequence-classification"):
        raise UsageError(
            f"the bert-classifier adapter gives one class for each text, and the task is of kind `{settings.kind}`",
            hint='write `adapter = "transformers"` under the task in mgit.toml',
        )


BERT_CLASSIFIER = BertClassifierAdapter()
