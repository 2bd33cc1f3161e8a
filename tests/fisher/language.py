"""A language model of a few hundred weights with tied embeddings, and sequences for it, made without any adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from modelgit.models.base import Batch, Example
from modelgit.models.bind import BoundModel

VOCABULARY = 11


class TinyLanguageModel(nn.Module):
    """One layer of causal attention; the output weights are the embedding's."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(32, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Linear(width, width)
        self.out = nn.Linear(width, VOCABULARY, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `[B, T, V]` of int64 `[B, T]`; causal, so padding on the right changes nothing before it."""
        del attention_mask
        hidden = self.embed(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        q, k, v = self.qkv(hidden).chunk(3, dim=-1)
        hidden = hidden + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + torch.tanh(self.mlp(hidden))
        logits: torch.Tensor = self.out(hidden)
        return logits


@dataclass
class Sequences:
    """Token ids of each example; row t is labelled with token t + 1."""

    ids: tuple[tuple[int, ...], ...]
    fingerprint: str = "sequences"

    @property
    def examples(self) -> tuple[Example, ...]:
        """Named by position."""
        return tuple(Example(str(at), " ".join(map(str, ids)), -1) for at, ids in enumerate(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """In order, padded with zeros."""
        del seed
        positions = range(len(self.ids[:limit]))
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            longest = max(len(self.ids[at]) for at in chosen)
            tokens = torch.zeros((len(chosen), longest), dtype=torch.int64)
            labels = torch.full((len(chosen), longest), -1)
            for row, at in enumerate(chosen):
                ids = torch.tensor(self.ids[at])
                tokens[row, : len(ids)] = ids
                labels[row, : len(ids) - 1] = ids[1:]
            yield Batch({"input_ids": tokens}, labels, tuple(chosen), labels >= 0)


def language_model(seed: int = 0) -> BoundModel:
    """Random weights; one tensor for the tied embedding."""
    torch.manual_seed(seed)
    module = TinyLanguageModel()
    names = {name: f"model.{name}" for name, _ in module.named_parameters()}
    return BoundModel(module.eval(), names, frozenset(), VOCABULARY)


def sequences(count: int = 9) -> Sequences:
    """Random sequences of 3 to 9 tokens."""
    draw = torch.Generator().manual_seed(4)
    lengths = torch.randint(3, 10, (count,), generator=draw).tolist()
    return Sequences(tuple(tuple(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()) for n in lengths))
