"""The mean gradient equals plain autograd, in any batches, on the labelled outputs only."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.fisher.gradient import mean_gradient  # noqa: E402
from modelgit.models.base import Batch, Example  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402


class Sequences:
    """Token sequences of several lengths, the next token being the label; what is padding has none."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.examples = tuple(Example(str(at), "", -1) for at in range(len(rows)))
        self.fingerprint = "sequences"

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions):
        return Sequences([self.rows[at] for at in positions])

    def batches(self, size, *, seed=None, limit=None):
        for start in range(0, len(self), size):
            rows = self.rows[start : start + size]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            counted = torch.tensor([[at + 1 < len(row) for at in range(longest)] for row in rows])
            labels = torch.cat([ids[:, 1:], ids[:, :1]], 1)  # the last column is nonsense that must not count
            yield Batch({"ids": ids}, labels, tuple(range(start, start + len(rows))), counted)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.mix = torch.nn.Linear(6, 6)
        self.drop = torch.nn.Dropout(0.5)
        self.out = torch.nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.drop(torch.tanh(self.mix(self.embed(ids)))))


@pytest.mark.parametrize("size", [1, 3, 32])
def test_sums_over_tokens_examples_and_tied_uses(size: int) -> None:
    module = Tied()
    names = {name: name for name, _ in module.named_parameters()}
    task = BoundModel(module, names, frozenset(), 11)
    data = Sequences([[1, 2, 3], [4, 5, 6, 7, 8], [9, 1], [2, 2, 2, 2]])
    got = mean_gradient(task, data, batch_size=size, limit=3, seed=5)
    assert module.training and all(p.requires_grad and p.grad is None for p in module.parameters())
    module.eval()
    order = list(range(4))
    random.Random(5).shuffle(order)
    order = order[:3]
    total = sum(
        torch.nn.functional.cross_entropy(module(torch.tensor([row]))[0, :-1], torch.tensor(row[1:]), reduction="sum")
        for row in (data.rows[at] for at in order)
    )
    total.backward()
    assert set(got) == {"embed.weight", "mix.weight", "mix.bias"}
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(got[name], parameter.grad.abs().numpy() / 3, rtol=2e-5, atol=1e-7)
        assert got[name].dtype == np.float32


def test_classes_and_what_cannot_be_differentiated(bert, sentences) -> None:
    task, data = bert(), sentences(12)
    got = mean_gradient(task, data)
    batches = [mean_gradient(task, data, batch_size=size) for size in (1, 5)]
    for name, value in got.items():
        assert value.min() >= 0 and value.shape == dict(task.module.named_parameters())[_parameter(task, name)].shape
        for other in batches:
            np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=1e-6)
    bare = sentences(3)
    bare.examples = (bare.examples[0], Example("odd", "", -1), bare.examples[2])
    with pytest.raises(UsageError, match="example `odd` has no label"):
        mean_gradient(task, bare)
    bare.examples = (bare.examples[0], Example("high", "", 3), bare.examples[2])
    with pytest.raises(UsageError, match="example `high` has no label"):
        mean_gradient(task, bare)
    with pytest.raises(UsageError, match="at least one example"):
        mean_gradient(task, data, limit=0)
    task.likelihood = "gaussian"
    with pytest.raises(UsageError, match="outputs without classes"):
        mean_gradient(task, data)
    task.likelihood = "categorical"
    with torch.no_grad():
        task.module.head.bias[0] = torch.nan
    with pytest.raises(CheckFailed, match="loss is not finite"):
        mean_gradient(task, data)


def _parameter(task, tensor: str) -> str:
    return next(name for name, found in task.tensor_of.items() if found == tensor)
