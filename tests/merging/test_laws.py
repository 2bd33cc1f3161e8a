"""Laws that every strategy keeps, tried on each of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.merging.base import STRATEGIES, Gram, Part, Where, ordered_sum
from modelgit.merging.combine import combine_window
from modelgit.numerics.draws import uniform
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.numerics.ranking import Window, find_cuts, is_above

EXACT = {"ours", "theirs", "base"}
COMPUTED = sorted(set(STRATEGIES) - EXACT)
TWO_ONLY = {"slerp", "nuslerp"}
OF_SHAPE = (6, 8)


class Material:
    """One tensor, in windows."""

    def __init__(self, base, sides, fisher, *, name="t", window=13):
        self.sides = len(sides)
        self._base, self._sides, self._fisher, self._name, self._window = base, sides, fisher, name, window
        self.names = [name]

    def parts(self, name=None):
        size = self._sides[0].size
        for start in range(0, size, self._window):
            cut = slice(start, min(start + self._window, size))
            yield Part(
                where=Where(name=self._name, start=start, count=cut.stop - start),
                base=None if self._base is None else self._base.reshape(-1)[cut],
                sides=tuple(side.reshape(-1)[cut] for side in self._sides),
                fisher=tuple(self._fisher_of(cut)),
            )

    def diagonals(self):
        for part in self.parts():
            yield part.fisher

    def _fisher_of(self, cut):
        return [None if values is None else values.reshape(-1)[cut] for values in self._fisher]


def merge(name, base, sides, *, fisher=None, grams=None, dtype="F32", keys=None, **options):
    bound = STRATEGIES.get(name).bind(options)
    arrays = [np.asarray(side, np.float64) for side in (base, *sides)]
    fisher = [None] * len(sides) if fisher is None else fisher
    grams = grams_like(fisher) if grams is None else grams
    statistics = bound.prepare(Material(arrays[0], arrays[1:], fisher)).statistics
    raw = [from_float64(array.reshape(-1), dtype).tobytes() for array in arrays]
    merged = combine_window(
        raw[0],
        raw[1:],
        dtype,
        bound,
        where=Where(name="t", keys=tuple(keys or ("a", "b", "c", "d")[: len(sides)])),
        shape=arrays[0].shape,
        fisher=[None if values is None else values.reshape(-1) for values in fisher],
        grams=grams,
        statistics=statistics,
    )
    return to_float64(merged, dtype).reshape(arrays[0].shape)


def grams_like(fisher):
    """A Gram matrix for each side of a matrix, made of its Fisher diagonal: scaled as that is."""
    found = []
    for values in fisher:
        if values is None or values.ndim < 2:
            found.append(None)
            continue
        rows = values.reshape(len(values), -1)
        found.append(Gram(rows.T @ rows))
    return found


def example(seed=0, sides=2, shape=OF_SHAPE, spread=1e-2):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32).astype(np.float64)
    made = [(base + spread * rng.normal(size=shape)).astype(np.float32).astype(np.float64) for _ in range(sides)]
    return base, made, [rng.exponential(size=shape) for _ in range(sides)]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), OF_SHAPE, (2, 3, 4)])
def test_a_model_merged_with_itself_is_itself(name, shape):
    base, (side, _), fisher = example(shape=shape)
    assert np.array_equal(merge(name, base, [side, side], fisher=fisher), side)


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (5, 1)])
def test_tensors_of_one_element_of_none_and_without_axes(name, shape):
    base, sides, fisher = example(shape=shape)
    merged = merge(name, base, sides, fisher=fisher)
    assert merged.shape == shape
    assert np.isfinite(merged).all()


@pytest.mark.parametrize("name", sorted(set(COMPUTED) - TWO_ONLY))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_the_order_of_the_sides_means_nothing(name, order):
    base, sides, fisher = example(seed=1, sides=3)
    one = merge(name, base, sides, fisher=fisher, keys=("a", "b", "c"))
    other = merge(
        name, base, [sides[i] for i in order], fisher=[fisher[i] for i in order], keys=["abc"[i] for i in order]
    )
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", sorted(TWO_ONLY))
def test_two_sides_may_change_places_and_three_are_refused(name):
    base, sides, _ = example(seed=2, sides=3)
    assert np.allclose(merge(name, base, sides[:2]), merge(name, base, sides[1::-1]), rtol=1e-7)
    with pytest.raises(UsageError, match="two sides"):
        merge(name, base, sides)


KEEPING = {
    "average": {},
    "fisher": {},
    "fisher-task": {"scale": 1},
    "task-arithmetic": {},
    "wise": {"alpha": 1},
    "ties": {"density": 1},
    "dare": {"density": 1},
    "della": {"density": 1},
    "breadcrumbs": {"density": 1},
    "nuslerp": {},
    "karcher": {},
    "regmean": {},
    "mats": {},
}


@pytest.mark.parametrize("name", sorted(KEEPING))
@pytest.mark.parametrize("kept", [0, 1])
def test_weights_of_one_and_zero_give_a_side_back(name, kept):
    base, sides, fisher = example(seed=3)
    sides[1 - kept][0, 0] = np.inf  # a side of weight 0 does not count, whatever it holds
    weights = "1,0" if kept == 0 else "0,1"
    merged = merge(name, base, sides, fisher=fisher, weights=weights, **KEEPING[name])
    if name in ("nuslerp", "karcher"):
        merged[0, 0] = sides[kept][0, 0] if name == "nuslerp" else merged[0, 0]
        assert np.allclose(merged, sides[kept], rtol=2e-7)
    else:
        assert np.array_equal(merged, sides[kept])


@pytest.mark.parametrize("name", COMPUTED)
def test_no_bound_has_a_scale(name):
    """Everything times 2^-40, which no rounding sees: every decision is the same."""
    base, sides, fisher = example(seed=4)
    factor = 2.0**-40
    plain = merge(name, base, sides, fisher=fisher)
    scaled = merge(name, base * factor, [side * factor for side in sides], fisher=[f * 2.0**-60 for f in fisher])
    assert np.array_equal(scaled, plain * factor)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_small_change_is_no_rounding_error(name):
    """Changes of a millionth merge as changes of a hundredth do: what is merged is the change."""
    base, sides, fisher = example(seed=5, spread=1.0)
    if name in ("slerp", "karcher", "average", "fisher"):
        return  # these merge weights
    merged = {}
    for step in (2.0**-7, 2.0**-20):
        moved = [base + step * (side - base) for side in sides]
        merged[step] = (merge(name, base, moved, fisher=fisher, dtype="F64") - base) / step
    assert np.allclose(merged[2.0**-7], merged[2.0**-20], atol=1e-8)


@pytest.mark.parametrize("name", COMPUTED)
def test_repeated_merges_and_other_windows_give_the_same_bits(name):
    base, sides, fisher = example(seed=6, shape=(64, 64))
    bound = STRATEGIES.get(name).bind({})
    found = []
    for window in (4096, 100):
        prepared = bound.prepare(Material(base, sides, fisher, window=window))
        found.append({key: pytest.approx(value, rel=1e-12) for key, value in prepared.statistics.items()})
    assert dict(bound.prepare(Material(base, sides, fisher)).statistics) == found[0] == found[1]
    assert np.array_equal(merge(name, base, sides, fisher=fisher), merge(name, base, sides, fisher=fisher))


def test_any_two_strategies_differ():
    base, sides, fisher = example(seed=7, sides=2, spread=0.3)
    merged = {name: merge(name, base, sides, fisher=fisher) for name in sorted(STRATEGIES)}
    for one, other in itertools.combinations(sorted(merged), 2):
        assert not np.array_equal(merged[one], merged[other]), f"{one} and {other} do the same"


# -- what each computes, against plain formulas on small numbers


def test_task_vectors_by_hand():
    base, a, b = np.array([1.0, 2, 4]), np.array([2.0, 2, 5]), np.array([1.0, 3, 3])
    assert merge("task-arithmetic", base, [a, b]).tolist() == [2, 3, 4]
    assert merge("task-arithmetic", base, [a, b], weights="2,-1").tolist() == [3, 1, 7]
    assert merge("task-arithmetic", base, [a, b], scale=0.5).tolist() == [1.5, 2.5, 4]
    assert merge("wise", base, [a, b], alpha=1).tolist() == [1.5, 2.5, 4]
    assert merge("wise", base, [a, b], weights="1,0", alpha=0.5).tolist() == [1.5, 2, 4.5]


def test_fisher_task_by_hand():
    base, a, b = np.zeros(2), np.array([1.0, 0]), np.array([0.0, 1])
    # Normalised, side a depends on its first value only, side b on both alike.
    fisher = [np.array([5.0, 0]), np.array([2.0, 2])]
    part = 1 / (1 + 0.5**0.5)
    assert merge("fisher-task", base, [a, b], fisher=fisher, scale=2) == pytest.approx([2 * part, 2])


def test_ties_by_hand():
    base = np.zeros(5)
    a, b = np.array([4.0, -1, 3, 0.5, 2]), np.array([2.0, 3, -5, 0.25, 0])
    assert merge("ties", base, [a, b], density=1).tolist() == [3, 3, -5, 0.375, 2]
    # The two largest of each side: 4 and 3 of the one, 3 and -5 of the other.
    assert merge("ties", base, [a, b], density=0.4).tolist() == [4, 3, -5, 0, 0]
    assert merge("ties", base, [a, b], density=0.4, scale=2).tolist() == [8, 6, -10, 0, 0]
    # Of equal changes the first are kept.
    equal = np.ones(5)
    assert merge("ties", base, [equal, 2 * equal], density=0.4).tolist() == [1.5, 1.5, 0, 0, 0]


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=25)
def test_dare_keeps_the_expected_change(seed, density):
    base, one = np.zeros(4000), np.ones(4000)
    merged = merge("dare", base, [one, np.zeros(4000)], density=density, seed=seed, dtype="F64")
    assert set(np.unique(merged).tolist()) <= {0.0, 1 / density}
    deviation = (1 / density - 1) ** 0.5 / 4000**0.5
    assert abs(merged.mean() - 1) < 6 * deviation


def test_della_keeps_large_changes_more_often():
    rows, width = 2000, 5
    base, one = np.zeros((rows, width)), np.tile(np.arange(1.0, width + 1), (rows, 1))
    options = {"density": 0.5, "epsilon": 0.3, "consensus": "none"}
    merged = merge("della", base, [one, np.zeros_like(one)], dtype="F64", **options)
    assert (merged != 0).mean(axis=0) == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8], abs=0.05)
    assert merged.mean(axis=0) == pytest.approx(one[0], rel=0.15)
    with pytest.raises(UsageError, match="between 0 and 1"):
        merge("della", base, [one, base], density=0.1)


def test_breadcrumbs_by_hand():
    base, a = np.zeros(10), np.arange(1.0, 11)
    merged = merge("breadcrumbs", base, [a, base], density=0.5, gamma=0.2)
    assert merged.tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]
    assert np.count_nonzero(merge("breadcrumbs", base, [a, base], density=0.9, gamma=0.2)) == 9


def test_great_circles_by_hand():
    x, y = np.array([1.0, 0]), np.array([0.0, 1])
    half = 0.5**0.5
    assert merge("slerp", x, [x, y]) == pytest.approx([half, half])
    assert merge("slerp", x, [x, y], t=1 / 3) == pytest.approx([0.75**0.5, 0.5])
    assert merge("nuslerp", np.zeros(2), [x, y], weights="2,1") == pytest.approx([0.75**0.5, 0.5])
    assert merge("karcher", x, [x, 3 * y]) == pytest.approx([2 * half, 2 * half])
    # Zero, parallel and opposite vectors go straight.
    assert merge("slerp", x, [x, 0 * y]).tolist() == [0.5, 0]
    assert merge("slerp", x, [x, 3 * x]).tolist() == [2, 0]
    assert merge("nuslerp", 0 * x, [x, -3 * x]).tolist() == [-1, 0]
    rows = merge("nuslerp", np.zeros((2, 2)), [np.stack([x, x]), np.stack([y, 3 * x])], rows=True)
    assert rows.reshape(-1) == pytest.approx([half, half, 2, 0])


def test_the_karcher_mean_is_where_the_tangents_balance():
    _, sides, _ = example(seed=8, sides=4, spread=2)
    mean = merge("karcher", sides[0], sides, weights="1,2,3,4", dtype="F64")
    unit = mean / np.linalg.norm(mean)
    total = 0
    for weight, side in zip((1, 2, 3, 4), sides, strict=True):
        other = side / np.linalg.norm(side)
        across = other - (unit * other).sum() * unit
        total = total + weight * across / np.linalg.norm(across) * np.arccos((unit * other).sum())
    assert np.abs(total).max() < 1e-12


def test_model_stock_by_hand():
    base = np.zeros(2)
    a, b = np.array([1.0, 0]), np.array([3.0, 3])
    cosine = 0.5**0.5
    ratio = 2 * cosine / (1 + cosine)
    assert merge("model-stock", base, [a, b]) == pytest.approx([2 * ratio, 1.5 * ratio])
    assert merge("model-stock", base, [a, np.array([0.0, 1])]).tolist() == [0, 0]
    # Tiny tensors have angles like others.
    tiny = merge("model-stock", base, [1e-12 * a, 1e-12 * b])
    assert tiny == pytest.approx([2e-12 * ratio, 1.5e-12 * ratio])


def test_sce_by_hand():
    base = np.zeros(2)
    a, b = np.array([1.0, 1]), np.array([3.0, -3])
    # Weights 1 and 9; at the second value the sum is negative, so that side a is erased there.
    assert merge("sce", base, [a, b]) == pytest.approx([2.8, -3])
    # A factor of a thousand, which makes mean squares of 1e-6 and less, changes no weight.
    assert merge("sce", base, [1e-4 * a, 1e-4 * b]) == pytest.approx([2.8e-4, -3e-4])
    assert merge("sce", base, [a, b], topk=0.5).tolist() == [0, -3]


# -- the parts that strategies share


@given(st.integers(0, 300), st.integers(0, 100), st.text(max_size=5))
def test_any_window_of_a_stream_is_the_stream_s(start, count, name):
    assert np.array_equal(uniform(name, start, count), uniform(name, 0, start + count)[start:])


def test_streams_are_uniform_and_their_own():
    one, other = uniform("0:a:x", 0, 100_000), uniform("0:a:y", 0, 100_000)
    for numbers in (one, other):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert numbers.mean() == pytest.approx(0.5, abs=0.01) and numbers.var() == pytest.approx(1 / 12, rel=0.02)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, np.inf]), max_size=8), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(1, 5),
)
def test_a_cut_is_that_of_a_sorted_list(tensors, share, window):
    def windows():
        for index, values in enumerate(tensors):
            for start in range(0, len(values), window):
                yield Window(f"t{index}", start, np.array(values[start : start + window]))

    entries = [(-value, f"t{index}", at) for index, values in enumerate(tensors) for at, value in enumerate(values)]
    wanted = {entry[1:] for entry in sorted(entries)[: int(share * len(entries))]}
    (cut,) = find_cuts(lambda: ([window] for window in windows()), [share], at_least=[0])
    last = None if cut.name is None else (cut.name, cut.position)
    found = set()
    for item in windows():
        positions = np.arange(item.start, item.start + item.values.size)
        above = is_above(item.values, cut.least, last, name=item.name, positions=positions)
        found |= {(item.name, int(at)) for at in positions[above]}
    assert found == wanted


# -- Gram matrices


def layers(seed=0, outputs=7, inputs=5, rows=40, sides=2, tied=0.0):
    """Weights, what goes into them (with `tied`, of related inputs), and the matrices of that."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(outputs, inputs)) for _ in range(sides)]
    data = [rng.normal(size=(rows, inputs)) + tied * rng.normal(size=(rows, 1)) for _ in range(sides)]
    return weights, data, [Gram(x.T @ x / rows) for x in data]


