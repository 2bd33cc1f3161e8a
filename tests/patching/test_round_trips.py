"""Tensors in and out: with bases, in chains, over extents, by windows; and which encoding they get."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelgit.errors import BugError
from modelgit.objects import DTYPES, TensorSpec
from modelgit.patching.base import windows
from modelgit.patching.chain import MAX_SPARSE_COST, anchor_of, chain_cost
from modelgit.patching.choose import sample_runs
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import BlobSource, SourceChangedError, StoreJob
from modelgit.patching.materialise import TensorReader

MIB = 1 << 20


def normal(count: int, seed: int = 0, scale: float = 0.02) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(count)).astype("<f4")


def bfloat(values: np.ndarray) -> np.ndarray:
    return (values.view("<u4") >> 16).astype("<u2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    units=st.integers(0, 400),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    kind=st.sampled_from(["random", "zeros", "text"]),
)
def test_any_bytes_come_back_with_and_without_a_base(shelf, dtype: str, units: int, seed: int, share: float, kind: str) -> None:  # fmt: skip # noqa: E501
    random = np.random.default_rng(seed)
    size = units * 24  # whole elements of every dtype
    base = {"random": random.bytes(size), "zeros": bytes(size), "text": (b"weights " * (size // 8 + 1))[:size]}[kind]
    first = shelf.put(base, dtype=dtype)
    assert shelf.get(first.id) == base
    changed = np.frombuffer(base, np.uint8).copy()
    where = random.random(size) < share
    changed[where] = random.integers(0, 256, int(where.sum()), np.uint8)
    second = shelf.put(changed.tobytes(), dtype=dtype, parent=first.id)
    assert shelf.get(second.id) == changed.tobytes()
    assert shelf.put(base, dtype=dtype).codec == "known"
    if second.values_changed is not None and DTYPES[dtype].bits >= 8:
        width = DTYPES[dtype].bits // 8
        rows = changed.reshape(-1, width) != np.frombuffer(base, np.uint8).reshape(-1, width)
        assert second.values_changed == int(rows.any(axis=1).sum())
    for start, stop in ((0, size), (0, size // 2 // 8 * 8), (size // 3 // 8 * 8, size), (size, size)):
        assert shelf.get(second.id, start, stop) == changed.tobytes()[start:stop]


def test_clear_cases_get_the_encoding_that_fits(shelf) -> None:
    base = normal(300_000)
    first = shelf.put(base.tobytes())
    assert first.codec == "planes"
    assert first.bytes_written < 0.9 * base.nbytes
    few = base.copy()
    few[::1000] *= np.float32(1.01)
    sparse = shelf.put(few.tobytes(), parent=first.id)
    assert sparse.codec == "sparse"
    assert sparse.values_changed == 300
    assert sparse.bytes_written < 0.01 * base.nbytes
    dense = shelf.put((base + normal(300_000, 1, 1e-6)).tobytes(), parent=first.id)
    assert dense.codec == "context"
    assert dense.bytes_written < 0.75 * first.bytes_written
    other = shelf.put(normal(300_000, 7).tobytes(), parent=first.id)
    assert other.codec == "planes", "an unrelated tensor is no base"
    assert not shelf.records(other.id)[0].base
    noise = np.random.default_rng(0).bytes(400_000)
    assert shelf.put(noise, dtype="U8").codec == "raw"
    half = bfloat(base)
    assert shelf.put(half.tobytes(), dtype="BF16").bytes_written < 0.75 * half.nbytes
    zeros = shelf.put(bytes(4_000_000))
    assert zeros.bytes_written < 2000
    assert shelf.put(few.tobytes(), parent=sparse.id).codec == "known"


def test_a_missing_or_unrelated_parent_is_no_base(shelf) -> None:
    first = shelf.put(normal(5000).tobytes())
    assert shelf.records(shelf.put(normal(5001, 9).tobytes(), parent=first.id).id)[0].base is None
    gone = type(first.id)(bytes(32))
    assert shelf.records(shelf.put(normal(5002).tobytes(), parent=gone).id)[0].base is None


@pytest.mark.parametrize("rows", [30_000, 3_000_000])
def test_more_or_fewer_rows_are_coded_against_the_common_ones(shelf, rows: int) -> None:
    table = normal(rows)
    first = shelf.put(table.tobytes())
    tuned = table.copy()
    tuned[:: rows // 200] += np.float32(1e-3)
    grown = np.concatenate([tuned, normal(rows // 50, 5)]).tobytes()
    stored = shelf.put(grown, parent=first.id, threads=2)
    assert stored.values_changed is None, "rows that one side lacks are not comparable"
    assert stored.bytes_written < 0.1 * first.bytes_written
    cut = table[: rows // 2].tobytes()
    shorter = shelf.put(cut, parent=first.id)
    assert shorter.bytes_written < 0.01 * first.bytes_written
    assert shelf.get(stored.id) == grown
    assert shelf.get(shorter.id) == cut
    border = 4 * rows
    assert shelf.get(stored.id, border - 80, border + 80) == grown[border - 80 : border + 80]


def test_a_large_tensor_that_turns_out_to_be_known_is_taken_back(shelf) -> None:
    """Coded while it is hashed, since its samples differ from the parent's; then its id is that of an older one."""
    old, new = normal(5 * MIB, 1).tobytes(), normal(5 * MIB, 2).tobytes()
    first = shelf.put(old)
    second = shelf.put(new, parent=first.id, threads=2)
    fresh = normal(30 * MIB, 3).tobytes()
    spec = TensorSpec(dtype="F32", shape=(5 * MIB,))
    session = shelf.store.session(epoch=0)
    jobs = [
        StoreJob("small", BlobSource(b"abcd"), TensorSpec(dtype="F32", shape=(1,)), 4),
        StoreJob("again", BlobSource(old), spec, len(old), second.id),
        StoreJob("fresh", BlobSource(fresh), TensorSpec(dtype="F32", shape=(30 * MIB,)), len(fresh), second.id),
        StoreJob("last", BlobSource(b"efgh"), TensorSpec(dtype="F32", shape=(1,)), 4),
    ]
    stored = list(TensorWriter(session, threads=2).store(jobs))
    assert [item.codec == "known" for item in stored] == [False, True, False, False]
    assert stored[1].id == first.id
    assert stored[1].bytes_written == 0
    packs = session.seal()
    sizes = sum((shelf.store.packs_path / name).stat().st_size for name in packs)
    assert sizes < sum(item.bytes_written for item in stored) + 4000, "what was taken back takes no space"
    assert shelf.get(stored[0].id) == b"abcd"
    assert shelf.get(stored[3].id) == b"efgh"
    assert shelf.get(stored[2].id) == fresh


