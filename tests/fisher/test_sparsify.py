"""Sparse patches of a dense change: unbiased, of the size asked for, the same whatever the order, scale and windows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from modelgit.errors import UsageError
from modelgit.fisher import changes
from modelgit.fisher.changes import IMPORTANCES, Margins, TensorDelta, can_be_drawn
from modelgit.fisher.patched import PatchedTensor
from modelgit.fisher.sparsify import Plan, Survey, survey
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.objects import DTYPES, TensorSpec

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
DRAWN = ("fisher", "magnitude", "uniform")


class Held:
    """Raw bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


def delta_of(name: str, old: np.ndarray, new: np.ndarray, dtype: str = "F32", *, whole: bool = False) -> TensorDelta:
    spec = TensorSpec(dtype=dtype, shape=old.shape)
    sides = [Held(from_float64(side.astype(np.float64).reshape(-1), dtype).tobytes()) for side in (old, new)]
    return TensorDelta(name, spec, *sides, whole)


def values_of(plan: Plan, name: str) -> np.ndarray:
    tensor = PatchedTensor(plan, name)
    return to_float64(tensor.read(0, tensor.spec.size_bytes), tensor.spec.dtype)


class Change:
    """Three tensors of a model and the diagonal of two of them, drawn at random."""

    def __init__(
        self, *, scale: float = 1.0, dtype: str = "F32", whole: bool = True, sizes: tuple[int, ...] = (301, 90)
    ):
        random = np.random.default_rng(3)
        self.old: dict[str, np.ndarray] = {}
        self.new: dict[str, np.ndarray] = {}
        self.fisher: dict[str, np.ndarray] = {}
        for name, rows in (("body.a", sizes[0]), ("body.b", sizes[1]), ("head", 2)):
            old = (0.05 * random.standard_normal((rows, 7))).astype(np.float32) * np.float32(scale)
            move = (0.002 * random.standard_normal((rows, 7)) ** 3).astype(np.float32) * np.float32(scale)
            move[random.random((rows, 7)) < 0.1] = 0
            self.old[name], self.new[name] = old, old + move
            self.fisher[name] = (random.gamma(0.3, 1.0, (rows, 7)) / scale**2).astype(np.float32)
        self.deltas = [
            delta_of(name, self.old[name], self.new[name], dtype, whole=whole and name == "head") for name in self.old
        ]
        self.elements = sum(array.size for array in self.old.values())

    def survey(self, importance: str = "fisher", **options: object) -> Survey:
        return survey(self.deltas, elements=self.elements, importance=importance, fisher=self.fisher, **options)


def scores_of(found: Survey) -> np.ndarray:
    return np.concatenate([window.score for window in found.body()])


def naive_threshold(scores: np.ndarray, budget: int) -> float:
    """By bisection."""
    low, high = 0.0, float(scores.sum()) / budget * 2 + 1
    for _ in range(400):
        middle = (low + high) / 2
        if np.minimum(scores / middle, 1.0).sum() > budget:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("importance", DRAWN)
@pytest.mark.parametrize("density", [0.006, 0.01, 0.05, 0.3, 0.8])
def test_probabilities_sum_up_to_the_budget_as_a_naive_search_finds_them(importance: str, density: float) -> None:
    change = Change()
    found = change.survey(importance)
    plan = found.plan(density)
    scores = scores_of(found).astype(np.float64)
    assert plan.budget == round(density * change.elements) - found.whole
    assert np.minimum(scores / plan.threshold, 1).sum() == pytest.approx(plan.budget, rel=1e-9)
    assert plan.threshold == pytest.approx(naive_threshold(scores, plan.budget), rel=1e-9)
    assert plan.kept().expected == pytest.approx(plan.budget + found.whole, rel=1e-9)


@pytest.mark.parametrize("ties", [1, 2, 5])
def test_the_budget_is_met_with_many_equal_and_with_extreme_scores(ties: int) -> None:
    random = np.random.default_rng(ties)
    move = np.round(random.standard_normal(4000), 1) * 10.0 ** random.integers(-12, 3, 4000)
    move[::3] = move[: len(move[::3])][::ties][0]
    old = np.zeros(4000)
    found = survey([delta_of("a", old, move, "F64")], elements=4000, importance="magnitude")
    for budget in (1, 2, 40, 1000, 2500, int(np.count_nonzero(move)) - 1):
        plan = found.plan(budget / 4000)
        scores = scores_of(found).astype(np.float64)
        assert np.minimum(scores / plan.threshold, 1).sum() == pytest.approx(budget, rel=1e-9)


def test_everything_is_kept_bit_for_bit_where_there_is_room() -> None:
    change = Change()
    for importance in IMPORTANCES:
        plan = change.survey(importance).plan(1.0)
        for name, new in change.new.items():
            assert np.array_equal(values_of(plan, name), new.astype(np.float64).reshape(-1))
        assert plan.kept().kept == change.survey().changed


@pytest.mark.parametrize("importance", DRAWN)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_drawn_patch_is_unbiased(importance: str, dtype: str) -> None:
    change = Change(dtype=dtype)
    found, runs, name = change.survey(importance), 600, "body.b"
    drawn = np.stack([values_of(found.plan(0.08, seed=seed), name) for seed in range(runs)])
    old = to_float64(next(d for d in change.deltas if d.name == name).old.read(0, 1 << 30), dtype)
    new = to_float64(next(d for d in change.deltas if d.name == name).new.read(0, 1 << 30), dtype)
    error = drawn.mean(0) - new
    deviation = drawn.std(0, ddof=1) / np.sqrt(runs)
    seen = deviation > 0
    z = error[seen] / deviation[seen]
    # Few draws of a rare value are far from normal; all of them together are not.
    rare = (drawn != old).sum(0)[seen] >= 20
    assert rare.sum() > 20
    assert np.abs(z[rare]).max() < 5
    assert np.sqrt(np.mean(z[rare] ** 2)) == pytest.approx(1, abs=0.3)
    total = (drawn - new).sum(1)
    assert abs(total.mean()) < 4 * total.std() / np.sqrt(runs)


def test_the_count_varies_around_the_budget_as_independent_draws_do() -> None:
    change = Change()
    found = change.survey()
    counts = [found.plan(0.1, seed=seed).kept().kept for seed in range(200)]
    budget = round(0.1 * change.elements)
    assert abs(np.mean(counts) - budget) < 4 * np.sqrt(budget / 200)
    assert 0 < np.std(counts) <= np.sqrt(budget) * 1.2


def test_the_predicted_divergence_is_the_mean_of_what_the_draws_cost() -> None:
    change = Change(whole=False)
    found = change.survey()
    costs = []
    for seed in range(300):
        plan = found.plan(0.1, seed=seed)
        costs.append(
            sum(
                0.5
                * (change.fisher[name].reshape(-1) * (values_of(plan, name) - change.new[name].reshape(-1)) ** 2).sum()
                for name in change.new
            )
        )
    predicted = found.plan(0.1).kept().predicted_kl
    assert predicted is not None
    assert np.mean(costs) == pytest.approx(predicted, abs=5 * np.std(costs) / np.sqrt(300))
    for density in (0.02, 0.1, 0.4):
        assert found.expected_kl(density) == pytest.approx(found.plan(density).kept().predicted_kl, rel=0.03)
    assert found.expected_kl(1.0) == 0


def test_the_default_costs_least_of_all_for_the_same_budget() -> None:
    change = Change()
    costs = {name: change.survey(name, epsilon=1e-6, shrinkage=0.0).plan(0.05).kept().predicted_kl for name in DRAWN}
    assert costs["fisher"] < 0.7 * costs["magnitude"] < 0.7 * costs["uniform"]


