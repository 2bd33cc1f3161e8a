"""The training loop learns, repeats itself under a seed, and stays within a mask."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.config.schema import TaskSettings  # noqa: E402
from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.fisher.estimate import estimate  # noqa: E402
from modelgit.fisher.mask import top_mask  # noqa: E402
from modelgit.integrations.torch_training import state_arrays, train_classifier  # noqa: E402
from modelgit.models.base import Example  # noqa: E402
from modelgit.models.bert import BERT_CLASSIFIER, BertClassifier, BertConfig, initial_head  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402
from modelgit.models.tokens import TokenSet  # noqa: E402
from modelgit.progress import SilentProgress  # noqa: E402

SETTINGS = TaskSettings(model="m", head="heads.t", labels=("few", "many"))
SIZES = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}


@pytest.fixture
def task() -> BoundModel:
    torch.manual_seed(0)
    files = {"config.json": json.dumps(SIZES).encode()}
    body = BertClassifier(BertConfig.read(files), 2).body.state_dict()
    state = {name: value.numpy() for name, value in body.items()} | initial_head(SETTINGS, 16)
    return BERT_CLASSIFIER.build(SETTINGS, state, files)


@pytest.fixture
def data() -> TokenSet:
    """Sentences of random words; the label says whether word 7 is in them."""
    draw = np.random.default_rng(0)
    ids = [tuple(draw.integers(8, 20, draw.integers(4, 10)).tolist()) for _ in range(64)]
    ids = [(7, *words[1:]) if at % 2 else words for at, words in enumerate(ids)]
    return TokenSet(tuple(Example(str(at), "", at % 2) for at in range(64)), "d", tuple(ids))


def accuracy(task: BoundModel, data: TokenSet) -> float:
    right = 0
    for batch in data.batches(32):
        right += int((task.module(**batch.inputs).argmax(1) == batch.labels).sum())
    return right / len(data)


def test_it_learns(task, data) -> None:
    report = train_classifier(task, data, epochs=8, lr=3e-3, batch_size=10)
    assert accuracy(task, data) == 1.0
    assert (report.epochs, report.steps, report.examples) == (8, 56, 64)
    assert report.trained == sum(parameter.numel() for parameter in task.module.parameters())
    assert len(report.losses) == 8
    assert report.losses[-1] < 0.1 < 0.5 < report.losses[0]
    assert not task.module.training


def test_seeds_decide_everything(task, data) -> None:
    start = state_arrays(task)

    def run(seed: int) -> dict[str, np.ndarray]:
        with torch.no_grad():
            for name, parameter in task.module.named_parameters():
                parameter.copy_(torch.from_numpy(start[task.tensor_of[name]]))
        train_classifier(task, data, epochs=1, seed=seed, lr=1e-3)
        return state_arrays(task)

    one, again, other = run(1), run(1), run(2)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["heads.t.weight"], start["heads.t.weight"])


def test_a_fish_mask_holds_and_still_learns(task, data) -> None:
    before = state_arrays(task)
    head = {task.tensor_of[name] for name in task.head}
    mask = top_mask(estimate(task, data).values, density=0.1, head=head)
    report = train_classifier(task, data, epochs=20, lr=1e-2, mask=mask, weight_decay=0.1)
    assert report.trained == sum(before[name].size if at is None else len(at) for name, at in mask.items())
    after = state_arrays(task)
    moved = 0
    for name, value in after.items():
        changed = np.flatnonzero(value.view(np.uint32) != before[name].view(np.uint32))
        allowed = np.arange(value.size) if mask.get(name, ()) is None else mask.get(name, np.array([], int))
        assert np.isin(changed, allowed).all(), name
        moved += len(changed)
    assert moved > 0.9 * report.trained
    assert report.losses[-1] < report.losses[0]
    assert accuracy(task, data) > 0.9
    assert all(parameter.requires_grad for parameter in task.module.parameters())


def test_stopping_leaves_the_model_usable(task, data) -> None:
    class Stop(SilentProgress):
        def check(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(task, data, mask={"heads.t.bias": None}, progress=Stop())
    assert all(parameter.requires_grad for parameter in task.module.parameters())
    assert not task.module.training


def test_senseless_runs_are_refused(task, data) -> None:
    for options in ({"epochs": 0}, {"batch_size": 0}, {"warmup": 1.5}):
        with pytest.raises(UsageError, match="training for"):
            train_classifier(task, data, **options)
    with pytest.raises(UsageError, match="nothing of the model"):
        train_classifier(task, data, mask={})
    with pytest.raises(UsageError, match=r"`heads\.u\.bias`"):
        train_classifier(task, data, mask={"heads.t.bias": None, "heads.u.bias": None})
    with pytest.raises(CheckFailed, match="not finite"):
        train_classifier(task, data, lr=1e30)
    data.examples = (Example("q", "", -1), *data.examples[1:])
    with pytest.raises(UsageError, match="`q` has no label"):
        train_classifier(task, data)