def test_regmean_fits_the_outputs_of_both_sides():
    (a, b), (x, y), grams = layers(tied=2)
    merged = merge("regmean", a, [a, b], grams=grams, alpha=1, dtype="F64")
    wanted = np.linalg.lstsq(np.concatenate([x, y]), np.concatenate([x @ a.T, y @ b.T]), rcond=None)[0].T
    assert np.allclose(merged, wanted, rtol=1e-12, atol=1e-13)
    # With the first axis for inputs, as some layers have it, it is the transpose.
    turned = [Gram(gram.matrix, True) for gram in grams]
    assert np.array_equal(merge("regmean", a.T, [a.T, b.T], grams=turned, alpha=1, dtype="F64"), merged.T)
    # Without what lies off the diagonal it is the mean by the inputs' squares.
    c, d = (np.diagonal(gram.matrix) for gram in grams)
    assert np.allclose(merge("regmean", a, [a, b], grams=grams, alpha=0, dtype="F64"), (a * c + b * d) / (c + d))


def test_inputs_that_nobody_uses_keep_the_average_and_so_do_layers_of_one_side_s_matrix():
    (a, b), (x, y), _ = layers()
    x[:, 2] = y[:, 2] = 0
    y[:, 1], x[:, 1] = 3 * y[:, 0], 3 * x[:, 0]
    grams = [Gram(np.float32(z.T @ z).astype(np.float64)) for z in (x, y)]
    merged = merge("regmean", a, [a, b], grams=grams, alpha=1, dtype="F64")
    assert np.array_equal(merged[:, 2], ((a + b) / 2)[:, 2])
    both = np.concatenate([x, y])
    residual = both @ merged.T - np.concatenate([x @ a.T, y @ b.T])
    assert np.abs(both.T @ residual).max() < 1e-4  # the fit is the least there is, whichever solution it is
    assert np.array_equal(merge("regmean", a, [a, b], grams=[grams[0], None], dtype="F64"), (a + b) / 2)
    a[0, 0] = np.nan
    merged = merge("regmean", b, [a, b], grams=grams, dtype="F64")
    assert np.isnan(merged[0, 0]) and np.isfinite(merged[1:]).all()
    assert np.array_equal(merged[0, 1:], ((a + b) / 2)[0, 1:])


