"""Texts as token ids by the model's own tokenizer.json, with the outputs that the kind of the task asks for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from modelgit.config.schema import TaskKind, TaskSettings
from modelgit.errors import MissingExtraError, UsageError
from modelgit.models.base import Example
from modelgit.models.kinds import LANGUAGE_KINDS
from modelgit.models.tokens import TOKENS_PER_BATCH, TokenSet

__all__ = ["TextLimits", "encode_texts", "load_tokenizer"]

MASKED_FRACTION = 0.15
"""Share of the tokens that a masked language model has to fill in, as in BERT's training (Devlin et al. 2019)."""

_CHUNK = 512
_MASK_TOKENS = ("[MASK]", "<mask>")
_LOGITS_PER_BATCH = 1 << 26
# Positions of these models start after the padding token's: they have fewer than their table has rows.
_SHIFTED = frozenset({"camembert", "data2vec-text", "luke", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"})


T = TypeVar("T")


class Encoding(Protocol):
    """What the `tokenizers` package says about one text, token by token."""

    ids: list[int]
    type_ids: list[int]
    word_ids: list[int | None]
    sequence_ids: list[int | None]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


class _Row(NamedTuple):
    ids: tuple[int, ...]
    types: tuple[int, ...]
    targets: tuple[int, ...] | None = None
    counted: tuple[bool, ...] | None = None


class TextLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The part of config.json that says how texts are fed to a model."""

    model_type: str = ""
    vocab_size: int = 0
    pad_token_id: int | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    type_vocab_size: int = 0

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> TextLimits:
        """From `config.json` of `files`; defaults where there is none.  Raises UsageError when it is damaged."""
        try:
            return msgspec.json.decode(files.get("config.json", b"{}"), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"config.json of the model is not understood: {error}") from error

    @property
    def positions(self) -> int | None:
        """The most tokens that the model has positions for; None where there is no such limit."""
        table = self.max_position_embeddings or self.n_positions
        if not table or table < 1:
            return None
        return table - (self.pad_token_id or 0) - 1 if self.model_type in _SHIFTED else table


def encode_texts(
    settings: TaskSettings,
    examples: tuple[Example, ...],
    fingerprint: str,
    files: Mapping[str, bytes],
    *,
    kind: TaskKind | None = None,
    limits: TextLimits | None = None,
) -> TokenSet:
    """Tokenise with special tokens, cut at `settings.max_length` tokens or where the model's positions end.

    The tokenizer is `tokenizer.json` of `files`, or the file that `settings.tokenizer` names; `limits` is that of
    config.json.  The outputs are those of `kind`: for "causal-lm" the next tokens, for "masked-lm" 15 % of the tokens
    (drawn by the text alone, so that they do not depend on order or batch), for "token-classification" the first
    token of each word, for "question-answering" first and last token of the answer (-1 when it was cut off).
    Raises MissingExtraError without the `tokenizers` package, UsageError when the file is missing or unreadable and
    when a text has too few tokens.
    """
    limits = limits or TextLimits.read(files)
    tokenizer = load_tokenizer(settings, files)
    length = min(settings.max_length, limits.positions or settings.max_length)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, strategy="only_second" if kind == "question-answering" else "longest_first")
    mask = _mask_id(tokenizer, files) if kind == "masked-lm" else 0
    rows = [
        _row(kind, example, encoding, mask)
        for example, encoding in zip(examples, _encodings(tokenizer, settings, kind, examples), strict=True)
    ]
    paired = limits.type_vocab_size > 1 and any(any(row.types) for row in rows)
    tokens = TOKENS_PER_BATCH
    if kind in LANGUAGE_KINDS and limits.vocab_size > 0:
        # What such a batch needs is its logits: 256 MiB of them in float32.
        tokens = min(tokens, max(1, _LOGITS_PER_BATCH // limits.vocab_size))
    return TokenSet(
        examples,
        fingerprint,
        tuple(row.ids for row in rows),
        limits.pad_token_id or 0,
        types=tuple(row.types for row in rows) if paired else None,
        targets=_column([row.targets for row in rows]),
        counted=_column([row.counted for row in rows]),
        tokens_per_batch=tokens,
    )


def _column(values: Sequence[T | None]) -> tuple[T, ...] | None:
    present = tuple(value for value in values if value is not None)
    return present if len(present) == len(values) else None


def _encodings(
    tokenizer: Any, settings: TaskSettings, kind: TaskKind | None, examples: Sequence[Example]
) -> Iterator[Encoding]:
    """One for each example, in chunks: an encoding takes some hundred bytes for each token."""
    words = kind == "token-classification"

    def given(example: Example) -> object:
        if words:
            return list(_texts(example, "words"))
        if kind == "question-answering":
            return example.text, _text(example, "context")
        return (example.text, _text(example, "pair")) if settings.pair is not None else example.text

    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        try:
            yield from tokenizer.encode_batch([given(example) for example in chunk], is_pretokenized=words)
        except Exception as error:
            # The package raises plain exceptions: here, that the first of two texts is too long by itself.
            raise UsageError(
                f"the texts of examples `{chunk[0].id}` to `{chunk[-1].id}` cannot be tokenised: {error}",
                hint=f"write `max_length = {2 * settings.max_length}` under the task in mgit.toml",
            ) from error


def _row(kind: TaskKind | None, example: Example, encoding: Encoding, mask: int) -> _Row:
    ids, types = tuple(encoding.ids), tuple(encoding.type_ids)
    if not ids:
        raise UsageError(f"example `{example.id}` has no tokens")
    if kind == "causal-lm":
        if len(ids) < 2:
            raise UsageError(f"example `{example.id}` has one token, and a language model predicts from the second on")
        return _Row(ids, types, ids[1:], (True,) * (len(ids) - 1))
    if kind == "masked-lm":
        return _masked(example, ids, types, encoding.special_tokens_mask, mask)
    if kind == "token-classification":
        return _tagged(example, ids, types, encoding.word_ids)
    if kind == "question-answering":
        return _Row(ids, types, _span(example, encoding))
    return _Row(ids, types)


def _masked(example: Example, ids: tuple[int, ...], types: tuple[int, ...], special: Sequence[int], mask: int) -> _Row:
    places = [at for at, is_special in enumerate(special) if not is_special]
    if not places:
        raise UsageError(f"example `{example.id}` has no tokens but special ones")
    draw = random.Random(repr(ids))  # noqa: S311 - which words are hidden is no secret
    chosen = set(draw.sample(places, max(1, round(MASKED_FRACTION * len(places)))))
    return _Row(
        tuple(mask if at in chosen else token for at, token in enumerate(ids)),
        types,
        tuple(token if at in chosen else -1 for at, token in enumerate(ids)),
        tuple(at in chosen for at in range(len(ids))),
    )


def _tagged(example: Example, ids: tuple[int, ...], types: tuple[int, ...], words: Sequence[int | None]) -> _Row:
    tags = example.fields.get("tags")
    first = tuple(word is not None and (at == 0 or words[at - 1] != word) for at, word in enumerate(words))
    if not any(first):
        raise UsageError(f"example `{example.id}` has no tokens but special ones")
    known = tags if isinstance(tags, tuple) else ()
    targets = tuple(
        known[word] if counts and word is not None and word < len(known) else -1
        for counts, word in zip(first, words, strict=True)
    )
    return _Row(ids, types, targets, first)


def _span(example: Example, encoding: Encoding) -> tuple[int, int]:
    """First and last token of the answer."""
    start, answer = example.fields.get("answer_start"), example.fields.get("answer")
    if not isinstance(start, int) or not isinstance(answer, str) or not answer:
        return -1, -1
    inside = [
        at
        for at, (sequence, (begin, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True))
        if sequence == 1 and begin < start + len(answer) and end > start
    ]
    # An answer that was cut off is none.
    if not inside or encoding.offsets[inside[-1]][1] < start + len(answer.rstrip()):
        return -1, -1
    return inside[0], inside[-1]


def _text(example: Example, field: str) -> str:
    value = example.fields.get(field)
    if not isinstance(value, str):
        raise UsageError(f"example `{example.id}` has no `{field}`")
    return value


def _texts(example: Example, field: str) -> tuple[str, ...]:
    value = example.fields.get(field)
    if not isinstance(value, tuple) or not value:
        raise UsageError(f"example `{example.id}` has no `{field}`")
    return value


def load_tokenizer(settings: TaskSettings, files: Mapping[str, bytes]) -> Any:
    """The tokenizer of a task's model.  Raises as `encode_texts` does when there is none."""
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
        return Tokenizer.from_str(files[name].decode("utf-8"))
    except Exception as error:
        raise UsageError(f"`{name}` is not a tokenizer file: {error}") from error


class _TokenizerConfig(msgspec.Struct):
    """The part of tokenizer_config.json that names the token for a hidden word: a text, or a record with one."""

    mask_token: str | dict[str, object] | None = None


def _mask_id(tokenizer: Any, files: Mapping[str, bytes]) -> int:
    try:
        named = msgspec.json.decode(files.get("tokenizer_config.json", b"{}"), type=_TokenizerConfig).mask_token
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        named = None
    content = named.get("content") if isinstance(named, dict) else named
    for token in (content, *_MASK_TOKENS):
        if isinstance(token, str) and (number := tokenizer.token_to_id(token)) is not None:
            return int(number)
    raise UsageError(
        "the tokenizer has no token for a hidden word, which a masked language model needs",
        hint='name it in tokenizer_config.json beside the weights: {"mask_token": "[MASK]"}',
    )
