"""Models from the user's own code: only when trusted, weights from the commit, errors that name the entry."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example
from modelgit.models.data import read_examples
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


FIELDS = """
import torch
from modelgit.models.base import Batch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.top = torch.nn.Linear(2, 5)

    def forward(self, numbers):
        return self.top(numbers)

def build(state, files):
    return Net()

def numbers(examples):
    rows = [(example.fields["x"] + [[0.0, 0.0]] * 3)[:3] for example in examples]
    return torch.tensor(rows)
"""
AS_INPUTS = FIELDS + "\ndef encode(examples, files):\n    return {'numbers': numbers(examples)}\n"
AS_BATCH = (
    FIELDS
    + """
def encode(examples, files):
    given = torch.tensor([len(example.fields["x"]) for example in examples])
    counted = torch.arange(3) < given[:, None]
    return Batch({"numbers": numbers(examples)}, torch.where(counted, 4, -1), (), counted)
"""
)


@pytest.fixture
def five() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"top.weight": draw.standard_normal((5, 2)), "top.bias": draw.standard_normal(5)}


def test_encode_may_ask_for_whole_examples_and_say_which_outputs_count(tmp_path: Path, five) -> None:
    (tmp_path / "d.jsonl").write_text('{"x": [[1, 2], [3, 4]]}\n{"x": [[5, 6], [7, 8], [9, 10]]}\n')
    settings = TaskSettings(model="m", entry="net:build", head="top")
    examples, fingerprint = read_examples(tmp_path / "d.jsonl", settings, shown="d.jsonl")
    for source, counts in ((AS_INPUTS, None), (AS_BATCH, [2, 3])):
        (tmp_path / "net.py").write_text(source)
        task = build_task(settings, five, {}, trusted=True, root=tmp_path)
        data = encode_examples(settings, examples, fingerprint, {}, trusted=True, root=tmp_path)
        (batch,) = data.batches(4)
        assert task.module(**batch.inputs).shape == (2, 3, 5)
        assert (task.classes, task.likelihood) == (5, "categorical")
        if counts is None:
            assert batch.counted is None
            continue
        assert batch.counted.sum(1).tolist() == counts
        assert (batch.labels == 4).equal(batch.counted)
        (one,) = data.select([1]).batches(4)
        assert one.counted.tolist() == [[True] * 3]


def test_numbers_are_gaussian_where_the_kind_says_so(tmp_path: Path, five) -> None:
    (tmp_path / "net.py").write_text(AS_INPUTS)
    settings = TaskSettings(model="m", entry="net:build", head="top", kind="regression")
    task = build_task(settings, five, {}, trusted=True, root=tmp_path)
    assert (task.classes, task.likelihood) == (5, "gaussian")


def test_the_kind_encodes_for_a_module_without_an_encode_of_its_own(tmp_path: Path, five) -> None:
    (tmp_path / "net.py").write_text(FIELDS)
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 1), np.uint8))
    (tmp_path / "d.jsonl").write_text('{"image": "a.npy", "label": 1}\n')
    settings = TaskSettings(model="m", entry="net:build", head="top", kind="image-classification")
    examples, fingerprint = read_examples(tmp_path / "d.jsonl", settings, shown="d.jsonl")
    files = {"config.json": b'{"num_channels": 1}'}
    (batch,) = encode_examples(settings, examples, fingerprint, files, trusted=True, root=tmp_path).batches(1)
    assert batch.inputs["pixel_values"].shape == (1, 1, 2, 2)


def test_inputs_of_another_length_are_named(tmp_path: Path, five) -> None:
    (tmp_path / "net.py").write_text(
        FIELDS + "\ndef encode(examples, files):\n    return {'numbers': torch.zeros(3, 2)}\n"
    )
    settings = TaskSettings(model="m", entry="net:build", head="top")
    with pytest.raises(UsageError, match="gave `numbers` another length"):
        encode_examples(settings, EXAMPLES, "f", {}, trusted=True, root=tmp_path)


TIED = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(5, 2)
        self.out = torch.nn.Linear(2, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, input_ids):
        return self.out(self.words(input_ids))

def build(state, files):
    with torch.device("meta"):
        return Net()
"""


def test_tied_weights_of_a_module_stay_one_parameter(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(TIED)
    settings = TaskSettings(model="m", entry="net:build", kind="causal-lm")
    weight = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    task = build_task(settings, {"words.weight": weight}, {}, trusted=True, root=tmp_path)
    assert task.module.out.weight is task.module.words.weight
    assert np.array_equal(task.module.words.weight.detach().numpy(), weight)
    assert task.tensor_of == {"words.weight": "words.weight"}
    assert task.classes == 0


def test_a_task_model_of_an_older_entry_is_one_of_classes(tmp_path: Path, five) -> None:
    (tmp_path / "net.py").write_text(
        FIELDS.replace(
            "return Net()",
            "import types\n    net = Net()\n    return types.SimpleNamespace(module=net, "
            "tensor_of={}, head=frozenset(), classes=5)",
        )
    )
    task = build_task(TaskSettings(model="m", entry="net:build"), five, {}, trusted=True, root=tmp_path)
    assert (task.classes, task.likelihood) == (5, "categorical")
