from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.evals.cache import PredictionCache, prediction_key
from modelgit.evals.metrics import log_softmax
from modelgit.evals.predictions import PredictionSource, predict
from modelgit.models.base import Batch, Example
from modelgit.objects import TensorEntry, TensorId, TensorSpec

TASK = TaskSettings(model="models/bot", adapter="bert-classifier")
EXAMPLES = tuple(Example(str(i), "x" * (1 + i % 7), i % 3) for i in range(40))


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(features))


@dataclass
class Model:
    module: torch.nn.Module = field(default_factory=Linear)
    classes: int = 3
    head: frozenset[str] = frozenset()
    tensor_of: dict[str, str] = field(default_factory=dict)
    likelihood: str = "categorical"


@dataclass
class Encoded:
    examples: tuple[Example, ...]
    fingerprint: str = "f"

    def __len__(self) -> int:
        return len(self.examples)

    def features(self, index: int) -> list[float]:
        number = int(self.examples[index].id)
        return [np.sin(number), np.cos(number), number / 40, 1.0]

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        order = sorted(range(len(self)), key=lambda i: len(self.examples[i].text))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            inputs = {"features": torch.tensor([self.features(i) for i in chosen], dtype=torch.float32)}
            yield Batch(inputs, torch.tensor([self.examples[i].label for i in chosen]), tuple(chosen))


def expected() -> np.ndarray:
    layer = Linear().layer
    with torch.no_grad():
        inputs = torch.tensor([Encoded(EXAMPLES).features(i) for i in range(40)], dtype=torch.float32)
        return log_softmax(layer(inputs).numpy())


def candidate(
    cache: PredictionCache | None, *, key: str = "ab" * 32, counts: list[int] | None = None
) -> PredictionSource:
    def compute(indices: np.ndarray) -> np.ndarray:
        if counts is not None:
            counts.append(len(indices))
        return predict(Model(), Encoded(tuple(EXAMPLES[index] for index in indices.tolist())), batch_size=8)

    return PredictionSource(key, len(EXAMPLES), compute, cache=cache)


def test_predictions_are_in_the_order_of_the_data_and_without_dropout() -> None:
    model = Model()
    rows = predict(model, Encoded(EXAMPLES), batch_size=7)
    assert np.allclose(rows, expected(), atol=1e-6)
    assert rows.dtype == np.float32
    assert model.module.training


def test_a_model_that_does_not_fit_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"shape \[7, 3\].*\[7, 5\]"):
        predict(Model(classes=5), Encoded(EXAMPLES), batch_size=7)
    with pytest.raises(UsageError, match="cannot be run"):
        predict(Model(module=torch.nn.Linear(2, 3)), Encoded(EXAMPLES))


def test_only_missing_examples_are_computed_and_the_cache_serves_the_next_run(tmp_path: Path) -> None:
    counts: list[int] = []
    first = candidate(PredictionCache(tmp_path), counts=counts)
    some = np.array([3, 5, 30])
    assert np.allclose(first.predictions(some).log_probs, expected()[some], atol=1e-6)
    more = first.predictions(np.array([2, 3, 30, 31]))
    assert more.indices.tolist() == [2, 3, 30, 31]
    assert np.allclose(more.log_probs, expected()[more.indices], atol=1e-6)
    assert counts == [3, 2]
    assert not first.complete

    second = candidate(PredictionCache(tmp_path), counts=counts)
    assert second.predictions(np.array([2, 3, 5, 30, 31])).indices.size == 5
    assert counts == [3, 2]
    whole = second.predictions()
    assert counts == [3, 2, 35]
    assert np.allclose(whole.log_probs, expected(), atol=1e-6)
    assert candidate(PredictionCache(tmp_path)).complete
    assert not candidate(PredictionCache(tmp_path), key="cd" * 32).complete


def test_damaged_or_foreign_cache_files_are_dropped(tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path)
    key, other = "ab" * 32, "ac" * 32
    indices, rows = np.array([1, 4]), np.zeros((2, 3), np.float32)
    cache.write(key, indices, rows, examples=40)
    path = next(tmp_path.rglob("*.pred"))
    good = path.read_bytes()
    held = cache.read(key, examples=40)
    assert held is not None
    assert held[0].tolist() == [1, 4]

    assert cache.read(key, examples=39) is None
    assert not path.exists()
    for position in (0, 10, 45, len(good) - 1):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert cache.read(key, examples=40) is None
        assert not path.exists()
    for content in (b"", good[:40], good[:-1]):
        path.write_bytes(content)
        assert cache.read(key, examples=40) is None
    renamed = path.with_name(f"{other}.pred")
    renamed.write_bytes(good)
    assert cache.read(other, examples=40) is None
    cache.write(key, np.array([1, 40]), rows, examples=40)
    assert cache.read(key, examples=40) is None
    cache.write(key, np.array([4, 1]), rows, examples=40)
    assert cache.read(key, examples=40) is None


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert candidate(PredictionCache(blocked / "below")).predictions().indices.size == 40


def test_the_key_depends_on_what_matters_and_on_no_path() -> None:
    def entry(name: str, content: bytes) -> TensorEntry:
        return TensorEntry(name=name, spec=TensorSpec(dtype="F32", shape=(1,)), id=TensorId.of(content))

    tensors, files = [entry("a", b"1"), entry("b", b"2")], {"config.json": b"{}"}
    base = prediction_key(tensors, TASK, files, "f", code="1")
    others = {
        prediction_key([entry("a", b"1"), entry("b", b"3")], TASK, files, "f", code="1"),
        prediction_key([entry("a", b"2"), entry("b", b"1")], TASK, files, "f", code="1"),
        prediction_key(tensors, msgspec.structs.replace(TASK, max_length=32), files, "f", code="1"),
        prediction_key(tensors, TASK, {"config.json": b"{ }"}, "f", code="1"),
        prediction_key(tensors, TASK, files, "g", code="1"),
        prediction_key(tensors, TASK, files, "f", code="2"),
        prediction_key(tensors, TASK, files, "f", code="1", device="cuda"),
        prediction_key(tensors, TASK, files, "f", code="1", dtype="bfloat16"),
    }
    assert len(others | {base}) == 9
    moved = msgspec.structs.replace(TASK, model="elsewhere", test="moved.jsonl")
    assert prediction_key(tensors[::-1], moved, files, "f", code="1") == base