def test_a_noisy_estimate_drawn_towards_its_margins_gives_a_patch_that_costs_less() -> None:
    random = np.random.default_rng(5)
    true = np.multiply.outer(random.gamma(0.5, 1.0, 120), random.gamma(0.5, 1.0, 80)) + 1e-3
    noisy = (true * random.gamma(0.2, 5.0, true.shape)).astype(np.float32)
    change = (0.01 * random.standard_normal(true.shape)).astype(np.float32)
    delta = delta_of("a", np.zeros_like(change), change)

    def cost(shrinkage: float) -> float:
        """What the patch is expected to cost under the true diagonal."""
        found = survey(
            [delta], elements=true.size, importance="fisher", fisher={"a": noisy}, epsilon=0.01, shrinkage=shrinkage
        )
        plan = found.plan(0.02)
        probability = np.concatenate([plan.choose(delta, window)[1] for window in found.body()])
        return float(0.5 * (true.reshape(-1) * change.reshape(-1) ** 2 * (1 / probability - 1)).sum())

    assert cost(0.8) < 0.7 * cost(0.0)
    margins = Margins.of(noisy)
    assert margins is not None
    products = np.multiply.outer(noisy.mean(1, dtype=float), noisy.mean(0, dtype=float)) / noisy.mean(dtype=float)
    width = noisy.shape[1]
    for first, last in ((37, 5003), (0, noisy.size), (3, 9), (width, 3 * width), (width - 2, width + 2), (5, 5)):
        assert np.allclose(margins.products(first, last), products.reshape(-1)[first:last], rtol=1e-12)
    assert margins.products(noisy.size, noisy.size).size == 0
    assert Margins.of(noisy[0]) is None
    assert Margins.of(np.zeros((3, 2), np.float32)) is None


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_scale_does_not_matter(importance: str) -> None:
    plain = Change().survey(importance).plan(0.05)
    plain_old, tiny_old = (
        {name: array.astype(np.float64).reshape(-1) for name, array in Change(scale=scale).old.items()}
        for scale in (1.0, 1e-6)
    )
    halved = Change(scale=2.0**-20).survey(importance).plan(0.05)  # exact in binary: every decision is the same
    tiny = Change(scale=1e-6).survey(importance).plan(0.05)
    for name in ("body.a", "body.b"):
        one, two, three = (values_of(plan, name) for plan in (plain, halved, tiny))
        assert np.array_equal(one, two * 2.0**20)
        kept = one != plain_old[name], three != tiny_old[name]
        assert np.mean(kept[0] != kept[1]) < 0.002  # rounding may tip a draw that lies on the border
        assert np.allclose(one, three * 1e6, rtol=1e-2, atol=1e-9) or importance in DRAWN


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_neither_order_nor_windows_nor_repetition_matter(importance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = Change()
    plan = change.survey(importance).plan(0.07, seed=5)
    turned = survey(change.deltas[::-1], elements=change.elements, importance=importance, fisher=change.fisher).plan(
        0.07, seed=5
    )
    tensor = PatchedTensor(plan, "body.a")
    size = tensor.spec.size_bytes
    whole = bytes(tensor.read(0, size))
    assert bytes(PatchedTensor(turned, "body.a").read(0, size)) == whole
    assert b"".join(bytes(tensor.read(at, min(at + 52, size))) for at in range(0, size, 52)) == whole
    out = bytearray(40)
    tensor.read_into(16, memoryview(out))
    assert bytes(out) == whole[16:56]
    monkeypatch.setattr(changes, "STEP", 64)
    monkeypatch.setattr("modelgit.fisher.patched.STEP", 64)
    narrow = change.survey(importance).plan(0.07, seed=5)
    assert narrow.threshold == pytest.approx(plan.threshold, rel=1e-12)
    assert bytes(PatchedTensor(narrow, "body.a").read(0, size)) == whole
    if importance in DRAWN:
        assert bytes(PatchedTensor(change.survey(importance).plan(0.07, seed=6), "body.a").read(0, size)) != whole


def test_top_k_keeps_the_largest_first_come_first() -> None:
    old, new = np.zeros(8), np.array([1, -3, 2, 3, 0, 3, -3, 0.5])
    found = survey([delta_of("a", old, new)], elements=8, importance="top-k")
    plan = found.plan(3 / 8)
    assert values_of(plan, "a").tolist() == [0, -3, 0, 3, 0, 3, 0, 0]
    kept = plan.kept()
    assert (kept.kept, kept.exact, kept.predicted_kl) == (3, 3, None)
    assert kept.norm_share == pytest.approx(27 / (36 + 1 + 4 + 0.25))
    fisher = {"a": np.array([9, 0, 0, 1, 1, 0, 0, 100], np.float32)}
    found = survey([delta_of("a", old, new)], elements=8, importance="top-k-fisher", fisher=fisher)
    assert values_of(found.plan(2 / 8), "a").tolist() == [1, 0, 0, 0, 0, 0, 0, 0.5]


def test_heads_are_taken_whole_and_counted() -> None:
    change = Change()
    found = change.survey()
    plan = found.plan(0.02)
    assert np.array_equal(values_of(plan, "head"), change.new["head"].astype(np.float64).reshape(-1))
    assert found.whole == np.count_nonzero(change.new["head"] != change.old["head"])
    with pytest.raises(UsageError, match="taken whole") as refused:
        found.plan(0.001)
    assert "--density" in (refused.value.hint or "")
    least = found.plan(found.whole / change.elements)
    assert least.kept().kept == found.whole


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_type_stays_within_its_neighbours(dtype: str) -> None:
    random = np.random.default_rng(0)
    old, new = random.standard_normal((2, 4000))
    new[:10] *= 1e30  # beyond the largest number of small types, or nearly
    delta = delta_of("a", old, new, dtype)
    before, after = (to_float64(side.read(0, 1 << 20), dtype) for side in (delta.old, delta.new))
    for seed in range(4):
        plan = survey([delta], elements=4000, importance="uniform").plan(0.25, seed=seed)
        got = values_of(plan, "a")
        assert np.isfinite(got[np.isfinite(after)]).all()
        moved = (got != before) & np.isfinite(after)
        aimed = before + (after - before) * plan.threshold  # every score is 1: so is every probability 1 / threshold
        exact = from_float64(aimed, dtype)
        near = np.abs(got - aimed)
        gap = np.maximum(np.abs(aimed) * 2.0 ** -(2 if dtype.startswith("F8") else 7), 2.0**-7)
        fits = np.isfinite(to_float64(exact.data, dtype)) & (np.abs(aimed) < 50)
        assert (near[moved & fits] <= gap[moved & fits] + 1e-12).all()


def test_numbers_that_are_none_are_taken_exactly_for_the_gate_to_see() -> None:
    old, new = np.zeros(100), np.full(100, 0.5)
    new[7], new[8] = np.nan, np.inf
    for importance in ("magnitude", "top-k"):
        found = survey([delta_of("a", old, new)], elements=100, importance=importance)
        got = values_of(found.plan(0.05), "a")
        assert np.isnan(got[7])
        assert np.isinf(got[8])
        assert found.whole == 2


def test_what_cannot_be_drawn_from_is_known_and_refused() -> None:
    assert {dtype for dtype in DTYPES if can_be_drawn(TensorSpec(dtype=dtype, shape=(4,)))} == set(FLOATS)
    spec = TensorSpec(dtype="I64", shape=(2,))
    with pytest.raises(UsageError, match="I64"):
        survey([TensorDelta("ids", spec, Held(bytes(16)), Held(bytes(16)))], elements=2, importance="magnitude")
    change = Change()
    with pytest.raises(UsageError, match="no importance"):
        change.survey("best")
    with pytest.raises(UsageError, match="needs a Fisher"):
        survey(change.deltas, elements=change.elements)
    with pytest.raises(UsageError, match="not above 0"):
        change.survey().plan(0.0)
    with pytest.raises(UsageError, match="shape"):
        survey(change.deltas, elements=change.elements, fisher={"body.a": np.ones(3, np.float32)})
    zeros: Mapping[str, np.ndarray] = {name: np.zeros_like(array) for name, array in change.fisher.items()}
    with pytest.raises(UsageError, match="zero"):
        survey(change.deltas, elements=change.elements, fisher=zeros)


def test_a_tensor_without_an_estimate_is_ranked_by_the_mean() -> None:
    change = Change()
    fisher = {"body.a": change.fisher["body.a"]}
    plan = survey(change.deltas, elements=change.elements, fisher=fisher).plan(0.2)
    got = values_of(plan, "body.b") != change.old["body.b"].reshape(-1)
    assert 0.05 < got.mean() < 0.6
