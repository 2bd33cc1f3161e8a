import math
import re
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import BugError, IntegrityError, UsageError
from modelgit.merging.base import STRATEGIES, Part, Where, ordered_sum, parse_rule, side_shares, strategy
from modelgit.merging.combine import combine_window
from modelgit.merging.fisher import norms
from modelgit.merging.options import Between
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.objects import DTYPES

FLOATS = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "C64"]
STATISTICS = {"norm.0": 1.0, "norm.1": 1.0, "norm.2": 1.0, "mean.0": 0.5, "mean.1": 0.5, "mean.2": 0.5}


def raw(values, dtype="F32"):
    return from_float64(np.asarray(values, np.float64).reshape(-1), dtype).tobytes()


def bind(name, **options):
    return STRATEGIES.get(name).bind(options)


def merge(bound, *sides, base=None, dtype="F32", fisher=(), statistics=None, split=False):
    return combine_window(
        base,
        sides,
        dtype,
        bound,
        where=Where(name="t"),
        fisher=[None if f is None else np.asarray(f, np.float64) for f in fisher],
        statistics=STATISTICS if statistics is None else statistics,
        split=split,
    )


def floats(data, dtype="F32"):
    return to_float64(data, dtype)


def test_the_average_of_two_and_four_is_three_at_any_halving():
    for weights in ("", "0.5,0.5", "1,1", "50%,50%"):
        assert floats(merge(bind("average", weights=weights), raw([2]), raw([4]))).tolist() == [3.0]
    assert floats(merge(bind("average"), raw([2]), raw([4]), raw([9]))).tolist() == [5.0]


def test_weights_are_shares_and_zero_is_a_weight():
    a, b = raw([1, np.inf, np.nan]), raw([3, 4, 5])
    assert floats(merge(bind("average", weights="0,2"), a, b)).tolist() == [3, 4, 5]
    assert floats(merge(bind("average", weights="3,1"), raw([0]), raw([4]))).tolist() == [1]
    assert floats(merge(bind("fisher", weights="0,1"), a, b, fisher=([9, 9, 9], [1, 1, 1]))).tolist() == [3, 4, 5]
    for weights in ("1", "0,0", "-1,2", "1,2,3"):
        with pytest.raises(UsageError):
            merge(bind("average", weights=weights), a, b)


values = st.floats(width=32, allow_nan=True, allow_infinity=True)
weight = st.floats(0, 10, width=32)


@given(
    st.sampled_from(sorted(DTYPES)),
    st.binary(min_size=24, max_size=24),
    st.sampled_from(["average", "fisher", "ours", "theirs", "base"]),
    st.booleans(),
)
def test_a_model_merged_with_itself_is_itself_for_every_dtype_and_every_bit(dtype, data, name, split):
    fisher = ([1.0] * 24, [0.0] * 24)
    assert merge(bind(name), data, data, base=b"\0" * 24, dtype=dtype, fisher=fisher, split=split) == data


@given(
    st.sampled_from(FLOATS),
    st.lists(st.tuples(values, values, values, weight, weight, weight), min_size=1, max_size=8),
    st.permutations([0, 1, 2]),
)
def test_the_order_of_the_sides_means_nothing(dtype, rows, order):
    columns = list(zip(*rows, strict=True))
    pad = 2 * len(rows) if dtype == "C64" else len(rows)
    sides = [raw(np.resize(column, pad), dtype) for column in columns[:3]]
    fisher = [np.asarray(column, np.float64) for column in columns[3:]]
    weights, statistics = (
        (0.2, 0.3, 0.5),
        {f"norm.{i}": 1.0 + i for i in range(3)} | {f"mean.{i}": 1.0 for i in range(3)},
    )
    permuted = {f"{key}.{i}": statistics[f"{key}.{order[i]}"] for key in ("norm", "mean") for i in range(3)}
    for name in ("average", "fisher"):
        one = merge(bind(name, weights=weights), *sides, dtype=dtype, fisher=fisher, statistics=statistics)
        other = merge(
            bind(name, weights=[weights[i] for i in order]),
            *(sides[i] for i in order),
            dtype=dtype,
            fisher=[fisher[i] for i in order],
            statistics=permuted,
        )
        assert np.array_equal(floats(one, dtype), floats(other, dtype), equal_nan=True)


def test_fisher_against_the_formula_in_exact_fractions():
    rng = np.random.default_rng(7)
    a, b = (rng.normal(size=200).astype(np.float32) for _ in range(2))
    fa, fb = (rng.exponential(size=200).astype(np.float32) * np.float32(scale) for scale in (1e-12, 1e-7))
    norm = [float(np.linalg.norm(f.astype(np.float64))) for f in (fa, fb)]
    statistics = {"norm.0": norm[0], "norm.1": norm[1], "mean.0": 1.0 / 200, "mean.1": 1.0 / 200}
    got = floats(merge(bind("fisher", weights="0.4,0.6"), raw(a), raw(b), fisher=(fa, fb), statistics=statistics))
    for i in range(200):
        wa = Fraction(0.4) * Fraction(float(fa[i])) / Fraction(norm[0])
        wb = Fraction(0.6) * Fraction(float(fb[i])) / Fraction(norm[1])
        exact = (wa * Fraction(float(a[i])) + wb * Fraction(float(b[i]))) / (wa + wb)
        assert got[i] == pytest.approx(float(exact), rel=1.2e-7)


def test_where_no_side_depends_on_a_value_the_average_is_taken():
    fisher = ([0, 1e-12, 1, 0], [0, 1e-12, 0, 2])
    got = floats(merge(bind("fisher"), raw([2, 2, 2, 2]), raw([4, 4, 4, 4]), fisher=fisher))
    assert got.tolist() == [3, 3, 2, 4]
    # The floor is relative: the same Fishers at another scale merge alike.
    scaled = {key: value * 1e-9 if key.startswith("mean") else value for key, value in STATISTICS.items()}
    tiny = [np.asarray(f) * 1e-9 for f in fisher]
    assert floats(
        merge(bind("fisher"), raw([2, 2, 2, 2]), raw([4, 4, 4, 4]), fisher=tiny, statistics=scaled)
    ).tolist() == [3, 3, 2, 4]


def test_an_unimportant_infinity_does_not_spread():
    got = floats(merge(bind("fisher"), raw([np.inf, np.inf]), raw([1, 1]), fisher=([0, 1], [1, 1])))
    assert got.tolist() == [1, np.inf]
    assert math.isnan(floats(merge(bind("average"), raw([np.inf]), raw([-np.inf])))[0])


class Windows:
    def __init__(self, *sides, cut=2):
        self.sides = len(sides)
        self._sides = sides
        self._cut = cut
        self.names = []

    def parts(self, name=None):
        return iter(())

    def diagonals(self):
        size = max((len(side) for side in self._sides if side is not None), default=0)
        for start in range(0, size, self._cut):
            yield tuple(
                None if side is None else np.asarray(side[start : start + self._cut], np.float64)
                for side in self._sides
            )


def test_norms_are_those_of_the_whole_body_and_normalised_means_go_with_them():
    found = norms(Windows([3, 0, 4], [0, 0, 10]))
    assert dict(found.statistics) == pytest.approx({"norm.0": 5, "norm.1": 10, "mean.0": 7 / 15, "mean.1": 1 / 3})
    assert found.notes == ()


