"""The directional form against closed forms and finite differences, and its parts against the whole."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from modelgit.fisher.behaviour import behaviour, diagonal_note  # noqa: E402
from modelgit.fisher.directional import Change, Directional, directional, share_equal, take_change  # noqa: E402
from modelgit.fisher.estimate import estimate  # noqa: E402
from modelgit.fisher.kl import fisher_mass, measure  # noqa: E402
from modelgit.models.base import ExampleSet, TaskModel  # noqa: E402
from modelgit.testing.models import TinyModel, tiny_conv_net, tiny_language_model, tiny_unknown_module  # noqa: E402
from tests.fisher.language import language_model, sequences  # noqa: E402
from tests.fisher.test_kl import moved  # noqa: E402


def form(old: TaskModel, new: TaskModel, data: ExampleSet, **options: int) -> Directional:
    return directional(old, take_change(old, copy.deepcopy(new)), data, **options)


def weights(task: TaskModel) -> dict[str, np.ndarray]:
    return {task.tensor_of[name]: value.detach().numpy() for name, value in task.module.named_parameters()}


@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3, 1e-2])
def test_the_form_predicts_small_steps(bert, sentences, size: float) -> None:
    old = bert(4, scale=3.0)
    new = moved(old, size)
    found = form(old, new, sentences(60))
    assert (found.method, found.note) == ("jvp", None)
    assert found.kl == pytest.approx(measure(old, new, sentences(60)).kl, rel=0.1)
    half = form(old, moved(old, size / 2), sentences(60))
    assert found.kl / half.kl == pytest.approx(4, rel=0.02)


def test_a_linear_softmax_model_has_a_closed_form(bound, vectors) -> None:
    old = bound(nn.Linear(5, 3), 3)
    new, data = moved(old, 1.0), vectors(5, name="input")
    (batch,) = data.batches(20)
    x = torch.cat([batch.inputs["input"], torch.ones(20, 1)], dim=1).double()
    w, shifted = (torch.cat([m.module.weight, m.module.bias[:, None]], dim=1).detach().double() for m in (old, new))
    p = (x @ w.T).softmax(1)
    # The Hessian of the divergence: E[(diag p - p p^T) (x) x x^T].
    fisher = sum(torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(r, r)) for q, r in zip(p, x, strict=True))
    delta = (shifted - w).reshape(-1)
    expected = 0.5 * float(delta @ fisher @ delta) / 20
    found = form(old, new, data, batch_size=7)
    assert found.kl == pytest.approx(expected, rel=1e-5)
    curved = (delta * (fisher @ delta)).reshape(3, 6) / 40
    assert found.by_tensor == {
        "weight": pytest.approx(float(curved[:, :5].sum()), rel=1e-4),
        "bias": pytest.approx(float(curved[:, 5].sum()), rel=1e-4),
    }


def grouped(old: TaskModel, new: TaskModel, data: ExampleSet) -> dict[str, float]:
    """d_g^T F d / 2 for each tensor g by finite differences: the mean of s_g^T H s over central differences s."""
    (batch,) = data.batches(len(data))
    old = copy.deepcopy(old)
    old.module.double()
    base = {name: parameter.detach().clone() for name, parameter in old.module.named_parameters()}
    after = dict(new.module.named_parameters())
    delta = {name: after[name].detach().double() - value for name, value in base.items()}

    def run(step: float, names: set[str]) -> torch.Tensor:
        with torch.no_grad():
            for name, parameter in old.module.named_parameters():
                parameter.copy_(base[name] + (step * delta[name] if name in names else 0.0))
            out = old.module(**{n: v.double() if v.is_floating_point() else v for n, v in batch.inputs.items()})
        return out if batch.counted is None else out[batch.counted]

    def slope(names: set[str]) -> torch.Tensor:
        return (run(1e-4, names) - run(-1e-4, names)) / 2e-4

    p = run(0.0, set()).softmax(-1)
    whole = slope(set(base))
    pull = whole if old.likelihood == "gaussian" else p * (whole - (p * whole).sum(-1, keepdim=True))
    return {old.tensor_of[name]: float((slope({name}) * pull).sum()) / 2 / len(data) for name in base}


def check_parts(old: TaskModel, new: TaskModel, data: ExampleSet, *, rel: float = 1e-3) -> Directional:
    found = form(old, new, data, batch_size=4)
    assert found.by_tensor is not None
    assert sum(found.by_tensor.values()) == pytest.approx(found.kl, rel=1e-4)
    expected = grouped(old, new, data)
    largest = max(map(abs, expected.values()))
    assert found.by_tensor.keys() == expected.keys()
    for name, value in expected.items():
        assert found.by_tensor[name] == pytest.approx(value, rel=rel, abs=0.1 * rel * largest), name
    return found


def test_parts_of_a_classifier(bert, sentences) -> None:
    old = bert(4, scale=3.0)
    found = check_parts(old, moved(old, 0.02), sentences(12))
    assert found.by_tensor is not None
    assert min(found.by_tensor.values()) < 0  # a part may undo another's: they share out, they do not rank alone


def test_parts_of_a_language_model_with_tied_weights() -> None:
    old = language_model()
    new = moved(old, 0.02)
    assert new.module.out.weight is new.module.embed.weight
    found = check_parts(old, new, sequences(8))
    measured = measure(old, moved(old, 0.002), sequences(8))
    assert form(old, moved(old, 0.002), sequences(8)).kl == pytest.approx(measured.kl, rel=0.1)
    assert found.by_tensor is not None and "model.embed.weight" in found.by_tensor


@pytest.mark.parametrize("make", [tiny_conv_net, tiny_unknown_module])
def test_parts_of_convolutions_and_of_layers_that_nobody_knows(
    tmp_path: Path, make: Callable[[Path], TinyModel]
) -> None:
    tiny = make(tmp_path)
    numbers = 64 if make is tiny_conv_net else 4
    draw = np.random.default_rng(0)
    rows = [{"text": " ".join(f"{value:.3f}" for value in draw.standard_normal(numbers))} for _ in range(10)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    old, data = tiny.build(), tiny.encode(tmp_path / "data.jsonl")
    assert check_parts(old, moved(old, 0.003), data).method == "jvp"


def test_parts_of_a_transformer_with_tied_weights(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tiny = tiny_language_model()
    (tmp_path / "data.jsonl").write_text('{"text": "it rains"}\n{"text": "a"}\n{"text": "where is the king"}\n')
    old, data = tiny.build(), tiny.encode(tmp_path / "data.jsonl")
    # Its outputs are float32 whatever the weights are, which bounds what finite differences can tell.
    assert check_parts(old, moved(old, 0.003), data, rel=0.02).method == "jvp"


def test_two_parameters_of_one_tensor_are_one_part(bound, vectors) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.second(torch.tanh(self.first(x)))
            return out

    old = bound(Twice(), 4, second__weight="first.weight", second__bias="first.bias")
    new = copy.deepcopy(old)
    with torch.no_grad():
        for part in (new.module.first, new.module.second):
            part.weight.add_(0.01 * torch.arange(16.0).reshape(4, 4).cos())
    found = form(old, new, vectors(4))
    assert found.by_tensor is not None and list(found.by_tensor) == ["first.weight"]
    assert found.by_tensor["first.weight"] == pytest.approx(found.kl, rel=1e-4)
    assert found.kl == pytest.approx(measure(old, new, vectors(4)).kl, rel=0.1)


def test_means_have_the_identity_for_information(bound, vectors) -> None:
    old = bound(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), 4)
    old.likelihood = "gaussian"
    new, data = moved(old, 1e-3), vectors(5, name="input")
    check_parts(old, new, data)
    assert form(old, new, data).kl == pytest.approx(measure(old, new, data).kl, rel=0.05)


class Opaque(torch.autograd.Function):
    """A layer with a backward and no forward mode."""

    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class Dead(Opaque):
    """A layer without a derivative of any kind."""

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not differentiable")


class WithLayer(nn.Module):
    def __init__(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.layer = nn.Linear(5, 4), nn.Linear(4, 3), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.other(self.layer(torch.tanh(self.one(x))))
        return out


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_a_layer_without_forward_mode_is_differenced(bound, vectors, size: float) -> None:
    old = bound(WithLayer(Opaque.apply))
    found = form(old, moved(old, size), vectors(5))
    assert found.method == "central differences" and "no forward derivative" in str(found.note)
    plain = bound(WithLayer(lambda value: value * 2))
    plain.module.load_state_dict(old.module.state_dict())
    exact = form(plain, moved(plain, size), vectors(5))
    assert exact.method == "jvp"
    assert found.kl == pytest.approx(exact.kl, rel=2e-3)
    assert found.by_tensor == pytest.approx(exact.by_tensor, rel=1e-2)


def test_a_gradient_that_misses_part_of_the_change_is_not_shared_out(bound, vectors) -> None:
    class Cut(Opaque):
        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(gradient)

    cut = bound(WithLayer(Cut.apply))
    found = form(cut, moved(cut, 0.05), vectors(5))
    assert found.method == "central differences"
    assert found.by_tensor is None and "does not see the whole change" in str(found.note)
    dead = bound(WithLayer(Dead.apply))
    found = form(dead, moved(dead, 0.05), vectors(5))
    assert found.by_tensor is None and "has no gradient (not differentiable)" in str(found.note)
    assert found.kl > 0


def test_the_diagonal_predicts_noise_but_not_a_coherent_change(bert, sentences) -> None:
    old, data = bert(4, scale=3.0), sentences(60)
    diagonal = estimate(old, data).values
    noise = [moved(old, 3e-3, seed=seed) for seed in range(12)]
    predicted = [fisher_mass(diagonal, weights(old), weights(new), diagonal).divergence for new in noise]
    exact = [form(old, new, data).kl for new in noise]
    assert np.mean(predicted) == pytest.approx(np.mean(exact), rel=0.25)
    # A step along the mean gradient of one class is coherent: all its cross terms have one sign.
    new = copy.deepcopy(old)
    (batch,) = data.batches(60)
    parameters = list(new.module.parameters())
    gradients = torch.autograd.grad(new.module(**batch.inputs).log_softmax(1)[:, 0].sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += gradient * 1e-4
    predicted = fisher_mass(diagonal, weights(old), weights(new), diagonal).divergence
    assert predicted < form(old, new, data).kl / 5


def test_a_head_of_another_shape_stays_apart(bert, sentences) -> None:
    old, new = bert(3), bert(4)
    with torch.no_grad():
        new.module.body.load_state_dict(old.module.body.state_dict())
        new.module.body.encoder["layer"][0].output.dense.bias.add_(torch.linspace(0, 0.1, 12))
    change = take_change(old, new)
    assert change.apart == ("classifier.bias", "classifier.weight")
    assert list(change.deltas) == ["body.encoder.layer.0.output.dense.bias"]
    found = directional(old, change, sentences())
    assert found.by_tensor == {"encoder.layer.0.output.dense.bias": pytest.approx(found.kl, rel=1e-4)}


def test_a_change_that_a_normalisation_takes_out_is_rounding(bert, sentences) -> None:
    old, new = bert(), bert()
    with torch.no_grad():
        new.module.load_state_dict(old.module.state_dict())
        new.module.body.encoder["layer"][0].output.dense.bias.add_(0.01)
    found = form(old, new, sentences())
    assert found.kl < 1e-14 and found.note is None
    assert found.by_tensor is not None and abs(sum(found.by_tensor.values())) < 1e-14


def test_taking_the_change_holds_no_third_model(bert) -> None:
    old = bert()
    new = moved(old, 0.1)
    before = copy.deepcopy(old)
    expected = {
        n: q.detach() - p.detach()
        for (n, p), q in zip(old.module.named_parameters(), new.module.parameters(), strict=True)
    }
    places = {parameter.data_ptr() for parameter in new.module.parameters()}
    change = take_change(old, new)
    assert {delta.data_ptr() for delta in change.deltas.values()} <= places
    assert all(torch.equal(change.deltas[name], value) for name, value in expected.items())
    assert all(torch.equal(p, q) for p, q in zip(old.module.parameters(), before.module.parameters(), strict=True))
    assert not any(parameter.numel() for parameter in new.module.parameters())


def test_equal_tensors_are_held_once(bert, sentences) -> None:
    old = bert()
    new = copy.deepcopy(old)
    with torch.no_grad():
        new.module.head.bias.add_(1.0)
    share_equal(old, new)
    shared = [
        p.data_ptr() == q.data_ptr() for p, q in zip(old.module.parameters(), new.module.parameters(), strict=True)
    ]
    assert shared.count(False) == 1
    expected = measure(old, new, sentences()).kl
    change = take_change(old, new)
    assert list(change.deltas) == ["head.bias"]
    assert expected > 0
    assert measure(old, old, sentences()).kl == 0


def test_running_statistics_are_named(bound, vectors) -> None:
    old = bound(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)))
    new = copy.deepcopy(old)
    new.module[1].running_mean.add_(0.1)
    assert take_change(old, new) == Change({}, (), ("1.running_mean",))


def test_the_model_is_left_as_it_was(bert, sentences) -> None:
    old = bert()
    old.module.train()
    flags = [
        parameter.requires_grad_(at % 2 == 0).requires_grad for at, parameter in enumerate(old.module.parameters())
    ]
    gradient = torch.ones_like(old.module.head.bias)
    old.module.head.bias.grad = gradient
    before = copy.deepcopy(old.module.state_dict())
    form(old, moved(old, 0.1), sentences())
    assert old.module.training
    assert [parameter.requires_grad for parameter in old.module.parameters()] == flags
    assert old.module.head.bias.grad is gradient and bool((gradient == 1).all())
    assert all(torch.equal(value, before[name]) for name, value in old.module.state_dict().items())


def test_the_diagonal_is_held_back_beyond_a_factor_of_two() -> None:
    assert diagonal_note(1.0, 1.9) is diagonal_note(1.9, 1.0) is diagonal_note(0.0, 0.0) is None
    assert "921 times lower than the directional one" in str(diagonal_note(1.0, 921.0))
    assert "2.5 times higher" in str(diagonal_note(2.5, 1.0))
    assert "infinitely lower" in str(diagonal_note(0.0, 1.0))
    assert "of other data" not in str(diagonal_note(1.0, 3.0))
    assert "of other data" in str(diagonal_note(1.0, 3.0, same_data=False))


def test_what_limits_the_numbers_is_said(bert, sentences) -> None:
    old = bert(4, scale=3.0)
    small = behaviour(old, moved(old, 1e-3), sentences())
    assert small.reliable and small.notes == ()
    large = behaviour(old, moved(old, 1.0), sentences())
    assert not large.reliable and "the change is large (over 0.05 nats per output)" in large.notes[0]
    tiny = behaviour(old, moved(old, 2e-8), sentences())
    assert tiny.reliable and (not tiny.notes or "below what outputs in float32 show" in tiny.notes[0])
    heads = behaviour(bert(3), bert(4), sentences())
    assert heads.measured is None and not heads.reliable
    assert "3 categorical outputs and 4 categorical outputs" in heads.notes[0]
    assert "leaves out `classifier.bias` and 1 more" in heads.notes[1]
