"""Masks are the exact top of one ranking, whatever the sizes and ties, without sorting it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelgit.errors import UsageError
from modelgit.fisher.mask import bias_mask, top_mask
from modelgit.fisher.scores import (
    Scores,
    among_changed,
    change_scores,
    given_scores,
    magnitude_scores,
    random_scores,
)

# Few distinct values, so that ties are the rule; tiny, subnormal and huge ones among them.
VALUES = st.sampled_from([0.0, -0.0, 1e-45, 1e-38, 1e-12, 1.0, 1.0000001, 2.0, 3e38, np.inf])
TENSORS = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=4),
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=2, max_side=6), elements=VALUES),
    min_size=1,
    max_size=5,
)


def naive_top(scores: dict[str, np.ndarray], count: int) -> dict[str, list[int]]:
    """The first `count` of one stable sort of everything, in float64."""
    names = sorted(scores)
    flat = np.concatenate([scores[name].reshape(-1).astype(np.float64) for name in names]) if names else np.array([])
    order = np.argsort(-flat, kind="stable")[:count]
    starts = np.cumsum([0, *(scores[name].size for name in names)])
    places = {
        name: order[(order >= low) & (order < high)] - low
        for name, low, high in zip(names, starts, starts[1:], strict=False)
    }
    return {name: sorted(at.tolist()) for name, at in places.items() if at.size}


def mask_size(mask: dict[str, np.ndarray | None], shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shapes[name]) if at is None else len(at) for name, at in mask.items())


def as_lists(mask: dict[str, np.ndarray | None]) -> dict[str, list[int] | None]:
    return {name: None if at is None else at.tolist() for name, at in mask.items()}


@given(TENSORS, st.floats(0.001, 1.0))
def test_the_mask_is_the_head_of_a_stable_sort(scores: dict[str, np.ndarray], density: float) -> None:
    count = round(density * sum(values.size for values in scores.values()))
    if not count:
        with pytest.raises(UsageError, match="allows none"):
            top_mask(scores, density=density)
        return
    got = top_mask(scores, density=density)
    assert as_lists(got) == naive_top(scores, count)
    assert all(positions.dtype == np.int64 for positions in got.values())
    assert mask_size(got, {name: values.shape for name, values in scores.items()}) == count


@given(TENSORS, st.floats(0.001, 1.0), st.integers(0, 40))
def test_with_a_head_and_frozen_values_the_rest_of_the_budget_is_ranked(
    scores: dict[str, np.ndarray], density: float, frozen: int
) -> None:
    head = sorted(scores)[:1]
    whole, available = scores[head[0]].size, sum(values.size for values in scores.values())
    count = round(density * (available + frozen))
    if not max(1, whole) <= count <= available:
        with pytest.raises(UsageError):
            top_mask(scores, density=density, head=head, frozen=frozen)
        return
    got = as_lists(top_mask(scores, density=density, head=head, frozen=frozen))
    assert got.pop(head[0]) is None
    assert got == naive_top({name: scores[name] for name in scores if name not in head}, count - whole)


@given(TENSORS, st.floats(0.001, 1.0))
def test_only_positive_scores_are_candidates_if_so_wished(scores: dict[str, np.ndarray], density: float) -> None:
    count = round(density * sum(values.size for values in scores.values()))
    positive = sum(int((values > 0).sum()) for values in scores.values())
    if count:
        got = as_lists(top_mask(scores, density=density, positive=True))
        assert got == naive_top(scores, min(count, positive))


@given(TENSORS, st.floats(0.001, 1.0))
def test_each_tensor_has_its_share_within_one_value(scores: dict[str, np.ndarray], density: float) -> None:
    total = sum(values.size for values in scores.values())
    count = round(density * total)
    if not count:
        return
    got = as_lists(top_mask(scores, density=density, budget="tensor"))
    assert sum(map(len, got.values())) == count
    for name, values in scores.items():
        mine = got.get(name, [])
        assert abs(len(mine) - count * values.size / total) < 1
        assert mine == naive_top({name: values}, len(mine)).get(name, [])


def test_the_least_density_that_a_refusal_names_is_enough_and_hardly_more() -> None:
    scores = {"h": np.ones(7, np.float32), "b": np.arange(100_000, dtype=np.float32)}
    with pytest.raises(UsageError) as raised:
        top_mask(scores, density=1e-5, head=["h"])
    least = float(raised.value.hint.split("%")[0].split()[-1])
    assert mask_size(top_mask(scores, density=least / 100, head=["h"]), {"h": (7,), "b": (100_000,)}) == 8
    with pytest.raises(UsageError, match="only 7 of 100,007 may train") as raised:
        top_mask({"h": scores["h"]}, density=0.5, frozen=100_000)
    most = float(raised.value.hint.split("%")[0].split()[-1])
    assert mask_size(top_mask({"h": scores["h"]}, density=most / 100, frozen=100_000), {"h": (7,)}) in (6, 7)


def body(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {
        "layer.0.w": (40, 30),
        "layer.0.b": (30,),
        "layer.1.w": (40, 30),
        "embed": (50, 8),
        "head.weight": (4, 30),
    }
    return {name: draw.random(shape).astype(np.float32) ** 8 for name, shape in shapes.items()}


def test_the_head_is_whole_and_counted() -> None:
    scores = body()
    shapes = {name: values.shape for name, values in scores.items()}
    mask = top_mask(scores, density=0.1, head=["head.weight"])
    assert mask["head.weight"] is None
    assert mask_size(mask, shapes) == round(0.1 * sum(values.size for values in scores.values()))
    inside = np.concatenate([scores[name].ravel()[at] for name, at in mask.items() if at is not None])
    outside = [np.delete(scores[name].ravel(), mask.get(name, [])) for name in scores if name != "head.weight"]
    assert inside.min() >= np.concatenate(outside).max()
    everything = top_mask(scores, density=1.0, head=["head.weight"])
    assert mask_size(everything, shapes) == sum(values.size for values in scores.values())


def test_zeros_are_taken_last() -> None:
    scores = {"a": np.zeros(50, np.float32), "b": np.array([0, 1e-45, 0, 5, 0], np.float32)}
    assert {name: at.tolist() for name, at in top_mask(scores, density=2 / 55).items()} == {"b": [1, 3]}
    assert {name: at.tolist() for name, at in top_mask(scores, density=3 / 55).items()} == {"a": [0], "b": [1, 3]}


def test_layers_get_their_share_by_size() -> None:
    scores = body()
    scores["layer.1.w"] *= 0  # the global ranking would leave this layer out
    mask = top_mask(scores, density=0.1, head=["head.weight"], budget="layer")
    count = round(0.1 * 2950) - 120
    shapes = {name: values.shape for name, values in scores.items()}
    per_layer = [
        mask_size({n: at for n, at in mask.items() if n.startswith(layer)}, shapes)
        for layer in ("layer.0", "layer.1", "embed")
    ]
    assert sum(per_layer) == count
    for got, size in zip(per_layer, (1230, 1200, 400), strict=True):
        assert abs(got - count * size / 2830) < 1
    assert "layer.1.w" not in top_mask(scores, density=0.1, head=["head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density of 0"),
        ({"density": 1.01}, "density of 1.01"),
        ({"density": float("nan")}, "density of nan"),
        ({"density": 0.02, "head": ["head.weight"]}, "the head alone has 120 values"),
        ({"density": 0.5, "head": ["hat"]}, "`hat` has no score"),
        ({"density": 0.5, "budget": "row"}, "no mask budget `row`"),
    ],
)
def test_impossible_masks_are_refused(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        top_mask(body(), **options)


@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_scores_that_cannot_be_ranked_are_refused(wrong: float) -> None:
    scores = body()
    scores["embed"][3, 2] = wrong
    with pytest.raises(UsageError, match="`embed`"):
        top_mask(scores, density=0.1)


def test_only_one_tensor_is_held_at_a_time() -> None:
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive.pop()

    def make(name: str) -> np.ndarray:
        assert len(alive) <= 1
        alive.append(1)
        values = Counted((1000,), np.float32)
        values[:] = np.arange(1000)
        return values

    mask = top_mask(Scores(dict.fromkeys("abcdef", (1000,)), make), density=0.01)
    assert mask_size(mask, dict.fromkeys(mask, (1000,))) == 60


def test_random_scores_do_not_depend_on_order_and_are_uniform() -> None:
    shapes = {"a": (200, 100), "b": (300,)}
    one, other = random_scores(shapes, seed=1), random_scores(dict(reversed(shapes.items())), seed=1)
    assert all(np.array_equal(one[name], other[name]) for name in shapes)
    assert not np.array_equal(one["b"], random_scores(shapes, seed=2)["b"])
    assert one["a"].min() > 0
    assert abs(one["a"].mean() - 0.5) < 0.01
    with pytest.raises(KeyError):
        one["c"]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, "bfloat16"])
def test_changes_are_ranked_by_information_in_every_type_of_weight(kind) -> None:
    if kind == "bfloat16":
        kind = pytest.importorskip("ml_dtypes").bfloat16
    old = {"a": np.array([1, -2, 3, 0, 5], kind), "0d": np.array(1, kind)}
    new = {"a": np.array([1, -1, 3.5, -0.0, 6], kind), "0d": np.array(3, kind)}
    shapes = {"a": (5,), "0d": ()}
    fisher = {"a": np.array([9, 1, 1e-30, 4, 0], np.float32), "0d": np.array(4, np.float32)}
    scores = change_scores(shapes, old, new, diagonal=fisher)
    assert scores["a"].dtype == np.float32 and scores["0d"].shape == ()
    # What changed without any information comes after all else that changed, and before what did not.
    np.testing.assert_allclose(scores["a"], [0, 1, 0.5e-15, 0, np.float32(1e-45)], rtol=1e-6)
    assert scores["0d"] == 4
    assert change_scores(shapes, old, new)["a"].tolist() == [0, 1, 0.5, 0, 1]
    assert as_lists(top_mask(scores, density=1, positive=True)) == {"0d": [0], "a": [1, 2, 4]}
    assert as_lists(top_mask(scores, density=0.5, positive=True)) == {"0d": [0], "a": [1, 2]}
    by_chance = among_changed(random_scores(shapes), change_scores(shapes, old, new))
    assert (by_chance["a"] > 0).tolist() == [False, True, True, False, True]
    assert magnitude_scores(shapes, old)["a"].tolist() == [1, 2, 3, 0, 5]


def test_differences_smaller_than_float32_can_hold_still_count() -> None:
    shapes = {"a": (3,)}
    old, new = {"a": np.array([1, 1, 1e-300])}, {"a": np.array([1, 1 + 2.0**-52, 2e-300])}
    scores = change_scores(shapes, old, new)["a"]
    assert scores[0] == 0 < scores[2] < scores[1]


def test_scores_of_another_shape_are_refused_when_they_are_read() -> None:
    shapes = {"a": (3,)}
    right, wrong = {"a": np.ones(3, np.float32)}, {"a": np.ones((3, 1), np.float32)}
    assert given_scores(shapes, right)["a"] is right["a"]
    for scores in (
        given_scores(shapes, wrong),
        change_scores(shapes, right, wrong),
        change_scores(shapes, right, right, diagonal=wrong),
    ):
        with pytest.raises(UsageError, match="tensor `a` has"):
            scores["a"]


def test_biases_train_whole_under_the_bias_mask() -> None:
    shapes = {"x.bias": (3,), "x.weight": (3, 2), "bias": (1,), "unbias": (9,), "top.weight": (2, 2)}
    mask = bias_mask(shapes, head=["top.weight"])
    assert mask == {"bias": None, "top.weight": None, "x.bias": None}
    assert mask_size(mask, shapes) == 8
