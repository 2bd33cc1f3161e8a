"""Models from the user's own code: only when trusted, weights from the commit, errors that name the entry."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example
from modelgit.models.load import build_task, encode_examples

torch = pytest.importorskip("torch")

SOURCE = """
import torch
import sizes

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(2, sizes.WIDTH), torch.nn.BatchNorm1d(sizes.WIDTH))
        self.top = torch.nn.Linear(sizes.WIDTH, classes)

    def forward(self, numbers):
        return self.top(self.body(numbers).tanh())

def build(state, files):
    return Net(len(state["top.bias"]))

def wrong(state, files):
    return {"not": "a module"}

def encode(texts, files):
    return {"numbers": torch.tensor([[float(word) for word in text.split()] for text in texts])}
"""
SETTINGS = TaskSettings(model="m", entry="net:build", head="top")
EXAMPLES = tuple(Example(str(at), f"{at} {-at}", at % 2) for at in range(5))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "sizes.py").write_text("WIDTH = 4\n")
    yield tmp_path
    sys.modules.pop("sizes", None)


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {"body.0.weight": (4, 2), "body.0.bias": (4,), "body.1.weight": (4,), "body.1.bias": (4,)}
    shapes |= {"top.weight": (3, 4), "top.bias": (3,), "body.1.running_mean": (4,)}
    tensors = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"body.1.running_var": np.ones(4, np.float32), "body.1.num_batches_tracked": np.array(7)}


def test_the_module_gets_the_weights_and_buffers_of_the_commit(root: Path, state) -> None:
    task = build_task(SETTINGS, state, {}, trusted=True, root=root)
    assert task.classes == 3
    assert task.head == {"top.weight", "top.bias"}
    assert not task.module.training
    for name, value in task.module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])
    data = encode_examples(SETTINGS, EXAMPLES, "f", {}, trusted=True, root=root)
    (batch,) = data.batches(8)
    assert task.module(**batch.inputs).shape == (5, 3)
    assert sorted(at for b in data.batches(2, seed=3, limit=4) for at in b.indices) == [0, 1, 2, 3]
    for b in data.batches(2, seed=3):
        for row, at in enumerate(b.indices):
            assert b.inputs["numbers"][row].tolist() == [at, -at]
            assert b.labels[row] == at % 2
    assert str(root) not in sys.path


def test_nothing_runs_without_trust(root: Path, state) -> None:
    (root / "net.py").write_text("raise SystemExit('ran')\n")
    for call in (
        lambda: build_task(SETTINGS, state, {}, root=root),
        lambda: encode_examples(SETTINGS, EXAMPLES, "f", {}, root=root),
    ):
        with pytest.raises(UsageError, match=r"net:build.*not trusted") as caught:
            call()
        assert caught.value.hint == "`mgit trust`"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("net:wrong", "returned dict"),
        ("net:absent", "names no function"),
        ("gone:build", "no module `gone`"),
        ("net", "module:function"),
        ("../net:build", "module:function"),
    ],
)
def test_bad_entries_are_named(root: Path, state, entry: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_task(TaskSettings(model="m", entry=entry), state, {}, trusted=True, root=root)


def test_parameters_without_a_tensor_are_named(root: Path, state) -> None:
    del state["body.0.weight"]
    with pytest.raises(UsageError, match=r"body\.0\.weight") as caught:
        build_task(SETTINGS, state, {}, trusted=True, root=root)
    assert "net:build" in caught.value.hint


def test_changed_code_counts_at_once(root: Path, state) -> None:
    build_task(SETTINGS, state, {}, trusted=True, root=root)
    (root / "net.py").write_text(SOURCE.replace(".tanh()", ".relu()"))
    task = build_task(SETTINGS, state, {}, trusted=True, root=root)
    with torch.no_grad():
        numbers = torch.tensor([[1.0, -2.0]])
        assert torch.equal(task.module(numbers=numbers), task.module.top(task.module.body(numbers).relu()))
