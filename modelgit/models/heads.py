"""Modules that give the outputs of a transformers model in the shape that the rest of the package expects."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

__all__ = ["Logits", "NextTokens", "SentenceEmbedding", "Spans"]

IMPOSSIBLE = -1e4
"""Logit of a class that does not exist: its probability is zero in float64, too, and all arithmetic stays finite."""


class Logits(nn.Module):
    """`logits` as they are: `[B, C]` for whole inputs, `[B, T, C]` for tokens, `[B, D]` for numbers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The logits, float32."""
        logits: torch.Tensor = self.model(**inputs).logits
        return logits.float()


class NextTokens(nn.Module):
    """A causal language model: row t predicts token t + 1, `[B, T - 1, V]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The logits, float32, without those after the last token."""
        logits: torch.Tensor = self.model(**inputs, use_cache=False).logits
        return logits[:, :-1].float()


class Spans(nn.Module):
    """The two ends of an answer, `[B, 2, T]`: classes are the tokens, and padding is a class that is never taken."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits of the first and of the last token, float32."""
        output = self.model(attention_mask=attention_mask, **inputs)
        ends = torch.stack((output.start_logits, output.end_logits), 1).float()
        return ends.masked_fill(attention_mask[:, None] == 0, IMPOSSIBLE)


class SentenceEmbedding(nn.Module):
    """One vector for a text, `[B, D]`: the mean over its tokens, or the first token's, of length 1 if `normalize`."""

    def __init__(self, model: nn.Module, *, pooling: Literal["mean", "first"], normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The embeddings, float32; `attention_mask` is int64 `[B, T]`, 1 where there is a token."""
        hidden: torch.Tensor = self.model(attention_mask=attention_mask, **inputs).last_hidden_state.float()
        if self.pooling == "first":
            pooled = hidden[:, 0]
        else:
            weights = attention_mask.to(hidden.dtype)[:, :, None]
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled
