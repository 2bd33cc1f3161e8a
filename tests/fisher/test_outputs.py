"""Examples with several outputs, and outputs that are means: tokens, tags, the ends of answers, embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.fisher import directions as module_directions  # noqa: E402
from modelgit.fisher.directions import directions  # noqa: E402
from modelgit.fisher.estimate import estimate  # noqa: E402
from modelgit.models.base import Batch, Example  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402

VOCABULARY = 6


class Tagger(nn.Module):
    """Embedding, neighbours mixed, one row of logits for each token; the embedding is the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 5)
        self.mix = nn.Linear(5, 5)

    def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        z = self.embed(ids) * attention[:, :, None]
        z = self.mix(z + z.cumsum(1)).tanh()
        return nn.functional.linear(z, self.embed.weight)


@dataclass
class Texts:
    """Token ids padded on either side; every token but the first is to be predicted."""

    ids: tuple[tuple[int, ...], ...]
    left: bool = False
    fingerprint: str = "texts"

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(Example(str(at), "", -1) for at in range(len(self.ids)))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, *, seed: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        order = sorted(range(len(self.ids[:limit])), key=lambda at: len(self.ids[at]))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            width = max(len(self.ids[at]) for at in chosen)
            ids, labels = torch.zeros(len(chosen), width, dtype=torch.int64), torch.full((len(chosen), width), -1)
            there = torch.zeros(len(chosen), width, dtype=torch.bool)
            for row, at in enumerate(chosen):
                text = torch.tensor(self.ids[at])
                first = width - len(text) if self.left else 0
                ids[row, first : first + len(text)] = text
                there[row, first : first + len(text)] = True
                labels[row, first : first + len(text) - 1] = text[1:]
            yield Batch({"ids": ids, "attention": there}, labels, tuple(chosen), labels >= 0)

    def select(self, positions: Sequence[int]) -> Texts:
        return replace(self, ids=tuple(self.ids[at] for at in positions))


def tagger() -> BoundModel:
    torch.manual_seed(3)
    module = Tagger().eval()
    return BoundModel(module, {name: name for name, _ in module.named_parameters()}, frozenset(), VOCABULARY)


def texts(count: int = 14, *, left: bool = False) -> Texts:
    draw = np.random.default_rng(2)
    return Texts(tuple(tuple(draw.integers(0, 6, draw.integers(3, 7)).tolist()) for _ in range(count)), left)


def definition(model: BoundModel, data: Texts, *, given: bool = False) -> dict[str, np.ndarray]:
    """The Fisher diagonal of sum log p over the counted tokens, whose labels are independent given the text.

    With `given` the square of the sum over the tokens at hand, cross terms and all.
    """
    named = dict(model.module.named_parameters())
    totals = {name: torch.zeros_like(value) for name, value in named.items()}

    def gradient(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(value, list(named.values()), retain_graph=True)

    for batch in data.batches(1):
        log_p = model.module(**batch.inputs).log_softmax(-1)[0]
        rows = batch.counted[0].nonzero()[:, 0].tolist()
        if given:
            terms = [(1.0, gradient(log_p[rows, batch.labels[0, rows]].sum()))]
        else:
            terms = [
                (float(log_p[row, label].detach().exp()), gradient(log_p[row, label]))
                for row in rows
                for label in range(VOCABULARY)
            ]
        for factor, gradients in terms:
            for name, value in zip(named, gradients, strict=True):
                totals[name] += factor * value.square()
    return {name: (total / len(data)).numpy() for name, total in totals.items()}


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], relative: float = 1e-5) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=relative * value.max(), err_msg=name)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("size", [1, 5, 32])
def test_tokens_equal_the_definition(size: int, left: bool) -> None:
    model, data = tagger(), texts(left=left)
    assert_close(estimate(model, data, estimator="exact", batch_size=size).values, definition(model, data))
    given = estimate(model, data, estimator="empirical", batch_size=size)
    assert_close(given.values, definition(model, data, given=True))


@pytest.mark.parametrize("estimator", ["rademacher", "sampled"])
def test_random_numbers_depend_neither_on_batches_nor_on_padding(estimator: str) -> None:
    model = tagger()
    one = estimate(model, texts(), estimator=estimator, batch_size=1).values
    for size, left in ((5, False), (32, True), (1, True)):
        assert_close(estimate(model, texts(left=left), estimator=estimator, batch_size=size).values, one)
    assert any(not np.array_equal(one[name], value) for name, value in
               estimate(model, texts(), estimator=estimator, seed=1).values.items())  # fmt: skip