def test_everything_that_was_staged_may_be_taken_back(shelf) -> None:
    raw = normal(3 * MIB, 1).tobytes()
    first = shelf.put(raw)
    other = shelf.put(normal(3 * MIB, 2).tobytes())
    session = shelf.store.session(epoch=0)
    job = StoreJob("t", BlobSource(raw), TensorSpec(dtype="F32", shape=(3 * MIB,)), len(raw), other.id)
    (stored,) = TensorWriter(session, threads=2).store([job])
    assert (stored.id, stored.codec) == (first.id, "known")
    assert session.seal() == []
    assert not any(shelf.store.incoming_path.iterdir())


def test_copies_in_one_commit_are_stored_once(shelf) -> None:
    raw = normal(4 * MIB, 1).tobytes()
    spec = TensorSpec(dtype="F32", shape=(4 * MIB,))
    session = shelf.store.session(epoch=0)
    jobs = [StoreJob(name, BlobSource(raw), spec, len(raw)) for name in ("a", "b", "c")]
    stored = list(TensorWriter(session, threads=2).store(jobs))
    assert [item.codec for item in stored] == ["planes", "known", "known"]
    assert len(session.seal()) == 1
    assert len(shelf.records(stored[0].id)) == 1


def test_non_finite_values_are_counted_on_the_way(shelf) -> None:
    for count in (3000, 3 * MIB):
        values = normal(count, 3)
        values[[5, 17, count - 1]] = [np.nan, np.inf, -np.inf]
        stored = shelf.put(values.tobytes(), threads=2)
        assert str(stored.nonfinite) == "1 NaN, 1 Inf, 1 -Inf"
        assert not shelf.put(normal(count, 4).tobytes()).nonfinite.broken


