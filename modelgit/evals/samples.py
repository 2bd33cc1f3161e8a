"""What a model says to a prompt: generated tokens, or its prediction; the same every time, whatever else is asked.

Generation is a plain loop over `module(**inputs)`: no cache, one prompt at a time, so that neither the other prompts
nor their padding play a part.  Tokens are drawn as the largest of logits / temperature + Gumbel noise (the Gumbel-max
trick: Gumbel 1954; Maddison et al. 2014), and the noise is that of the seed and the prompt alone.  Two models that
are asked with one seed then say different things only as far as their distributions differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import CheckFailed, UsageError
from modelgit.models.base import Batch, TaskModel

if TYPE_CHECKING:
    import torch

__all__ = ["Answer", "Decoding", "Generated", "generate", "predict_one"]

_TOKENS = "input_ids"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """At most `n_tokens` new tokens; `temperature` 0 takes the most likely one each time, and `seed` plays no part.

    Raises UsageError for less than one token or a negative temperature.
    """

    n_tokens: int = 40
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise UsageError(f"{self.n_tokens} tokens cannot be generated; at least 1 is needed")
        if not 0 <= self.temperature < np.inf:
            raise UsageError(f"a temperature of {self.temperature} is not a number from 0 on")


@dataclass(frozen=True)
class Generated:
    """New tokens; `ended` says whether the last one was a stop token (which is not among them)."""

    ids: tuple[int, ...]
    ended: bool


def generate(
    model: TaskModel,
    batch: Batch,
    decoding: Decoding,
    *,
    name: str,
    stop: frozenset[int] = frozenset(),
    positions: int | None = None,
) -> Generated:
    """Continue the one prompt of `batch`, whose inputs hold `input_ids` `[1, T]`; `name` and seed decide the draw.

    The model is causal: row t of its logits is about token t + 1, whether or not it gives a row for the last token.
    Inputs of the same length as the tokens grow with their last value.  At most `positions` tokens are fed.  Raises
    UsageError when the model cannot be run on the prompt, CheckFailed when logits are not finite.
    """
    import torch

    inputs = _one_row(batch, name)
    given = inputs[_TOKENS]
    while given.shape[1] > 1 and int(given[0, -1]) in stop:
        # Tokenizers of some models close every text.
        inputs = {key: value[:, :-1] if value.shape[:2] == given.shape else value for key, value in inputs.items()}
        given = inputs[_TOKENS]
    noise = np.random.Generator(np.random.Philox(key=_key(decoding.seed, name)))
    made: list[int] = []
    # One more token is fed than is known, so that the last known one has a row; the model does not see what follows.
    room = decoding.n_tokens if positions is None else min(decoding.n_tokens, positions - given.shape[1])
    with torch.inference_mode():
        for _ in range(room):
            logits = _next_logits(model, inputs, name)
            if decoding.temperature > 0:
                logits = logits / decoding.temperature + noise.gumbel(size=logits.size)
            token = int(logits.argmax())
            if token in stop:
                return Generated(tuple(made), True)
            made.append(token)
            inputs = _grown(inputs, token)
    return Generated(tuple(made), False)


def _one_row(batch: Batch, name: str) -> dict[str, torch.Tensor]:
    """The inputs of a batch of one without padding."""
    tokens = batch.inputs.get(_TOKENS)
    if tokens is None or tokens.ndim != 2 or len(tokens) != 1:
        raise UsageError(
            f"prompt `{name}` is not one row of `{_TOKENS}`, which a language model continues",
            hint="leave `encode` out of the entry, and let tokenizer.json make the inputs",
        )
    mask = batch.inputs.get("attention_mask")
    length = tokens.shape[1] if mask is None else max(1, int(mask.sum()))
    return {key: value[:, :length] if value.shape[:2] == tokens.shape else value for key, value in batch.inputs.items()}


def _grown(inputs: Mapping[str, torch.Tensor], token: int) -> dict[str, torch.Tensor]:
    """The inputs with one more token; what is as long as the tokens repeats its last value."""
    import torch

    known = inputs[_TOKENS]
    return {
        key: torch.cat([value, torch.full_like(value[:, -1:], token) if key == _TOKENS else value[:, -1:]], dim=1)
        if value.shape[:2] == known.shape
        else value
        for key, value in inputs.items()
    }


def _next_logits(model: TaskModel, inputs: Mapping[str, torch.Tensor], name: str) -> NDArray[np.float64]:
    length = inputs[_TOKENS].shape[1]
    outputs = _outputs(model, _grown(inputs, int(inputs[_TOKENS][0, -1])))
    if outputs.ndim != 3 or outputs.shape[1] < length:
        raise UsageError(f"the model gives {list(outputs.shape)} for {length + 1} tokens, not a row of logits for each")
    return _checked(outputs[0, length - 1], name)


def _checked(row: torch.Tensor, name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = row.double().cpu().numpy()
    if np.isnan(values).any() or not np.isfinite(values.max(initial=-np.inf)):
        raise CheckFailed(
            f"the model's logits for prompt `{name}` are not finite",
            hint="`mgit eval` measures the model on its suites",
        )
    return values


def _outputs(model: TaskModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    parameter = next(model.module.parameters(), None)
    placed = {key: value if parameter is None else value.to(parameter.device) for key, value in inputs.items()}
    try:
        outputs: torch.Tensor = model.module(**placed)
    except (RuntimeError, TypeError, IndexError) as error:
        raise UsageError(f"the model cannot be run on the prompts: {error}") from error
    return outputs


def _key(seed: int, name: str) -> int:
    return int.from_bytes(blake3(f"samples:{seed}:{name}".encode()).digest(length=16), "little")


@dataclass(frozen=True)
class Answer:
    """Probabilities float64 `[R, C]` of the counted outputs, or means `[1, D]` of a gaussian model."""

    values: NDArray[np.float64]
    tokens: tuple[int, ...]


def predict_one(model: TaskModel, batch: Batch, *, name: str) -> Answer:
    """The prediction for the one example of `batch`; `tokens` are its input ids, if it has any.

    Raises UsageError when the model cannot be run on it, CheckFailed when outputs are not finite.
    """
    import torch

    with torch.inference_mode():
        outputs = _outputs(model, batch.inputs)
        rows = outputs.reshape(-1, outputs.shape[-1])
        if batch.counted is not None:
            rows = rows[batch.counted.reshape(-1).to(rows.device)]
        values = np.stack([_checked(row, name) for row in rows])
    if model.likelihood == "categorical":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    tokens = batch.inputs.get(_TOKENS)
    return Answer(values, () if tokens is None else tuple(tokens[0].tolist()))