@pytest.mark.parametrize("start", ["average", "sum"])
def test_conjugate_gradients_find_what_a_dense_solution_is(start):
    sides, _, grams = layers(sides=3, tied=1)
    base = np.zeros_like(sides[0])
    fisher = [np.abs(np.random.default_rng(at).normal(size=base.shape)) for at in range(3)]
    options = {"fisher": fisher, "grams": grams, "dtype": "F64", "start": start}
    merged = merge("mats", base, sides, iterations=50, tolerance=0, alpha=0.95, **options)
    blocks = []
    for diagonal, gram in zip(fisher, grams, strict=True):
        matrix = 0.95 * gram.matrix + 0.05 * np.diag(np.diagonal(gram.matrix))
        scale = (diagonal / np.linalg.norm(diagonal)).sum(axis=1) / np.trace(matrix)
        blocks.append(scale[:, None, None] * matrix)
    pulls = sum(np.einsum("oij,oj->oi", block, side) for block, side in zip(blocks, sides, strict=True))
    assert np.allclose(merged, np.linalg.solve(sum(blocks), pulls[..., None])[..., 0], rtol=1e-8, atol=1e-8)
    # Cut short, they are on the way from where they began.
    begin = sum(sides) / 3 if start == "average" else sum(sides)
    assert np.allclose(merge("mats", base, sides, iterations=0, **options), begin, rtol=1e-14)
    few = merge("mats", base, sides, iterations=2, **options)
    assert 0 < np.linalg.norm(few - merged) < np.linalg.norm(begin - merged)
    # Without matrices the blocks are the diagonal.
    assert np.allclose(
        merge("mats", base, sides, fisher=fisher, grams=[None] * 3, dtype="F64", start=start),
        merge("fisher", base, sides, fisher=fisher, dtype="F64"),
    )


@pytest.mark.parametrize("count", range(1, 11))
def test_sums_do_not_depend_on_the_order_of_their_terms(count):
    rng = np.random.default_rng(count)
    special = [0.0, -0.0, 1.0, -1.0, 1e-30, np.inf, 1e16, 3.0]
    terms = [np.where(rng.random(4000) < 0.5, rng.choice(special, 4000), rng.normal(size=4000)) for _ in range(count)]
    for term in terms:
        term[:5] = -0.0
    before = [term.copy() for term in terms]
    with np.errstate(all="ignore"):
        found = ordered_sum(terms)
        for _ in range(5):
            assert ordered_sum([terms[at] for at in rng.permutation(count)]).tobytes() == found.tobytes()
    assert np.signbit(found[:5]).all() and (found[:5] == 0).all()
    assert all(np.array_equal(one, other) for one, other in zip(terms, before, strict=True))
    plain = np.sort(np.stack(terms), axis=0)
    wanted = plain[0].copy()
    for row in plain[1:]:
        wanted += row
    assert np.array_equal(found, wanted, equal_nan=True)
