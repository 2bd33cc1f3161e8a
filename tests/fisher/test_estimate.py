"""The Fisher diagonal equals its definition, computed one example and one label at a time."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.fisher.estimate import EXACT_CLASSES, estimate  # noqa: E402
from modelgit.fisher.hooks import GradientSquares  # noqa: E402
from modelgit.models.base import Example, ExampleSet, TaskModel  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402
from modelgit.models.entry import InputSet  # noqa: E402
from modelgit.progress import SilentProgress  # noqa: E402

Values = dict[str, np.ndarray]


def naive(task: TaskModel, data: ExampleSet, weight: Callable[[torch.Tensor, int, int], float]) -> Values:
    """Sum over labels of `weight(p, label, true label)` (d log p_label)^2, averaged over examples, in float64."""
    parameters = dict(task.module.named_parameters())
    totals = {tensor: torch.zeros_like(parameters[name]) for name, tensor in task.tensor_of.items()}
    for batch in data.batches(1):
        log_p = task.module(**batch.inputs).log_softmax(-1)[0]
        for label in range(task.classes):
            factor = weight(log_p.detach().exp(), label, int(batch.labels[0]))
            gradients = torch.autograd.grad(
                log_p[label], list(parameters.values()), retain_graph=True, allow_unused=True
            )
            summed: dict[str, torch.Tensor] = {}
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    gradient = gradient.to_dense() if gradient.is_sparse else gradient
                    summed[task.tensor_of[name]] = summed.get(task.tensor_of[name], 0) + gradient
            for tensor, gradient in summed.items():
                totals[tensor] += factor * gradient.square()
    return {tensor: (total / len(data)).numpy() for tensor, total in totals.items()}


def exact(p: torch.Tensor, label: int, _: int) -> float:
    return float(p[label])


def empirical(_: torch.Tensor, label: int, true: int) -> float:
    return float(label == true)


def assert_same(got: Values, expected: Values, *, relative: float = 1e-5) -> None:
    """Equal to `relative` of the largest value of each tensor, and of the model for what should vanish."""
    assert got.keys() == expected.keys()
    largest = max(value.max() for value in expected.values())
    for name, value in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(
            got[name], value, rtol=0, atol=relative * max(value.max(), 1e-6 * largest), err_msg=name
        )


@pytest.mark.parametrize(("estimator", "weight"), [("exact", exact), ("empirical", empirical)])
@pytest.mark.parametrize("classes", [2, 5])
def test_bert_equals_the_definition(bert, sentences, estimator: str, weight, classes: int) -> None:
    task, data = bert(classes), sentences(classes=classes)
    result = estimate(task, data, estimator=estimator, batch_size=7)
    assert (result.estimator, result.examples, result.data) == (estimator, 24, "sentences")
    assert result.values.keys() == set(task.tensor_of.values())
    assert_same(result.values, naive(task, data, weight))


def test_bert_takes_the_fast_way_for_every_tensor(bert, sentences) -> None:
    task = bert()
    squares = GradientSquares(task.module, task.tensor_of)
    for batch in sentences().batches(8):
        squares.add(batch.inputs, lambda logits, _: [torch.ones_like(logits)])
    assert squares.slow == set()


def test_key_biases_have_no_fisher_and_unseen_words_exactly_none(bert, sentences) -> None:
    values = estimate(bert(scale=4.0), sentences()).values
    for layer in range(2):
        at = f"encoder.layer.{layer}.attention.self"
        assert values[f"{at}.key.bias"].max() < 1e-9 * values[f"{at}.value.bias"].max()
    words = values["embeddings.word_embeddings.weight"]
    assert (words[25:] == 0).all()
    assert (words[:25].sum(1) > 0).all()
    assert (values["embeddings.position_embeddings.weight"][12:] == 0).all()


@pytest.mark.parametrize("estimator", ["exact", "rademacher", "sampled", "empirical"])
def test_batches_do_not_matter(bert, sentences, estimator: str) -> None:
    task, data = bert(4), sentences(33, classes=4)
    one, eight, many = (
        estimate(task, data, estimator=estimator, batch_size=size, seed=3).values for size in (1, 8, 32)
    )
    assert_same(eight, one)
    assert_same(many, one)


def test_the_square_of_a_batch_gradient_would_be_noticed(bert, sentences) -> None:
    """The usual mistake is off by about the batch size: the comparisons of this module can fail."""
    task, data = bert(), sentences()
    (batch,) = data.batches(len(data))
    loss = functional.cross_entropy(task.module(**batch.inputs), batch.labels)
    gradients = torch.autograd.grad(loss, list(task.module.parameters()))
    wrong = {tensor: g.square().numpy() for tensor, g in zip(task.tensor_of.values(), gradients, strict=True)}
    with pytest.raises(AssertionError):
        assert_same(wrong, estimate(task, data, estimator="empirical").values, relative=0.5)


def test_random_signs_are_exact_for_two_classes(bert, sentences) -> None:
    task, data = bert(2), sentences(classes=2)
    assert_same(
        estimate(task, data, estimator="rademacher", seed=9).values, estimate(task, data, estimator="exact").values
    )


@pytest.mark.parametrize(("estimator", "draws"), [("rademacher", 64), ("sampled", 600)])
def test_random_estimators_have_no_bias(bert, sentences, estimator: str, draws: int) -> None:
    """Every sentence stands in the data many times: one estimate is then the mean of as many independent ones."""
    task, data = bert(4, scale=2.0), sentences(12, classes=4)
    expected = estimate(task, data, estimator="exact").values
    data.examples, data.ids = data.examples * draws, data.ids * draws
    means = estimate(task, data, estimator=estimator, limit=None, batch_size=512).values
    for name, value in expected.items():
        if not name.endswith("key.bias"):
            assert means[name].sum() == pytest.approx(value.sum(), rel=0.05), name


def test_seeds_and_limits_count(bert, sentences) -> None:
    task, data = bert(4), sentences(classes=4)
    one = estimate(task, data, estimator="rademacher", seed=1).values
    again = estimate(task, data, estimator="rademacher", seed=1).values
    other = estimate(task, data, estimator="rademacher", seed=2).values
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    few = estimate(task, data, limit=5)
    assert few.examples == 5
    order = list(range(len(data)))
    random.Random(0).shuffle(order)
    assert_same(few.values, estimate(task, data.select(order[:5]), limit=None).values)


def test_auto_is_exact_for_few_classes_only(bert, sentences) -> None:
    assert estimate(bert(EXACT_CLASSES), sentences(), limit=2).estimator == "exact"
    assert estimate(bert(EXACT_CLASSES + 1), sentences(), limit=2).estimator == "rademacher"


class Tokens(nn.Module):
    """Embedding with padding, mean, linear; `body` in between."""

    def __init__(self, body: nn.Module, *, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0, sparse=sparse)
        self.body = body
        self.top = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.body(self.embed(x)).mean(1))


class TiedDecoder(nn.Module):
    """Scores against the embedding table itself, used outside its layer: hooks alone see half of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 6)
        self.mix = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.mix(self.embed(x)).tanh().mean(1), self.embed.weight)