def test_verification_decodes_what_is_about_to_be_written(shelf, monkeypatch) -> None:
    spec = TensorSpec(dtype="F32", shape=(200_000,))
    job = StoreJob("t", BlobSource(normal(200_000).tobytes()), spec, 800_000)
    monkeypatch.setattr(
        "modelgit.codecs.planes.PlanesCodec.decode", lambda self, payload, layout, out, **_: out.fill(0)
    )
    session = shelf.store.session(epoch=0)
    with pytest.raises(BugError, match="planes does not give back"):
        list(TensorWriter(session, threads=1, verify=True).store([job]))
    assert len(list(TensorWriter(session, threads=1).store([job]))) == 1
    session.abort()


def test_sparse_patches_chain_until_reading_costs_too_much(shelf) -> None:
    values = normal(100_000)
    parent = shelf.put(values.tobytes()).id
    anchor = parent
    random = np.random.default_rng(0)
    depths, tips = [], []
    for _ in range(90):
        values = values.copy()
        values[random.integers(0, values.size, 50)] += np.float32(0.001)
        stored = shelf.put(values.tobytes(), parent=parent)
        parent = stored.id
        tips.append((parent, values.tobytes()))
        depth, at = 0, shelf.records(parent)[0]
        while at.base is not None:
            depth, at = depth + 1, shelf.records(type(parent)(at.base))[0]
        depths.append(depth)
        assert chain_cost(shelf.store, parent) <= MAX_SPARSE_COST + 0.2
        assert anchor_of(shelf.store, parent) is not None
    assert depths[:10] == list(range(1, 11)), "small patches rest on their parents"
    assert max(depths) < 64
    assert min(depths[60:]) < 10, "a chain that became long is flattened"
    assert min(depths) == 1, "and rests on the whole tensor then: it is not stored whole again"
    assert anchor_of(shelf.store, tips[0][0]) == anchor
    for object_id, raw in tips:
        assert shelf.get(object_id) == raw


def test_dense_deltas_rest_on_one_another_twice_at_most(shelf) -> None:
    """Deeper, a chain would save a tenth and cost half of the speed of reading; then they rest on the whole tensor."""
    values = normal(200_000)
    parent = anchor = shelf.put(values.tobytes()).id
    for step in range(6):
        values = values + normal(200_000, step + 1, 1e-6)
        parent = shelf.put(values.tobytes(), parent=parent).id
        record = shelf.records(parent)[0]
        depth = 0
        while record.base is not None:
            depth, record = depth + 1, shelf.records(type(parent)(record.base))[0]
        assert depth == (step % 2) + 1
        assert chain_cost(shelf.store, parent) <= 3.2
    assert shelf.get(parent) == values.tobytes()
    assert shelf.get(anchor) == normal(200_000).tobytes()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["planes", "sparse", "context", "raw"])
