"""The measured divergence, flips and likelihoods against their definitions, and sums over the diagonal."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.fisher.kl import fisher_mass, measure  # noqa: E402
from modelgit.models.base import Example, TaskModel  # noqa: E402
from tests.fisher.language import language_model, sequences  # noqa: E402


def moved(task: TaskModel, size: float, *, seed: int = 0) -> TaskModel:
    """A copy with independent Gaussian noise of standard deviation `size` on every weight."""
    other = copy.deepcopy(task)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter += torch.randn(parameter.shape, generator=draw) * size
    return other


def test_measured_kl_is_the_definition(bert, sentences) -> None:
    old, data = bert(4, scale=3.0), sentences(30)
    new = moved(old, 0.3)
    total = 0.0
    for batch in data.batches(1):
        p, q = (task.module(**batch.inputs).double().softmax(1).detach() for task in (old, new))
        total += float((p * (p / q).log()).sum()) / 30
    result = measure(old, new, data, batch_size=7)
    assert result.kl == pytest.approx(total, rel=1e-5)
    assert result.kl_per_output == pytest.approx(total, rel=1e-5)
    assert measure(old, new, data, batch_size=30).kl == pytest.approx(result.kl, rel=1e-6)
    assert measure(new, old, data).kl != pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_a_sequence_is_the_sum_of_its_tokens(batch_size: int) -> None:
    old, new, data = language_model(0), language_model(1), sequences(9)
    kl, same, tokens, losses, changed = [], 0, 0, [0.0, 0.0], []
    for ids in data.ids:
        p, q = (m.module(torch.tensor([ids]))[0].detach().double().log_softmax(1) for m in (old, new))
        steps = range(len(ids) - 1)
        kl.append(sum(float((p[t].exp() * (p[t] - q[t])).sum()) for t in steps))
        changed.append(sum(int(p[t].argmax() != q[t].argmax()) for t in steps))
        tokens += len(steps)
        same += len(steps) - changed[-1]
        for side, log in enumerate((p, q)):
            losses[side] -= sum(float(log[t, ids[t + 1]]) for t in steps)
    result = measure(old, new, data, batch_size=batch_size)
    assert result.kl == pytest.approx(sum(kl) / 9, rel=1e-5)
    assert result.outputs == result.labelled == tokens
    assert result.kl_per_output == pytest.approx(sum(kl) / tokens, rel=1e-5)
    assert result.agreement == pytest.approx(same / tokens)
    assert (result.old_loss, result.new_loss) == (
        pytest.approx(losses[0] / tokens, rel=1e-5),
        pytest.approx(losses[1] / tokens, rel=1e-5),
    )
    assert result.flipped == sum(count > 0 for count in changed)
    worst = result.flips[0]
    assert worst.kl == pytest.approx(max(kl), rel=1e-5)
    assert (worst.changed, worst.outputs) == (changed[worst.index], len(data.ids[worst.index]) - 1)


def test_means_diverge_by_half_their_squared_distance(bound, vectors) -> None:
    old = bound(torch.nn.Linear(5, 4), 4)
    old.module.register_module("unused", None)
    old.likelihood = "gaussian"
    new = moved(old, 0.2)
    data = vectors(5, name="input")
    (batch,) = data.batches(20)
    distance = (old.module(**batch.inputs) - new.module(**batch.inputs)).square().sum(1).mean().detach()
    result = measure(old, new, data, batch_size=6)
    assert result.kl == pytest.approx(float(distance) / 2, rel=1e-5)
    assert (result.flipped, result.labelled, result.old_loss) == (0, 0, None)
    categorical = replace(new, likelihood="categorical")
    with pytest.raises(UsageError, match="gaussian before, categorical after"):
        measure(old, categorical, data)


def test_equal_models_behave_equally(bert, sentences) -> None:
    old = bert()
    result = measure(old, copy.deepcopy(old), sentences())
    assert (result.kl, result.agreement, result.flipped, result.flips) == (0.0, 1.0, 0, ())
    assert result.old_correct == result.new_correct
    assert (result.negative_flips, result.positive_flips) == (0, 0)


def test_flips_are_counted_over_labelled_examples(bert, sentences) -> None:
    old, data = bert(), sentences(40)
    new = moved(old, 0.4)
    data.examples = tuple(Example(e.id, e.text, -1 if at < 10 else e.label) for at, e in enumerate(data.examples))
    (batch,) = data.batches(40)
    logits = [task.module(**batch.inputs).double() for task in (old, new)]
    one, other = (side.argmax(1) for side in logits)
    known = batch.labels >= 0
    result = measure(old, new, data, batch_size=9, listed=3)
    assert result.labelled == 30
    assert result.agreement == pytest.approx(float((one == other).double().mean()))
    assert 0 < result.agreement < 1
    assert result.old_correct == int(((one == batch.labels) & known).sum())
    assert result.new_correct == int(((other == batch.labels) & known).sum())
    assert result.negative_flips == int(((one == batch.labels) & (other != batch.labels) & known).sum())
    assert result.positive_flips == int(((one != batch.labels) & (other == batch.labels) & known).sum())
    assert result.new_correct - result.old_correct == result.positive_flips - result.negative_flips
    assert result.flipped == int((one != other).sum()) > 3
    assert len(result.flips) == 3
    assert [flip.kl for flip in result.flips] == sorted((flip.kl for flip in result.flips), reverse=True)
    for flip in result.flips:
        row = batch.indices.index(flip.index)
        assert (flip.old, flip.new) == (int(one[row]), int(other[row]))
        first, second = logits[0][row].softmax(0).sort(descending=True).values[:2].tolist()
        assert flip.old_margin == pytest.approx(first - second, rel=1e-4)


def test_models_are_not_touched(bert, sentences) -> None:
    old = bert()
    new = moved(old, 0.1)
    old.module.train()
    before = {name: value.clone() for name, value in old.module.state_dict().items()}
    measure(old, new, sentences())
    assert old.module.training
    assert all(torch.equal(value, before[name]) for name, value in old.module.state_dict().items())


def test_what_cannot_be_compared_is_refused(bert, sentences) -> None:
    old = bert()
    with pytest.raises(UsageError, match="3 classes before, 4 classes after"):
        measure(old, bert(4), sentences())
    with pytest.raises(UsageError, match="at least one example"):
        measure(old, old, sentences(), limit=0)
    with pytest.raises(CheckFailed, match=r"logits for example `.*` are not finite"):
        measure(old, moved(old, float("nan")), sentences())


def test_a_class_that_is_ruled_out_counts_nothing(bound, vectors) -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.linear(x), torch.full((len(x), 1), -math.inf)], dim=1)

    old = bound(Masked(), 4)
    new = moved(old, 0.1)
    data = vectors(5)
    inner = [bound(model.module.linear) for model in (old, new)]
    expected = measure(*inner, vectors(5, name="input")).kl
    assert measure(old, new, data).kl == pytest.approx(expected, rel=1e-6)


def test_shares_of_fisher_mass_and_the_diagonal() -> None:
    diagonal = {"a": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([10], np.float32)}
    old = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    new = {"a": np.array([[0, 0.5], [0, 1]], np.float32), "b": np.zeros(1, np.float32)}
    mass = fisher_mass(diagonal, old, new, ["a", "b", "new"])
    assert mass.share == pytest.approx(16 / 20)
    assert list(mass.by_tensor.items()) == [("b", pytest.approx(0.5)), ("a", pytest.approx(0.3))]
    assert mass.divergence == pytest.approx(0.5 * (2 * 0.25 + 4))
    assert fisher_mass(diagonal, old, new, ["a"]).share == pytest.approx(6 / 20)
    assert fisher_mass({"a": np.zeros(3, np.float32)}, {}, {}, ["a"]).share == 0.0
