import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.merging import rows as rows_module
from modelgit.merging.base import STRATEGIES, Prepared, Where, strategy
from modelgit.merging.combine import RUN_ELEMENTS, Comparison, combine_window, compare_window
from modelgit.merging.model import ModelMerge, matching_rule
from modelgit.merging.resolve import Combined, Sides, Taken, Viewed, resolve_tensor
from modelgit.merging.rows import RowViews, Run, ViewSource, joined
from modelgit.merging.tensors import MergedTensor, TensorParts, compare
from modelgit.numerics.floats import from_float64, to_float64
from modelgit.objects import CodedTensor, FisherEstimate, ManifestId, TensorEntry, TensorId, TensorSpec
from modelgit.objects.merges import Resolution
from modelgit.patching.base import windows

FLOATS = ["F64", "F32", "F16", "BF16", "F8_E4M3", "C64"]


class Memory:
    """Tensors in a dict, read by range."""

    def __init__(self):
        self.data = {}

    def put(self, values, dtype="F32", shape=None):
        raw = (
            values
            if isinstance(values, bytes)
            else from_float64(np.asarray(values, np.float64).reshape(-1), dtype).tobytes()
        )
        tensor = TensorId.of(dtype.encode() + raw)
        self.data[tensor] = raw
        shape = np.shape(values) if shape is None else shape
        return TensorSpec(dtype=dtype, shape=shape), tensor

    def read(self, tensor, start, stop):
        assert 0 <= start <= stop <= len(self.data[tensor])
        return bytearray(self.data[tensor][start:stop])

    def size(self, tensor):
        return len(self.data[tensor]) if tensor in self.data else None


def bind(name, **options):
    return STRATEGIES.get(name).bind(options)


def parts(name, base, *sides, fisher=()):
    return TensorParts(
        name=name,
        spec=sides[0][0],
        base=None if base is None else base[1],
        sides=tuple(side[1] for side in sides),
        fisher=tuple(None if f is None else CodedTensor(f[1], f[0].shape, None) for f in fisher),
    )


def estimate(**diagonal):
    entries = tuple(TensorEntry(name=name, spec=spec, id=tensor) for name, (spec, tensor) in diagonal.items())
    return FisherEstimate(
        of=ManifestId.of(b"m"), model="m", task="t", estimator="exact", data="d", examples=1, seed=0, diagonal=entries
    )


words = st.binary(min_size=48, max_size=48)
edits = st.dictionaries(st.integers(0, 5), st.binary(min_size=8, max_size=8))


def edited(data, changes):
    out = bytearray(data)
    for at, value in changes.items():
        out[at * 8 : at * 8 + 8] = value
    return bytes(out)


@given(st.sampled_from(FLOATS), words, edits, edits)
def test_what_one_side_changed_is_that_side_to_the_bit(dtype, base, left, right):
    ours, theirs = edited(base, left), edited(base, right)
    merged = combine_window(base, [ours, theirs], dtype, bind("average"), where=Where(name="t"), split=True)
    swapped = combine_window(base, [theirs, ours], dtype, bind("average"), where=Where(name="t"), split=True)
    for at in range(6):
        cut = slice(at * 8, at * 8 + 8)
        if at not in left:
            assert merged[cut] == theirs[cut]
        elif at not in right:
            assert merged[cut] == ours[cut]
    assert np.array_equal(to_float64(merged, dtype), to_float64(swapped, dtype), equal_nan=True)


def test_the_strategy_decides_about_overlap_only_and_about_all_when_not_split():
    base, ours, theirs = (
        from_float64(np.array(v, float), "F32").tobytes() for v in ([1, 1, 1, 1], [3, 3, 1, 1], [5, 1, 5, 1])
    )
    for split, expected in ((True, [4, 3, 5, 1]), (False, [4, 2, 3, 1])):
        merged = combine_window(base, [ours, theirs], "F32", bind("average"), where=Where(name="t"), split=split)
        assert to_float64(merged, "F32").tolist() == expected