def test_large_tensors_in_extents_and_windows(shelf, monkeypatch: pytest.MonkeyPatch, threads: int, kind: str) -> None:
    monkeypatch.setattr("modelgit.patching.coding.EXTENT_BYTES", 16 * MIB)
    count = (41 * MIB + 12) // 4
    base = normal(1 << 16)
    values = np.resize(base, count)
    parent = None
    dtype = "F32"
    if kind == "raw":
        values, dtype = np.frombuffer(np.random.default_rng(0).bytes(4 * count), "<u4"), "U32"
    elif kind != "planes":
        parent = shelf.put(values.tobytes()).id
        values = values.copy()
        if kind == "sparse":
            values[::10_007] += np.float32(1)
        else:
            values += np.resize(normal(1 << 16, 1, 1e-6), count)
    raw = values.tobytes()
    stored = shelf.put(raw, dtype=dtype, parent=parent, threads=threads)
    assert stored.codec == kind
    spans = [(item.start, item.stop) for item in shelf.records(stored.id)]
    assert spans == [(0, 16 * MIB), (16 * MIB, 32 * MIB), (32 * MIB, len(raw))]
    if kind == "sparse":
        assert stored.values_changed == len(range(0, count, 10_007))
    random = np.random.default_rng(1)
    cuts = [(0, len(raw)), (16 * MIB - 4, 16 * MIB + 4), (len(raw) - 4, len(raw)), (len(raw), len(raw))]
    cuts += [tuple(sorted(int(cut) * 4 for cut in random.integers(0, count, 2))) for _ in range(12)]
    for start, stop in cuts:
        assert shelf.get(stored.id, start, stop) == raw[start:stop]
    TensorReader(shelf.store).verify(stored.id, TensorSpec(dtype=dtype, shape=(count,)))


class Fickle:
    """Gives other bytes when it is read again; samples do not count."""

    step_bytes = 512 << 10

    def __init__(self, raw: bytes, at: int) -> None:
        self.spec = TensorSpec(dtype="F32", shape=(len(raw) // 4,))
        self.raw = bytearray(raw)
        self.at = at
        self.seen = 0

    def read(self, start: int, stop: int) -> bytes:
        self.seen += stop - start if stop - start >= self.step_bytes else 0
        if self.seen > len(self.raw):
            self.raw[self.at] ^= 1
            self.seen = -(1 << 60)
        return bytes(self.raw[start:stop])

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self.read(start, start + len(out))


@pytest.mark.parametrize("at", [0, 9 * MIB, 20 * MIB - 1])
def test_a_source_that_changes_between_two_readings_is_refused(shelf, at: int) -> None:
    shelf.put(b"else")  # a store that is not empty may hold it: it is hashed before it is coded
    packs = shelf.store.lookup.packs()
    source = Fickle(normal(5 * MIB).tobytes(), at)
    session = shelf.store.session(epoch=0)
    with pytest.raises(SourceChangedError, match="emb changed while it was being committed") as caught:
        list(TensorWriter(session, threads=2).store([StoreJob("emb", source, source.spec, 20 * MIB)]))
    assert caught.value.hint
    session.abort()
    assert shelf.store.lookup.packs() == packs


def test_results_come_in_the_order_of_the_jobs(shelf) -> None:
    raws = [normal(7 + 991 * (n % 5), n).tobytes() for n in range(60)]
    jobs = [
        StoreJob(str(n), BlobSource(raw), TensorSpec(dtype="F32", shape=(len(raw) // 4,)), len(raw))
        for n, raw in enumerate(raws)
    ]
    session = shelf.store.session(epoch=0)
    stored = list(TensorWriter(session, threads=3).store([*jobs, jobs[3]]))
    session.seal()
    assert [item.name for item in stored] == [*map(str, range(60)), "3"]
    assert stored[-1].codec == "known"
    assert [shelf.get(item.id) for item in stored[:60]] == raws


@pytest.mark.parametrize("words", [0, 1, 65_536, 65_537, 10_000_000])
def test_samples_lie_inside(words: int) -> None:
    runs = sample_runs(words)
    assert all(0 <= start <= stop <= words for start, stop in runs)
    assert sum(stop - start for start, stop in runs) == min(words, 65_536)


def test_windows_cover() -> None:
    assert list(windows(0)) == []
    for size in (1, 8 * MIB, 8 * MIB + 1, 50 * MIB):
        spans = list(windows(size))
        assert spans[0][0] == 0
        assert spans[-1][1] == size
        assert all(0 < stop - start <= 8 * MIB for start, stop in spans)
        assert all(a[1] == b[0] for a, b in pairwise(spans))
