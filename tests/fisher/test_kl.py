"""Predicted and measured KL agree where they should, and the report says where they do not."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.fisher.estimate import estimate  # noqa: E402
from modelgit.fisher.kl import behaviour, diagonal_kl, fisher_share  # noqa: E402
from modelgit.models.base import Example, TaskModel  # noqa: E402


def moved(task: TaskModel, size: float, *, seed: int = 0) -> TaskModel:
    """A copy with independent Gaussian noise of standard deviation `size` on every weight."""
    other = copy.deepcopy(task)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter += torch.randn(parameter.shape, generator=draw) * size
    return other


def weights(task: TaskModel) -> dict[str, np.ndarray]:
    return {task.tensor_of[name]: value.detach().numpy() for name, value in task.module.named_parameters()}


@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3, 1e-2])
def test_the_quadratic_form_predicts_small_steps(bert, sentences, size: float) -> None:
    old = bert(4, scale=3.0)
    result = behaviour(old, moved(old, size), sentences(60))
    assert 0 < result.measured_kl < 0.005
    assert result.predicted_kl == pytest.approx(result.measured_kl, rel=0.1)
    assert result.reliable


def test_measured_kl_is_the_definition(bert, sentences) -> None:
    old, data = bert(4, scale=3.0), sentences(30)
    new = moved(old, 0.3)
    total = 0.0
    for batch in data.batches(1):
        p, q = (task.module(**batch.inputs).double().softmax(1).detach() for task in (old, new))
        total += float((p * (p / q).log()).sum()) / 30
    result = behaviour(old, new, data, batch_size=7)
    assert result.measured_kl == pytest.approx(total, rel=1e-5)
    assert not result.reliable
    assert behaviour(new, old, data).measured_kl != pytest.approx(total, rel=0.01)


def test_the_diagonal_predicts_noise_but_not_a_coherent_change(bert, sentences) -> None:
    old, data = bert(4, scale=3.0), sentences(60)
    diagonal = estimate(old, data).values
    predicted, measured = [], []
    for seed in range(12):
        new = moved(old, 3e-3, seed=seed)
        predicted.append(diagonal_kl(diagonal, weights(old), weights(new)))
        measured.append(behaviour(old, new, data).measured_kl)
    assert np.mean(predicted) == pytest.approx(np.mean(measured), rel=0.25)
    # A step along the mean gradient of one class is coherent: all its cross terms have one sign.
    new = copy.deepcopy(old)
    (batch,) = data.batches(60)
    parameters = list(new.module.parameters())
    gradients = torch.autograd.grad(new.module(**batch.inputs).log_softmax(1)[:, 0].sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += gradient * 1e-4
    result = behaviour(old, new, data)
    assert result.reliable
    assert diagonal_kl(diagonal, weights(old), weights(new)) < result.measured_kl / 5


def test_equal_models_behave_equally(bert, sentences) -> None:
    old = bert()
    result = behaviour(old, copy.deepcopy(old), sentences())
    assert (result.predicted_kl, result.measured_kl, result.agreement, result.reliable) == (0.0, 0.0, 1.0, True)
    assert result.old_correct == result.new_correct
    assert (result.negative_flips, result.positive_flips) == (0, 0)


def test_flips_are_counted_over_labelled_examples(bert, sentences) -> None:
    old, data = bert(), sentences(40)
    new = moved(old, 0.15)
    data.examples = tuple(Example(e.id, e.text, -1 if at < 10 else e.label) for at, e in enumerate(data.examples))
    (batch,) = data.batches(40)
    one, other = (task.module(**batch.inputs).argmax(1) for task in (old, new))
    known = batch.labels >= 0
    result = behaviour(old, new, data, batch_size=9)
    assert result.labelled == 30
    assert result.agreement == pytest.approx(float((one == other).double().mean()))
    assert 0 < result.agreement < 1
    assert result.old_correct == int(((one == batch.labels) & known).sum())
    assert result.new_correct == int(((other == batch.labels) & known).sum())
    assert result.negative_flips == int(((one == batch.labels) & (other != batch.labels) & known).sum())
    assert result.positive_flips == int(((one != batch.labels) & (other == batch.labels) & known).sum())
    assert result.new_correct - result.old_correct == result.positive_flips - result.negative_flips


def test_models_are_not_touched(bert, sentences) -> None:
    old = bert()
    new = moved(old, 0.1)
    old.module.train()
    before = weights(copy.deepcopy(old))
    behaviour(old, new, sentences())
    assert old.module.training
    assert all(np.array_equal(value, before[name]) for name, value in weights(old).items())


def test_models_that_cannot_be_compared_are_refused(bert, sentences) -> None:
    old = bert()
    with pytest.raises(UsageError, match=r"classifier\.weight.*\[3, 12\].*\[4, 12\]"):
        behaviour(old, bert(4), sentences())
    renamed = copy.deepcopy(old)
    renamed.tensor_of = dict(renamed.tensor_of) | {"head.bias": "other.bias"}
    with pytest.raises(UsageError, match=r"`classifier.bias` is not in the new model"):
        behaviour(old, renamed, sentences())
    with pytest.raises(UsageError, match="at least one example"):
        behaviour(old, old, sentences(), limit=0)
    broken = moved(old, float("nan"))
    with pytest.raises(CheckFailed, match="not finite"):
        behaviour(old, broken, sentences())


def test_shares_of_fisher_mass() -> None:
    diagonal = {"a": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([10], np.float32)}
    share = fisher_share(diagonal, {"a": np.array([1, 3]), "b": None, "new": None})
    assert share.total == pytest.approx(16 / 20)
    assert list(share.by_tensor.items()) == [("b", pytest.approx(0.5)), ("a", pytest.approx(0.3))]
    assert fisher_share({"a": np.zeros(3, np.float32)}, {"a": None}).total == 0.0
    with pytest.raises(UsageError, match="`b`"):
        diagonal_kl(diagonal, diagonal, {"a": diagonal["a"]})
