"""Texts as token ids by the model's own tokenizer.json, batched by length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import torch

from modelgit.config.schema import TaskSettings
from modelgit.errors import MissingExtraError, UsageError
from modelgit.models.base import Batch, Example

__all__ = ["TokenSet", "bucketed_order", "encode_texts"]

_BUCKET_BATCHES = 16


def bucketed_order(lengths: tuple[int, ...], size: int, *, seed: int | None) -> list[list[int]]:
    """Positions in batches of at most `size` whose lengths are similar.

    Without a seed the order is by length, ties by position.  With one, positions are shuffled, sorted by length
    within buckets of 16 batches, and the batches shuffled: little padding, and a new order for every seed.
    """
    if size < 1:
        raise UsageError(f"a batch of {size} examples; at least 1 is needed")
    order = list(range(len(lengths)))
    if seed is None:
        order.sort(key=lambda position: lengths[position])
        return [order[start : start + size] for start in range(0, len(order), size)]
    draw = random.Random(seed)  # noqa: S311 - order of training examples, not a secret
    draw.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _BUCKET_BATCHES):
        bucket = sorted(order[start : start + size * _BUCKET_BATCHES], key=lambda position: lengths[position])
        batches += [bucket[at : at + size] for at in range(0, len(bucket), size)]
    draw.shuffle(batches)
    return batches


@dataclass
class TokenSet:
    """Token ids of each example, padded with `pad_id` when batched.  `fingerprint` is that of the raw data."""

    examples: tuple[Example, ...]
    fingerprint: str
    ids: tuple[tuple[int, ...], ...]
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        """`input_ids` and `attention_mask`, int64 `[B, T]`, T the longest of the batch.

        Only the first `limit` examples take part.  Raises UsageError for a batch size below one.
        """
        for positions in bucketed_order(tuple(len(ids) for ids in self.ids[:limit]), size, seed=seed):
            length = max(len(self.ids[position]) for position in positions)
            input_ids = torch.full((len(positions), length), self.pad_id, dtype=torch.int64)
            attention = torch.zeros((len(positions), length), dtype=torch.int64)
            for row, position in enumerate(positions):
                ids = self.ids[position]
                input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
                attention[row, : len(ids)] = 1
            labels = torch.tensor([self.examples[position].label for position in positions], dtype=torch.int64)
            yield Batch({"input_ids": input_ids, "attention_mask": attention}, labels, tuple(positions))

    def select(self, positions: Sequence[int]) -> TokenSet:
        """The examples at `positions`; nothing is tokenised again."""
        chosen = tuple(self.examples[position] for position in positions)
        return replace(self, examples=chosen, ids=tuple(self.ids[position] for position in positions))


def encode_texts(
    settings: TaskSettings,
    examples: tuple[Example, ...],
    fingerprint: str,
    files: Mapping[str, bytes],
    *,
    max_length: int,
    pad_id: int = 0,
) -> TokenSet:
    """Tokenise with special tokens, cut at `max_length` tokens.

    The tokenizer is `tokenizer.json` of `files`, or the file that `settings.tokenizer` names.  Raises
    MissingExtraError without the `tokenizers` package, UsageError when the file is missing or unreadable.
    """
    name = PurePosixPath(settings.tokenizer).name if settings.tokenizer else "tokenizer.json"
    if name not in files:
        raise UsageError(
            f"`{name}` is not among the files of model `{settings.model}`",
            hint='write `tokenizer = "FILE"` under the task in mgit.toml, or put tokenizer.json beside the weights',
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            "reading text needs the `tokenizers` package", hint="`pip install 'modelgit[text]'`"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(files[name].decode("utf-8"))
    except Exception as error:
        raise UsageError(f"`{name}` is not a tokenizer file: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    encodings = tokenizer.encode_batch([example.text for example in examples])
    ids = tuple(tuple(encoding.ids) for encoding in encodings)
    empty = next((row for row, tokens in enumerate(ids) if not tokens), None)
    if empty is not None:
        raise UsageError(f"example `{examples[empty].id}` has no tokens")
    return TokenSet(examples, fingerprint, ids, pad_id)
