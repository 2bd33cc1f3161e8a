"""Token ids in batches of similar length, with what each output is to be compared with."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from modelgit.errors import UsageError
from modelgit.models.base import Batch, Example

if TYPE_CHECKING:
    import torch

__all__ = ["TOKENS_PER_BATCH", "TokenSet", "bucketed_order"]

TOKENS_PER_BATCH = 16384
"""A batch has no more tokens than this, padding included, so that long texts do not fill the memory."""

_BUCKET_BATCHES = 16

T = TypeVar("T")


def bucketed_order(
    lengths: tuple[int, ...], size: int, *, seed: int | None, budget: int | None = None
) -> list[list[int]]:
    """Positions in batches of at most `size` whose lengths are similar.

    Without a seed the order is by length, ties by position.  With one, positions are shuffled, sorted by length
    within buckets of 16 batches, and the batches shuffled: little padding, and a new order for every seed.  A batch
    whose examples, padded to the longest, are longer than `budget` together is split; one example is always let in.
    """
    if size < 1:
        raise UsageError(f"a batch of {size} examples; at least 1 is needed")
    order = list(range(len(lengths)))
    if seed is None:
        order.sort(key=lambda position: lengths[position])
        return _within([order[start : start + size] for start in range(0, len(order), size)], lengths, budget)
    draw = random.Random(seed)  # noqa: S311 - order of training examples, not a secret
    draw.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _BUCKET_BATCHES):
        bucket = sorted(order[start : start + size * _BUCKET_BATCHES], key=lambda position: lengths[position])
        batches += [bucket[at : at + size] for at in range(0, len(bucket), size)]
    draw.shuffle(batches)
    return _within(batches, lengths, budget)


def _within(batches: list[list[int]], lengths: tuple[int, ...], budget: int | None) -> list[list[int]]:
    if budget is None:
        return batches
    fitting: list[list[int]] = []
    for batch in batches:
        longest = max(lengths[position] for position in batch)
        size = max(1, budget // max(1, longest))
        fitting += [batch[at : at + size] for at in range(0, len(batch), size)]
    return fitting


@dataclass
class TokenSet:
    """Token ids of each example, padded with `pad_id` when batched.  `fingerprint` is that of the raw data.

    `types` are the segments of the tokens, for pairs of texts.  `targets` are the labels of each output where an
    example has several, and `counted` says which of them exist (None: all of them, and each example has the same
    number).  Held are small integers for each token, and no tensors.
    """

    examples: tuple[Example, ...]
    fingerprint: str
    ids: tuple[tuple[int, ...], ...]
    pad_id: int = 0
    types: tuple[tuple[int, ...], ...] | None = None
    targets: tuple[tuple[int, ...], ...] | None = None
    counted: tuple[tuple[bool, ...], ...] | None = None
    tokens_per_batch: int = TOKENS_PER_BATCH

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """`input_ids` and `attention_mask` (and `token_type_ids`), int64 `[B, T]`, T the longest of the batch.

        Only the first `limit` examples take part.  A batch has at most `tokens_per_batch` tokens, padding included,
        and at least one example.  Raises UsageError for a batch size below one.
        """
        import torch

        lengths = tuple(len(ids) for ids in self.ids[:limit])
        for positions in bucketed_order(lengths, size, seed=seed, budget=self.tokens_per_batch):
            ids = [self.ids[position] for position in positions]
            inputs = {
                "input_ids": _padded(ids, self.pad_id, torch.int64),
                "attention_mask": _padded([(1,) * len(row) for row in ids], 0, torch.int64),
            }
            if self.types is not None:
                inputs["token_type_ids"] = _padded([self.types[position] for position in positions], 0, torch.int64)
            if self.targets is None:
                labels = torch.tensor([self.examples[position].label for position in positions], dtype=torch.int64)
            else:
                labels = _padded([self.targets[position] for position in positions], -1, torch.int64)
            counted = None
            if self.counted is not None:
                counted = _padded([self.counted[position] for position in positions], fill=False, dtype=torch.bool)
            yield Batch(inputs, labels, tuple(positions), counted)

    def select(self, positions: Sequence[int]) -> TokenSet:
        """The examples at `positions`; nothing is tokenised again."""

        def chosen(rows: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(rows[position] for position in positions)

        return replace(
            self,
            examples=chosen(self.examples),
            ids=chosen(self.ids),
            types=None if self.types is None else chosen(self.types),
            targets=None if self.targets is None else chosen(self.targets),
            counted=None if self.counted is None else chosen(self.counted),
        )


def _padded(rows: list[tuple[int, ...]] | list[tuple[bool, ...]], fill: int, dtype: torch.dtype) -> torch.Tensor:
    """`[B, T]` of rows of several lengths, T the longest."""
    import torch

    padded = torch.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