def test_integers_split_exactly_as_long_as_nothing_overlaps():
    base, ours, theirs = b"\0\0\0\0", b"\1\0\0\7", b"\0\0\2\7"
    assert combine_window(base, [ours, theirs], "U8", bind("average"), where=Where(name="t"), split=True) == b"\1\0\2\7"
    with pytest.raises(UsageError, match="U8"):
        combine_window(base, [b"\1\0\0\0", b"\2\0\0\0"], "U8", bind("average"), where=Where(name="t"), split=True)


def test_comparison_counts_changes_overlap_and_signs():
    base = from_float64(np.array([1.0, 1, 1, 1, 1, 0]), "BF16").tobytes()
    ours = from_float64(np.array([2.0, 2, 1, 1, 0, -0.0]), "BF16").tobytes()
    theirs = from_float64(np.array([3.0, 0, 4, 1, 1, 0]), "BF16").tobytes()
    found = compare_window(base, [ours, theirs], "BF16")
    assert found == Comparison(elements=6, changed=(4, 3), overlap=2, agree=1)
    assert not found.sparse
    assert (found + Comparison(elements=10, changed=(0, 9))).sparse
    ints = compare_window(b"\0\0\0", [b"\1\1\0", b"\1\2\0"], "U8")
    assert (ints.overlap, ints.agree) == (2, 1)
    complexes = [np.array(v, np.complex64).tobytes() for v in ([0, 0], [1 + 1j, 1 + 1j], [2 + 3j, 1 - 1j])]
    assert compare_window(complexes[0], complexes[1:], "C64") == Comparison(
        elements=2, changed=(2, 2), overlap=2, agree=1
    )


@settings(max_examples=40)
@given(
    st.sampled_from(FLOATS), st.sampled_from(["average", "fisher", "ours"]), st.booleans(), st.integers(0, 9), st.data()
)
def test_windows_of_any_size_give_the_same_bytes(dtype, name, split, seed, data):
    rng, memory = np.random.default_rng(seed), Memory()
    size = 60
    start = rng.normal(size=size)
    elements = size // 2 if dtype == "C64" else size
    base, ours, theirs = (
        memory.put(start + (rng.random(size) < 0.5) * rng.normal(size=size), dtype, (elements,)) for _ in range(3)
    )
    fishers = [memory.put(rng.exponential(size=elements)) for _ in range(2)]
    source = MergedTensor(
        memory,
        parts("t", base, ours, theirs, fisher=fishers),
        bind(name),
        statistics={"norm.0": 2.0, "norm.1": 3.0, "mean.0": 0.5, "mean.1": 0.4},
        split=split,
    )
    total = source.spec.size_bytes
    whole = bytes(source.read(0, total))
    assert len(whole) == total
    word = source.spec.kind.word_bytes
    cuts = sorted({0, total, *(at * word for at in data.draw(st.lists(st.integers(0, total // word))))})
    assert b"".join(bytes(source.read(a, b)) for a, b in itertools.pairwise(cuts)) == whole


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 7), (1, 1)])
@pytest.mark.parametrize("name", ["average", "fisher"])
@pytest.mark.parametrize("split", [True, False])
def test_scalars_single_elements_and_nothing(shape, name, split):
    memory = Memory()
    base, ours, theirs = (memory.put(np.full(shape, value)) for value in (1.0, 2.0, 4.0))
    merge = ModelMerge(memory, [parts("t", base, ours, theirs)], bind(name), split=["t"] if split else [])
    source = merge.source("t")
    assert source.spec.shape == shape
    assert to_float64(bytes(source.read(0, source.spec.size_bytes)), "F32").tolist() == [3.0] * int(np.prod(shape))


def test_reading_from_threads_and_twice_gives_equal_bytes():
    rng, memory = np.random.default_rng(0), Memory()
    base, ours, theirs = (memory.put(rng.normal(size=5000)) for _ in range(3))

    @strategy(scope="tensor")
    def lean(base: np.ndarray, sides: list) -> np.ndarray:
        return base + sides[0] * np.linalg.norm(sides[1])

    for bound in (bind("average"), lean.bind({})):
        source = MergedTensor(memory, parts("t", base, ours, theirs), bound)
        whole = bytes(source.read(0, 20000))
        again = MergedTensor(memory, parts("t", base, ours, theirs), bound)
        with ThreadPoolExecutor(4) as pool:
            pieces = list(pool.map(again.read, *zip(*[*windows(20000, step_bytes=700)] * 2, strict=True)))
        assert b"".join(pieces) == whole * 2


def test_memory_is_bounded_by_the_window_and_not_by_the_tensor():
    class Endless:
        def read(self, tensor, start, stop):
            return bytearray(stop - start) if tensor == zero else bytearray(b"\0\0\x80?") * ((stop - start) // 4)

    zero, one = TensorId.of(b"0"), TensorId.of(b"1")
    spec = TensorSpec(dtype="F32", shape=(1 << 30,))
    source = MergedTensor(Endless(), TensorParts(name="t", spec=spec, base=None, sides=(zero, one)), bind("average"))
    tracemalloc.start()
    for start in (0, 1 << 31, spec.size_bytes - (1 << 20)):
        assert bytes(source.read(start, start + (1 << 20))) == b"\0\0\0?" * (1 << 18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def test_compare_streams_a_whole_tensor():
    memory, size = Memory(), 3 << 20
    start = np.zeros(size)
    ours, theirs = start.copy(), start.copy()
    ours[::3], theirs[::2] = 1, 1
    base, left, right = (memory.put(v, "BF16") for v in (start, ours, theirs))
    found = compare(memory, parts("t", base, left, right))
    assert found == Comparison(elements=size, changed=(size // 3, size // 2), overlap=size // 6, agree=size // 6)
    assert compare(memory, parts("t", None, left, right)) == Comparison(elements=size)


def fisher_model(memory, second=None):
    rng = np.random.default_rng(3)
    tensors = {name: [rng.normal(size=(4, 3)) for _ in range(2)] for name in ("body", "extra")}
    diagonals = [{name: rng.exponential(size=(4, 3)) * scale for name in tensors} for scale in (1e-6, 1e-2)]
    if second is not None:
        diagonals[1] = {name: value for name, value in diagonals[1].items() if name in second}
    estimates = [estimate(**{k: memory.put(v) for k, v in d.items()}) if d else None for d in diagonals]
    all_parts = [parts(name, None, *(memory.put(v) for v in pair)) for name, pair in tensors.items()]
    return tensors, diagonals, estimates, all_parts


def values_of(source):
    return to_float64(bytes(source.read(0, source.spec.size_bytes)), source.spec.dtype)


def test_fisher_is_normalised_over_the_model_and_not_per_tensor():
    memory = Memory()
    tensors, diagonals, estimates, all_parts = fisher_model(memory)
    # Only one of the tensors is combined; the norm is still that of the body.
    merge = ModelMerge(memory, all_parts[:1], bind("fisher"), fishers=estimates)
    scaled = []
    for diagonal in diagonals:
        whole = np.concatenate([d.astype(np.float32).astype(float).ravel() for d in diagonal.values()])
        scaled.append(diagonal["body"].astype(np.float32).astype(float) / np.linalg.norm(whole))
    sides = [v.astype(np.float32).astype(float) for v in tensors["body"]]
    expected = (scaled[0] * sides[0] + scaled[1] * sides[1]) / (scaled[0] + scaled[1])
    np.testing.assert_allclose(values_of(merge.source("body")), expected.ravel(), rtol=1e-6)
    assert merge.notes == ()


def test_a_tensor_without_an_estimate_counts_with_that_sides_mean_and_is_reported():
    memory = Memory()
    *_, estimates, all_parts = fisher_model(memory, second=["body"])
    merge = ModelMerge(memory, all_parts, bind("fisher"), fishers=estimates)
    merge.prepare()
    assert merge.notes == ("side 2 has no Fisher estimate of extra: its values count with that side's mean",)
    nothing = ModelMerge(memory, all_parts, bind("fisher"))
    np.testing.assert_array_equal(
        values_of(nothing.source("body")), values_of(ModelMerge(memory, all_parts, bind("average")).source("body"))
    )
    assert "no side has a Fisher estimate" in nothing.notes[0]


def test_a_recipe_makes_the_same_merge_again_without_a_first_pass():
    memory = Memory()
    *_, estimates, all_parts = fisher_model(memory)
    merge = ModelMerge(memory, all_parts, bind("fisher"), fishers=estimates)
    once = values_of(merge.source("extra"))
    again = ModelMerge(memory, all_parts, bind("fisher"), fishers=estimates, statistics=merge.statistics)
    assert again.statistics == merge.statistics
    np.testing.assert_array_equal(values_of(again.source("extra")), once)
    with pytest.raises(UsageError, match="not a statistic"):
        ModelMerge(memory, all_parts, bind("fisher"), statistics={"*:norm.0": "many"})


def test_rules_choose_by_name_the_longest_pattern():
    assert matching_rule("h.0.attn.bias", ["*", "h.*", "*.bias", "h.0.*.bias"]) == "h.0.*.bias"
    assert matching_rule("x", ["h.*"]) == "*"
    memory = Memory()
    tensors = [parts(name, None, memory.put([2.0]), memory.put([4.0])) for name in ("a.weight", "a.bias", "head")]
    rules = {"*.bias": bind("theirs"), "head": bind("average", weights="3,1")}
    merge = ModelMerge(memory, tensors, bind("average"), rules=rules)
    assert [values_of(merge.source(t.name)).tolist() for t in tensors] == [[3], [4], [2.5]]
    with pytest.raises(UsageError, match="not a tensor"):
        merge.source("b")


def grow(memory, base, ours, theirs, how="with grow-rows", name="average"):
    stored = [None if side is None else memory.put(side) for side in (base, ours, theirs)]
    views = RowViews(memory)
    found = resolve_tensor("embed", Resolution.parse(how), Sides(*stored), views)
    if isinstance(found, Taken):
        return found
    if isinstance(found, Viewed) and found.view is not None:
        source = ViewSource(views, found.spec, found.view)
    else:
        source = ModelMerge(views, [found.parts], bind(name), split=["embed"]).source("embed")
    for start, stop in windows(source.spec.size_bytes, step_bytes=12):
        assert bytes(source.read(start, stop)) == bytes(source.read(0, source.spec.size_bytes))[start:stop]
    return values_of(source).reshape(source.spec.shape)


def test_a_vocabulary_that_grew_on_one_side_is_merged_by_rows():
    memory = Memory()
    base = np.arange(6.0).reshape(3, 2)
    ours = base + np.array([[10, 0], [0, 0], [0, 0]])
    theirs = np.vstack([base + np.array([[20, 0], [0, 0], [0, 7]]), [[8, 8], [9, 9]]])
    expected = np.vstack([base + np.array([[15, 0], [0, 0], [0, 7]]), [[8, 8], [9, 9]]])
    np.testing.assert_array_equal(grow(memory, base, ours, theirs), expected)
    np.testing.assert_array_equal(grow(memory, base, theirs, ours), expected)
    np.testing.assert_array_equal(grow(memory, None, np.full((1, 2), 2.0), np.full((2, 2), 4.0)), [[3, 3], [4, 4]])


def test_rows_added_on_both_sides_must_be_the_same_rows():
    memory = Memory()
    base = np.zeros((2, 2))
    three, four = np.vstack([base, [[1, 1]]]), np.vstack([base, [[1, 1], [2, 2]]])
    np.testing.assert_array_equal(grow(memory, base, three, four), four)
    for ours, theirs, why in (
        (three, four + 1, "both sides added rows"),
        (base[:1], four, "removed rows"),
        (base, np.zeros((3, 3)), "more than the number of rows"),
        (base, None, "removed it"),
        (base, np.float64(3), "more than the number of rows"),
    ):
        with pytest.raises(UsageError, match=why):
            grow(memory, base, ours, theirs)


def test_a_side_can_be_taken_or_the_strategy_be_asked_after_all():
    memory = Memory()
    base, ours, theirs = np.zeros(2), np.full(3, 2.0), np.full(3, 4.0)
    assert grow(memory, base, ours, theirs, "take ours").tensor == memory.put(ours)
    assert grow(memory, base, None, theirs, "take ours").tensor is None
    np.testing.assert_array_equal(grow(memory, base, ours, theirs, "with combine"), [3, 3, 3])
    with pytest.raises(UsageError, match="shape or dtype"):
        grow(memory, base, base + 1, theirs, "with combine")
    with pytest.raises(UsageError, match="did you mean `grow-rows`"):
        grow(memory, base, ours, theirs, "with grow-row")
    sides = [memory.put(value, "I64", ()) for value in (bytes(8), b"\1" + bytes(7), b"\2" + bytes(7))]
    with pytest.raises(UsageError, match="no mean"):
        resolve_tensor("n", Resolution(value="combine"), Sides(*sides), RowViews(memory))
    pair = Sides(None, memory.put(ours), memory.put(theirs))
    assert isinstance(resolve_tensor("e", Resolution(value="combine"), pair, RowViews(memory)), Combined)


def test_rows_can_come_from_several_sides():
    memory = Memory()
    base = np.arange(8.0).reshape(4, 2)
    ours, theirs = base[:3] + 10, np.vstack([base + np.array([[20], [20], [0], [0]]), [[8, 9]]])
    found = grow(memory, base, ours, theirs, "rows 0:1=ours,1:2=combine,2:4=base,4:=theirs")
    np.testing.assert_array_equal(found, [[10, 11], [17, 18], [4, 5], [6, 7], [8, 9]])
    np.testing.assert_array_equal(grow(memory, base, ours, theirs, "rows 0:2=theirs,2:=ours"), [*theirs[:2], ours[2]])
    np.testing.assert_array_equal(grow(memory, None, ours, theirs, "rows 0:3=combine,3:=theirs")[3:], theirs[3:])
    assert grow(memory, base, ours, theirs, "rows :=theirs").tensor == memory.put(theirs)
    assert str(Resolution.parse("rows 30:=ours,:30=theirs")) == "rows 0:30=theirs,30:=ours"
    for text, why in (
        ("rows 0:2=ours,3:=theirs", "row 2 is in no range"),
        ("rows 0:3=ours,2:=theirs", "row 2 is in two ranges"),
        ("rows 0:=ours,2:=theirs", "row 2 is in two ranges"),
        ("rows 2:2=ours", "there are no rows"),
        ("rows 0:1=us", "not a range of rows"),
        ("rows 0:4=ours,4:=theirs", "ours has 3 rows"),
        ("rows 0:3=combine,3:=combine", "ours has 3 rows"),
        ("rows 0:3=ours,5:=theirs", "rows 3 to 4 are in no range"),
        ("rows 0:2=ours", "row 2 is in no range"),
        ("rows 0:1=combine", "rows 1 to 2 are in no range"),
    ):
        with pytest.raises(UsageError, match=why):
            grow(memory, base, ours, theirs, text)
    with pytest.raises(UsageError, match="theirs has no such tensor"):
        grow(memory, base, ours, None, "rows 0:1=ours,1:=theirs")
    with pytest.raises(UsageError, match="more than the number of rows"):
        grow(memory, base, ours, np.zeros((4, 3)), "rows 0:1=ours,1:=theirs")
    whole = [memory.put(bytes([value]) * 16, "I64", (2,)) for value in range(3)]
    with pytest.raises(UsageError, match="no mean"):
        resolve_tensor("n", Resolution.parse("rows 0:=combine"), Sides(*whole), RowViews(memory))
    picked = resolve_tensor("n", Resolution.parse("rows 0:1=ours,1:2=theirs"), Sides(*whole), RowViews(memory))
    assert picked.view is not None and picked.parts is None


@given(st.lists(st.tuples(st.sampled_from(["ours", "theirs", "base"]), st.integers(0, 9)), min_size=1, max_size=40))
def test_rows_in_any_order_are_read_as_they_are(rows):
    memory = Memory()
    blocks, width = rows_module._BLOCK_BYTES, 24
    rows_module._BLOCK_BYTES = 64  # so that rows go over the borders of blocks
    try:
        tables = {side: np.random.default_rng(n).bytes(10 * width) for n, side in enumerate(("base", "ours"))}
        stored = {side: memory.put(raw, "U8", (10, width))[1] for side, raw in tables.items()} | {"theirs": None}
        views = RowViews(memory)
        view = views.add(joined([Run(side, row, 1) for side, row in rows]), stored, width)
        whole = b"".join(
            bytes(width) if side == "theirs" else tables[side][row * width : (row + 1) * width] for side, row in rows
        )
        for start, stop in itertools.combinations(range(0, len(whole) + 1, 20), 2):
            assert views.read(view, start, stop) == whole[start:stop]
    finally:
        rows_module._BLOCK_BYTES = blocks


def test_a_grown_tensor_uses_the_first_rows_of_each_sides_fisher():
    memory = Memory()
    sides = Sides(*(memory.put(np.full((rows, 1), value)) for rows, value in ((2, 0.0), (2, 2.0), (3, 4.0))))
    views = RowViews(memory)
    found = resolve_tensor("embed", Resolution(value="grow-rows"), sides, views)
    fishers = [
        estimate(body=memory.put([1.0]), embed=memory.put([[1.0], [0.0]])),
        estimate(body=memory.put([1.0]), embed=memory.put([[0.0], [1.0], [5.0]])),
    ]
    parts = found.with_fishers(views, [fisher.coded()["embed"] for fisher in fishers])
    merge = ModelMerge(views, [parts], bind("fisher"), fishers=fishers)
    assert values_of(merge.source("embed")).tolist() == [2, 4, 4]
    assert merge.notes == ()
    # The resized table is no part of the body that the norms are taken over.
    assert (merge.statistics["*:norm.0"], merge.statistics["*:norm.1"]) == ("1.0", "1.0")


def test_positions_and_fishers_stay_in_step_over_runs_and_windows():
    @strategy()
    def place(sides: list, fisher: list, where: Where) -> np.ndarray:
        return where.positions + fisher[0] * 2.0**30

    memory, size = Memory(), 3 * RUN_ELEMENTS + 5
    ours = np.zeros(size)
    for theirs in (np.ones(size), (np.arange(size) % 9 == 0).astype(float)):  # all values made, or picked ones
        diagonal = memory.put(np.arange(size))
        source = MergedTensor(
            memory,
            parts("t", None, memory.put(ours, "F64"), memory.put(theirs, "F64"), fisher=(diagonal, None)),
            place.bind({}),
        )
        expected = np.where(theirs != 0, np.arange(size) * (1 + 2.0**30), 0)
        assert np.array_equal(values_of(source), expected)
        middle = to_float64(bytes(source.read(8000, 8 * size - 80)), "F64")
        assert np.array_equal(middle, expected[1000 : size - 10])


def test_a_first_pass_sees_every_value_of_the_model_in_order():
    def largest(material, *, scale: float) -> Prepared:
        seen = list(material.parts())
        assert [part.where.name for part in seen] == ["a", "b"]
        assert all(part.fisher[0].size == part.sides[0].size and part.fisher[1] is None for part in seen)
        top = max(float(np.abs(part.sides[1] - part.base).max()) for part in seen)
        return Prepared(statistics={"top": top * scale}, notes=("looked",))

    @strategy(scope="model", prepare=largest)
    def capped(base: np.ndarray, sides: list, fisher: list, statistics: dict, *, scale: float = 0.5) -> np.ndarray:
        return base + np.clip(sides[1] - base, -statistics["top"], statistics["top"])

    memory = Memory()
    zero, one, two = memory.put([0.0, 0, 0]), memory.put([1.0, -1, 0]), memory.put([2.0, -8, 1])
    imaginary = [memory.put(np.array([z], np.complex64).tobytes(), "C64", (1,)) for z in (0j, 1j, 1 + 6j)]
    merge = ModelMerge(
        memory,
        [parts("b", *imaginary), parts("a", zero, one, two)],
        capped.bind({}),
        fishers=[estimate(a=memory.put([1.0, 2, 3]), b=memory.put([1.0])), None],
    )
    assert values_of(merge.source("a")).tolist() == [2, -4, 1]
    assert values_of(merge.source("b")).tolist() == [1, 4]
    assert merge.statistics == {"*:top": "4.0"}
    assert merge.notes == ("looked",)
