"""Masks are the exact top of one ranking, whatever the sizes and ties, without sorting it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelgit.errors import UsageError
from modelgit.fisher.mask import bias_mask, mask_size, top_mask
from modelgit.fisher.scores import Scores, change_scores, fisher_scores, magnitude_scores, random_scores

# Few distinct values, so that ties are the rule; tiny, subnormal and huge ones among them.
VALUES = st.sampled_from([0.0, -0.0, 1e-45, 1e-38, 1e-12, 1.0, 1.0000001, 2.0, 3e38, np.inf])
TENSORS = st.dictionaries(
    st.text("abc.0", min_size=1, max_size=4),
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=2, max_side=6), elements=VALUES),
    min_size=1,
    max_size=5,
)


@given(TENSORS, st.floats(0.001, 1.0))
def test_the_mask_is_the_head_of_a_stable_sort(scores: dict[str, np.ndarray], density: float) -> None:
    ranked = sorted(
        ((-float(value), name, at) for name, values in scores.items() for at, value in enumerate(values.ravel())),
    )
    count = round(density * len(ranked))
    expected: dict[str, list[int]] = {}
    for _, name, at in sorted((score + 0.0, name, at) for score, name, at in ranked)[:count]:
        expected.setdefault(name, []).append(at)
    got = top_mask(scores, density=density)
    assert {name: positions.tolist() for name, positions in got.items()} == {
        n: sorted(at) for n, at in expected.items()
    }
    assert all(positions.dtype == np.int64 for positions in got.values())
    assert mask_size(got, {name: values.shape for name, values in scores.items()}) == count


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

    mask = top_mask(Scores(dict.fromkeys("abcdef"), make), density=0.01)
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


def test_other_scores() -> None:
    old = {"a": np.array([1.0, -2.0, 3.0], np.float16)}
    new = {"a": np.array([1.0, -1.0, 3.5], np.float16)}
    fisher = {"a": np.array([9.0, 1.0, 1e-30], np.float32)}
    assert magnitude_scores(old)["a"].tolist() == [1, 2, 3]
    assert fisher_scores(fisher)["a"] is fisher["a"]
    np.testing.assert_allclose(change_scores(fisher, old, new)["a"], [0, 1, 0.5e-15], rtol=1e-6)
    with pytest.raises(UsageError, match="`a`"):
        change_scores(fisher, old, {})
    with pytest.raises(UsageError, match="another shape"):
        change_scores(fisher, old, {"a": np.zeros((3, 1), np.float32)})


def test_biases_train_whole_under_the_bias_mask() -> None:
    shapes = {"x.bias": (3,), "x.weight": (3, 2), "bias": (1,), "unbias": (9,), "top.weight": (2, 2)}
    mask = bias_mask(shapes, head=["top.weight"])
    assert mask == {"bias": None, "top.weight": None, "x.bias": None}
    assert mask_size(mask, shapes) == 8