def test_a_missing_estimate_is_isotropic_and_said_so():
    found = norms(Windows([3, 0, 4], None))
    assert found.statistics["mean.1"] == pytest.approx(7 / 15)
    assert found.notes == ("side 2 has no Fisher estimate: all of its values count alike",)
    got = floats(
        merge(bind("fisher"), raw([1, 1]), raw([2, 2]), fisher=([7 / 3, 0], None), statistics=found.statistics)
    )
    assert got == pytest.approx([1.5, 2])
    assert "no side has" in norms(Windows(None, None)).notes[0]
    none = norms(Windows(None, None)).statistics
    assert floats(merge(bind("fisher"), raw([2]), raw([4]), fisher=(None, None), statistics=none)).tolist() == [3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_broken_estimate_is_refused(bad):
    with pytest.raises(IntegrityError, match="side 2"):
        norms(Windows([1, 1, 1], [1, 1, bad]))


def test_bfloat16_is_rounded_once_from_the_exact_mean():
    # 1 + 2^-8 + 2^-40 lies just above the middle of two bfloat16 values; by way of float32 it would round down.
    a, b = 1 + 2.0**-7, 1.0
    shares = (0.5 + 2.0**-33, 0.5 - 2.0**-33)
    got = floats(merge(bind("average", weights=shares), raw([a], "BF16"), raw([b], "BF16"), dtype="BF16"), "BF16")
    exact = shares[0] * a + shares[1] * b
    assert exact > 1 + 2.0**-8 and np.float32(exact) == np.float32(1 + 2.0**-8)
    assert got.tolist() == [1 + 2.0**-7]


@pytest.mark.parametrize("dtype", [name for name, kind in DTYPES.items() if not kind.is_float])
def test_values_without_a_mean_are_picked_or_refused(dtype):
    a, b, base = b"\1\2\3\4\5\6\7\1", b"\2\2\3\4\5\6\7\1", b"\0" * 8
    with pytest.raises(UsageError, match=dtype):
        merge(bind("average"), a, b, dtype=dtype)
    assert merge(bind("ours"), a, b, dtype=dtype) == a
    assert merge(bind("theirs"), a, b, dtype=dtype) == b
    assert merge(bind("base"), a, b, base=base, dtype=dtype)[0] == 0


def test_picks_keep_the_payload_of_a_nan_and_base_needs_one():
    nan = np.array([0x7FA12345], np.uint32).tobytes()
    assert merge(bind("ours"), nan, raw([1])) == nan
    with pytest.raises(UsageError, match="common ancestor"):
        merge(bind("base"), nan, raw([1]))


@given(st.lists(values, min_size=1, max_size=6), st.permutations(range(6)))
def test_sums_do_not_depend_on_order(terms, order):
    arrays = [np.array([term], np.float64) for term in terms]
    shuffled = [arrays[i] for i in order if i < len(arrays)]
    with np.errstate(all="ignore"):
        assert np.array_equal(ordered_sum(arrays), ordered_sum(shuffled), equal_nan=True)


def test_shares_add_up_to_one():
    assert side_shares((), 4) == (0.25,) * 4
    assert math.fsum(side_shares((1, 1, 1), 3)) == pytest.approx(1, abs=1e-15)


@strategy(scope="tensor")
def norm_blend(
    base: np.ndarray,
    sides: list,
    where: Where,
    *,
    scale: Annotated[float, Between(0, 2)] = 1.0,
    rounds: int = 3,
    strict: bool = False,
    mode: Literal["mean", "sum"] = "mean",
    weights: tuple[float, ...] = (),
) -> np.ndarray:
    """Move from the base by the sides' mean change, scaled by the norm of the base.

    For tests.
    """
    assert where.positions.tolist() == list(range(base.size))
    assert base.shape == sides[0].shape
    return base + scale * np.mean([side - base for side in sides], axis=0) * np.linalg.norm(base)


def test_a_function_becomes_a_strategy_by_its_signature():
    assert norm_blend.name == "norm-blend"
    assert norm_blend.needs == {"base", "sides", "where"}
    assert norm_blend.summary.startswith("Move from the base")
    bound = norm_blend.bind({"scale": "50%", "rounds": "4", "strict": "yes", "mode": "sum", "weights": "1, 0.1"})
    assert bound.recipe == {"mode": "sum", "rounds": 4, "scale": 0.5, "strict": True, "weights": "1.0,0.1"}
    assert norm_blend.bind(bound.recipe) == bound


def test_a_whole_tensor_strategy_sees_the_shape():
    base, ours, theirs = raw([3, 4, 0, 0]), raw([3, 4, 1, 0]), raw([3, 4, 0, 2])
    out = combine_window(base, [ours, theirs], "F32", norm_blend.bind({}), where=Where(name="t"), shape=(2, 2))
    assert floats(out).tolist() == [3, 4, 2.5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scal": "1"}, "did you mean `scale`"),
        ({"scale": "3"}, "from 0 to 2"),
        ({"scale": "nan"}, "from 0 to 2"),
        ({"scale": "x"}, "a number"),
        ({"rounds": "1.5"}, "a whole number"),
        ({"rounds": 1.5}, "a whole number"),
        ({"strict": "perhaps"}, "true or false"),
        ({"mode": "men"}, "did you mean `mean`"),
        ({"weights": "1,x"}, "a number"),
    ],
)
def test_options_are_checked_before_anything_is_merged(options, message):
    with pytest.raises(UsageError, match=message):
        norm_blend.bind(options)


def test_functions_that_cannot_be_strategies():
    with pytest.raises(BugError, match="`parent`"):
        strategy()(lambda sides, parent: sides[0])

    def no_default(sides, *, scale: float):
        return sides[0]

    def odd_type(sides, *, scale: bytes = b""):
        return sides[0]

    for function in (no_default, odd_type):
        with pytest.raises(BugError, match="scale"):
            strategy()(function)

    @strategy()
    def crooked(sides: list) -> np.ndarray:
        return sides[0][:1]

    with pytest.raises(BugError, match="returned shape"):
        crooked.bind({}).compute(Part(where=Where(name="t"), base=None, sides=(np.ones(2), np.zeros(2))), {})


def test_rules_name_a_strategy_with_options():
    bound = parse_rule("average weights=1,3")
    assert (bound.name, bound.values["weights"]) == ("average", (1.0, 3.0))
    with pytest.raises(UsageError, match="did you mean `average`"):
        parse_rule("averge")
    with pytest.raises(UsageError, match="option=value"):
        parse_rule("average weights")


def test_every_built_in_loads_and_is_described():
    for name in STRATEGIES:
        found = STRATEGIES.get(name)
        assert found.name == name
        assert found.summary.endswith(".")


def test_options_that_no_record_holds_or_that_contradict_are_refused() -> None:
    for text, words in (
        (f"dare seed={2**63}", "option `seed` must be a whole number below 2^63"),
        ("ties density=0.1 density=0.2", "sets density twice"),
        ("average weights=inf,1", "option `weights` must be a number, not 'inf'"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            parse_rule(text)
