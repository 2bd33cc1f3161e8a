"""Predictions on disk, named by what they depend on: weights, code, settings and data, never by a path.

A cache keyed by a file's path or by a request alone answers for weights that are no longer there.  Files may be
deleted at any time; one that is damaged or not what it says is treated as absent and removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import IntegrityError
from modelgit.objects import Record, TensorEntry, decode, domain, encode
from modelgit.store.checked_files import read_checked, write_checked

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings

__all__ = ["PredictionCache", "ScoreCache", "prediction_key", "score_key"]

_SCHEMA = 1
_PREDICTIONS, _SCORES = b"mgitpred", b"mgitscor"
_MAX_BYTES = 4 << 30


class _Stored(Record, frozen=True, kw_only=True):
    """The content of one file: int32 indices and float32 rows, little-endian."""

    key: str
    examples: int
    classes: int
    indices: bytes
    log_probs: bytes


def prediction_key(
    tensors: Iterable[TensorEntry],
    settings: TaskSettings,
    files: Mapping[str, bytes],
    fingerprint: str,
    *,
    code: str,
    device: str = "cpu",
    dtype: str = "float32",
) -> str:
    """The name of a set of predictions: hex BLAKE3 over everything that could change one.

    `tensors` are the model's (names, specs and ids; their order does not matter), `files` its small files by name
    (configuration, tokenizer), `fingerprint` that of the data, `code` the version of whatever turns them into
    logits, library versions included, `device` the class of the device ("cuda").  Where model and data lie (`model`,
    `train`, `test`) is no part of it, and neither are the limits of a suite.
    """
    task = msgspec.structs.replace(settings, model="", train=None, test=None)
    content = (
        _SCHEMA,
        sorted((entry.name, entry.spec.dtype, list(entry.spec.shape), entry.id.hex) for entry in tensors),
        task,
        sorted((name, blake3(data).hexdigest()) for name, data in files.items()),
        fingerprint,
        code,
        device,
        dtype,
    )
    return blake3(domain("predictions") + msgspec.json.encode(content, order="deterministic")).hexdigest()


class PredictionCache:
    """A directory of predictions; created when first written to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.pred"

    def read(self, key: str, *, examples: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """(indices int64 `[n]` ascending, log-probabilities float32 `[n, C]`), or None when there are none.

        `examples` is the size of the data; indices lie below it.
        """
        path = self._path(key)
        payload = read_checked(path, _PREDICTIONS)
        if payload is None:
            return None
        try:
            return _parse(payload, key, examples)
        except IntegrityError:
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def write(self, key: str, indices: NDArray[np.int64], log_probs: NDArray[np.float32], *, examples: int) -> None:
        """Keep predictions.  A cache that cannot be written (full disk, read-only) is left as it was."""
        record = _Stored(
            key=key,
            examples=examples,
            classes=log_probs.shape[1],
            indices=indices.astype("<i4").tobytes(),
            log_probs=log_probs.astype("<f4").tobytes(),
        )
        payload = zstandard.ZstdCompressor(level=3).compress(encode(record))
        write_checked(self._path(key), _PREDICTIONS, payload)


class _Scores(Record, frozen=True, kw_only=True):
    """The content of one file: a JSON object and the name under which it is kept."""

    key: str
    value: bytes


def score_key(weights: str, key: str) -> str:
    """The name of what a test computed for `weights`; `key` names everything else that it depends on."""
    content = msgspec.json.encode((_SCHEMA, weights, key))
    return blake3(domain("scores") + content).hexdigest()


class ScoreCache:
    """A directory of JSON objects by their `score_key`; created when first written to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.scores"

    def read(self, key: str) -> dict[str, Any] | None:
        """What was kept under `key`, None when there is nothing, or nothing that is whole."""
        payload = read_checked(self._path(key), _SCORES)
        if payload is None:
            return None
        try:
            record = decode(_Scores, payload, what="cached scores")
            value = msgspec.json.decode(record.value)
            if record.key != key or not isinstance(value, dict):
                raise IntegrityError("cached scores are of something else")
        except (IntegrityError, msgspec.DecodeError, RecursionError):
            with contextlib.suppress(OSError):
                self._path(key).unlink()
            return None
        return value

    def write(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a JSON object.  A cache that cannot be written is left as it was."""
        payload = encode(_Scores(key=key, value=msgspec.json.encode(value)))
        write_checked(self._path(key), _SCORES, payload)


def _parse(payload: bytes, key: str, examples: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    try:
        if zstandard.get_frame_parameters(payload).content_size > _MAX_BYTES:
            raise IntegrityError("cached predictions of an absurd size")
        data = zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"cached predictions do not decompress: {error}") from error
    record = decode(_Stored, data, what="cached predictions")
    count = len(record.indices) // 4
    if (
        record.key != key
        or record.examples != examples
        or record.classes < 1
        or len(record.indices) != 4 * count
        or len(record.log_probs) != 4 * count * record.classes
    ):
        raise IntegrityError("cached predictions are of something else")
    indices = np.frombuffer(record.indices, dtype="<i4").astype(np.int64)
    if count and (indices[0] < 0 or indices[-1] >= examples or (np.diff(indices) <= 0).any()):
        raise IntegrityError("cached predictions name examples that are not in the data")
    rows = np.frombuffer(record.log_probs, dtype="<f4").astype(np.float32).reshape(count, record.classes)
    return indices, rows