class Twice(nn.Module):
    """One layer called twice, and one parameter object shared by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.left = nn.Linear(5, 3)
        self.right = nn.Linear(5, 3)
        self.right.weight = self.left.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.step(self.norm(self.step(x)).tanh()))
        return self.left(x[:, 0]) + self.right(x[:, 1:].sin()).sum(1)


class Swapped(nn.Module):
    """Tokens first, examples second, as recurrent code likes it: the first axis is no example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.inner = nn.Linear(5, 4)
        self.top = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.inner(self.embed(x.t())).tanh().sum(0))


class Branching(nn.Module):
    """Control flow that looks at the data: vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5, 2.0]))
        self.top = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [z * self.scale if bool(row[0] > 0) else -z for row, z in zip(x, self.top(x), strict=True)]
        return torch.stack(rows)


class Attention(nn.Module):
    """torch's own attention uses the weights of its output layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.top = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.attend(x, x, x, need_weights=False)[0].tanh().mean(1))


class Stack(nn.Module):
    """Layers in a row, then the mean over whatever axes are left between the examples and the classes."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.layers(x)
        return z.reshape(len(x), -1, z.shape[-1]).mean(1)


def image_net() -> nn.Module:
    return Stack(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3, bias=False)
    )


def perceptron() -> nn.Module:
    return Stack(
        nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(7, 7), nn.LayerNorm(7), nn.Linear(7, 3)
    )


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int | None, set[str]]] = {
    "perceptron": (perceptron, (5,), None, set()),
    "positions": (perceptron, (4, 2, 5), None, set()),
    "padding": (lambda: Tokens(nn.LayerNorm(6, bias=False)), (8,), 11, set()),
    "sparse": (lambda: Tokens(nn.Identity(), sparse=True), (8,), 11, set()),
    "convolution": (
        image_net,
        (2, 6, 6),
        None,
        set(),
    ),
    "recurrent": (
        lambda: Tokens(Only(nn.GRU(6, 6, batch_first=True))),
        (8,),
        11,
        {f"body.inner.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    ),
    "functional": (TiedDecoder, (4,), 3, set()),
    "twice": (Twice, (3, 5), None, set()),
    "swapped": (Swapped, (4,), 9, {"embed.weight", "inner.weight", "inner.bias"}),
    "branching": (Branching, (5,), None, {"scale"}),
    "attention": (
        Attention,
        (4, 6),
        None,
        set(),
    ),
}


class Only(nn.Module):
    """The first of a module's several outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