def test_64_random_draws_are_within_five_per_cent() -> None:
    model, data = tagger(), texts()
    expected = estimate(model, data, estimator="exact").values
    draws = [estimate(model, data, estimator="rademacher", seed=seed).values for seed in range(64)]
    for name, value in expected.items():
        assert np.mean([draw[name].sum() for draw in draws]) == pytest.approx(value.sum(), rel=0.05), name


def test_signs_are_independent_by_row_and_example() -> None:
    """One sign pattern for all tokens would leave the cross terms in: most entries would be far off."""
    outputs = torch.zeros(64, 8, 2)
    batch = Batch({}, torch.full((64, 8), -1), tuple(range(64)))
    (drawn,) = directions("rademacher", "categorical", outputs, batch, seed=0)
    signs = drawn[:, :, 0].sign()
    assert float(signs.mean()) == pytest.approx(0, abs=0.15)
    products = (signs.T @ signs / 64 - torch.eye(8)).abs()
    assert float(products.max()) < 0.5
    (again,) = directions("rademacher", "categorical", outputs[10:12], batch._replace(indices=(10, 11)), seed=0)
    assert torch.equal(again, drawn[10:12])


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, counted = torch.randn(5, 7, 9), torch.rand(5, 7) > 0.3
    batch = Batch({}, torch.randint(0, 9, (5, 7)), (4, 8, 1, 0, 2), counted)
    for estimator in ("rademacher", "sampled", "empirical"):
        (whole,) = directions(estimator, "categorical", outputs, batch, seed=5)
        with monkeypatch.context() as patch:
            patch.setattr(module_directions, "_CHUNK_ELEMENTS", 20)
            (parts,) = directions(estimator, "categorical", outputs, batch, seed=5)
        assert torch.equal(whole, parts)
        assert (whole[~counted] == 0).all()
        assert (whole[counted] != 0).any(1).all()


def test_what_does_not_fit_is_refused() -> None:
    model, data = tagger(), texts()
    long = Texts((tuple([1, 2] * 80),))
    with pytest.raises(UsageError, match="795 backward passes for 159 outputs of 6 classes"):
        estimate(model, long, estimator="exact")
    assert estimate(model, long).estimator == "rademacher"
    model.classes = 5
    with pytest.raises(UsageError, match="and 5 classes"):
        estimate(model, data)
    model.classes = 0
    with torch.no_grad():
        model.module.embed.weight[0, 0] = float("inf")
    with pytest.raises(CheckFailed, match="not finite"):
        estimate(model, data)


class Embedder(nn.Module):
    """Vectors as outputs, of unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 7)
        self.top = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.inner(x).tanh().mean(1))


def embedder() -> BoundModel:
    module = Embedder()
    names = {name: name for name, _ in module.named_parameters()}
    return BoundModel(module, names, frozenset({"top.weight", "top.bias"}), 4, "gaussian")


def test_means_have_the_squared_jacobian(vectors) -> None:
    model, data = embedder(), vectors(3, 5)
    named = dict(model.module.named_parameters())
    expected = {name: torch.zeros_like(value) for name, value in named.items()}
    for batch in data.batches(1):
        for output in model.module(**batch.inputs)[0]:
            gradients = torch.autograd.grad(output, list(named.values()), retain_graph=True)
            for name, gradient in zip(named, gradients, strict=True):
                expected[name] += gradient.square() / len(data)
    found = estimate(model, data)
    assert found.estimator == "exact"
    assert_close(found.values, {name: value.numpy() for name, value in expected.items()})
    assert_close(estimate(model, data, batch_size=1, estimator="exact").values, found.values)
    many = data.select(list(range(len(data))) * 64)
    for estimator, off in (("rademacher", 0.05), ("sampled", 0.1)):
        drawn = estimate(model, many, estimator=estimator, limit=None, batch_size=256).values
        for name, value in found.values.items():
            assert drawn[name].sum() == pytest.approx(value.sum(), rel=off), (estimator, name)
    with pytest.raises(UsageError, match="outputs of this task are means"):
        estimate(model, data, estimator="empirical")


def test_head_and_body_are_told_apart(vectors) -> None:
    found = estimate(embedder(), vectors(3, 5))
    assert found.head == {"top.weight", "top.bias"}
    parts = {name in found.head: [] for name in found.values}
    for name, value in found.values.items():
        parts[name in found.head].append(value.astype(np.float64).reshape(-1))
    body, head = np.concatenate(parts[False]), np.concatenate(parts[True])
    assert (found.body_sum, found.head_sum) == pytest.approx((body.sum(), head.sum()), rel=1e-6)
    assert (found.body_norm, found.head_norm) == pytest.approx(
        (np.linalg.norm(body), np.linalg.norm(head)), rel=1e-6
    )  # fmt: skip