def module_case(name: str, vectors) -> tuple[nn.Module, InputSet, set[str]]:
    make, shape, high, slow = MODULES[name]
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module, vectors(*shape, high=high), slow


@pytest.mark.parametrize("name", sorted(MODULES))
def test_any_module_equals_the_definition(name: str, bound, vectors) -> None:
    module, data, slow = module_case(name, vectors)
    task = bound(module)
    squares = GradientSquares(module, task.tensor_of)
    squares.add(next(data.batches(8)).inputs, lambda logits, _: [torch.ones_like(logits)])
    assert squares.slow == slow
    module.requires_grad_(True)
    expected = naive(task, data, exact)
    for size in (1, 7):
        assert_same(estimate(task, data, batch_size=size).values, expected)


def test_parameters_of_one_tensor_are_added_before_the_square(bound, vectors) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(5, 3)
            self.other = nn.Linear(5, 3)
            self.filter = nn.Conv1d(1, 3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.other(x.sin()) + self.filter(x[:, None])[:, :, 0]

    task = bound(Pair(), other__weight="one.weight", other__bias="one.bias", filter__bias="one.bias")
    data = vectors(5)
    assert_same(estimate(task, data).values, naive(task, data, exact))


def test_the_model_is_left_as_it_was(bound, vectors) -> None:
    module = perceptron()
    module.layers[2].eval()
    module.layers[0].weight.requires_grad_(False)
    before = [(part.training, len(part._forward_hooks)) for part in module.modules()]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    estimate(bound(module), vectors(5))
    assert [(part.training, len(part._forward_hooks)) for part in module.modules()] == before
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_tiny_gradients_are_not_lost(bound, vectors) -> None:
    """Gradients of 1e-19 have squares of 1e-38, at the edge of float32; sixteen of them still add up."""
    module = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(module.weight)
    data = InputSet(tuple(Example(str(at), "", 0) for at in range(16)), "d", {"input": torch.full((16, 4), 2.0**-61)})
    values = estimate(bound(module, classes=2), data).values["weight"]
    np.testing.assert_allclose(values, np.full((2, 4), 0.25 * 2.0**-122), rtol=1e-6)


def test_progress_counts_examples_and_can_stop(bert, sentences) -> None:
    class Counter(SilentProgress):
        def __init__(self) -> None:
            self.done, self.ended = 0, False

        def advance(self, task: str, amount: int) -> None:
            self.done += amount

        def finish(self, task: str) -> None:
            self.ended = True

    class Stopper(Counter):
        def check(self) -> None:
            if self.done >= 8:
                raise KeyboardInterrupt

    counter, stopper, task = Counter(), Stopper(), bert()
    estimate(task, sentences(), limit=20, batch_size=8, progress=counter)
    assert (counter.done, counter.ended) == (20, True)
    with pytest.raises(KeyboardInterrupt):
        estimate(task, sentences(), batch_size=8, progress=stopper)
    assert (stopper.done, stopper.ended) == (8, True)
    assert all(parameter.requires_grad for parameter in task.module.parameters())


def test_what_cannot_be_estimated_is_said(bert, bound, vectors, sentences) -> None:
    with pytest.raises(UsageError, match="no Fisher estimator `exat`"):
        estimate(bert(), sentences(), estimator="exat")
    with pytest.raises(UsageError, match="at least one example"):
        estimate(bert(), sentences(), limit=0)
    data = sentences()
    data.examples = (*data.examples[:3], Example("q4", "", -1), *data.examples[4:])
    with pytest.raises(UsageError, match="`q4` has no label"):
        estimate(bert(), data, estimator="empirical")
    assert estimate(bert(), data, estimator="exact").examples == 24
    with pytest.raises(UsageError, match="two outputs"):
        estimate(bert(1), sentences())
    task: BoundModel = bert()
    task.classes = 4
    with pytest.raises(UsageError, match="4 classes"):
        estimate(task, sentences())
    task = bert()
    with torch.no_grad():
        task.module.head.bias[0] = float("nan")
    with pytest.raises(CheckFailed, match="not finite"):
        estimate(task, sentences())
