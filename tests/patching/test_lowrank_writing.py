"""Tensors that are their base plus a product of small rank: found, declared, and left alone where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.numerics.floats import from_float64, to_float32
from modelgit.objects import TensorId, TensorSpec
from modelgit.patching.correct import Product
from modelgit.patching.encode import BlobSource, TensorWriter
from modelgit.patching.jobs import Stored, StoreJob
from modelgit.patching.materialise import TensorReader

SHAPE = (640, 768)
RANK = 8


def put(
    shelf,
    raw: bytes,
    spec: TensorSpec,
    *,
    parent: TensorId | None = None,
    effort="balanced",
    product: Product | None = None,
) -> Stored:
    session = shelf.store.session(epoch=0)
    products = None if product is None else lambda name: product if name == "t" else None
    writer = TensorWriter(session, threads=2, effort=effort, verify=True, products=products)
    stored = next(writer.store([StoreJob("t", BlobSource(raw), spec, len(raw), parent)]))
    session.seal()
    TensorReader(shelf.store).verify(stored.id, spec)
    return stored


def merged(dtype: str, *, how: str = "peft", shape=SHAPE, rank: int = RANK, seed: int = 0):
    """(raw base, raw merged, the product)."""
    rng = np.random.default_rng(seed)
    columns = int(np.prod(shape[1:]))
    weights = (rng.standard_normal((shape[0], columns)) * 0.05).astype(np.float32)
    left = (rng.standard_normal((shape[0], rank)) * 0.02).astype(np.float32)
    right = (rng.standard_normal((columns, rank)) * 0.03).astype(np.float32)
    base = from_float64(weights.ravel(), dtype)
    delta = (left @ right.T).ravel()
    if how == "cast":
        new = from_float64(weights.ravel() + delta, dtype)
    else:
        new = from_float64(to_float32(base, dtype) + to_float32(from_float64(delta, dtype), dtype), dtype)
    return base.tobytes(), new.tobytes(), Product(left.astype(np.float64), right.astype(np.float64))


@pytest.mark.parametrize(("dtype", "how", "bar"), [("F32", "peft", 7), ("BF16", "peft", 5.5), ("BF16", "cast", 5.5)])
@pytest.mark.parametrize("effort", ["balanced", "tight"])
def test_a_merged_adapter_is_found(shelf, dtype: str, how: str, bar: float, effort: str) -> None:
    base, new, _ = merged(dtype, how=how)
    spec = TensorSpec(dtype=dtype, shape=SHAPE)
    stored = put(shelf, new, spec, parent=put(shelf, base, spec).id, effort=effort)
    assert stored.codec == "lowrank"
    assert len(new) / stored.bytes_written > bar
    assert stored.values_changed == np.count_nonzero(np.frombuffer(new, "<u2") != np.frombuffer(base, "<u2")) or (
        dtype == "F32"
    )
    (record,) = shelf.records(stored.id)
    reader = TensorReader(shelf.store)
    assert reader.record(stored.id)[1].prelude_bytes > 0
    rng = np.random.default_rng(1)
    for _ in range(20):
        start, stop = sorted(4 * int(at) for at in rng.integers(0, len(new) // 4, 2))
        assert reader.read(stored.id, start, stop) == new[start:stop]
    assert record.stop == len(new)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_declared_adapter_needs_no_search(shelf, dtype: str) -> None:
    base, new, product = merged(dtype)
    spec = TensorSpec(dtype=dtype, shape=SHAPE)
    parent = put(shelf, base, spec).id
    stored = put(shelf, new, spec, parent=parent, effort="fast", product=product)
    assert stored.codec == "lowrank"
    assert len(new) / stored.bytes_written > 12


def test_a_declared_adapter_of_any_rank(shelf) -> None:
    shape, rank = (640, 768), 200
    base, new, product = merged("F32", shape=shape, rank=rank)
    spec = TensorSpec(dtype="F32", shape=shape)
    parent = put(shelf, base, spec).id
    plain = put(shelf, new[:-4] + b"\0\0\0\0", spec, parent=parent)
    stored = put(shelf, new, spec, parent=parent, product=product)
    assert stored.codec == "lowrank"
    assert stored.bytes_written < 0.9 * plain.bytes_written


def test_a_wrong_declaration_does_no_harm(shelf) -> None:
    base, new, product = merged("BF16")
    spec = TensorSpec(dtype="BF16", shape=SHAPE)
    parent = put(shelf, base, spec).id
    rng = np.random.default_rng(7)
    for wrong in (
        product._replace(left=rng.standard_normal(product.left.shape)),
        product._replace(left=product.left * np.nan),
        product._replace(left=product.left * 1e300, right=product.right * 1e300),
        product._replace(left=product.left * 0.0),
        Product(product.right, product.left),
        Product(np.zeros((640, 0)), np.zeros((768, 0))),
    ):
        changed = bytearray(new)
        changed[0] ^= int(rng.integers(1, 255))
        changed[9] ^= int(rng.integers(1, 255))
        put(shelf, bytes(changed), spec, parent=parent, product=wrong)


@pytest.mark.parametrize("effort", ["balanced", "tight"])
def test_dense_and_sparse_changes_are_left_alone(shelf, effort: str) -> None:
    rng = np.random.default_rng(3)
    weights = (rng.standard_normal(SHAPE) * 0.05).astype(np.float32)
    spec = TensorSpec(dtype="F32", shape=SHAPE)
    parent = put(shelf, weights.tobytes(), spec).id
    dense = weights + (rng.standard_normal(SHAPE) * 1e-4).astype(np.float32)
    assert put(shelf, dense.tobytes(), spec, parent=parent, effort=effort).codec != "lowrank"
    sparse = np.where(rng.random(SHAPE) < 0.2, dense, weights)
    assert put(shelf, sparse.tobytes(), spec, parent=parent, effort=effort).codec != "lowrank"
    rows = weights.copy()
    rows[rng.permutation(640)[:30]] = 0.0
    assert put(shelf, rows.tobytes(), spec, parent=parent, effort=effort).codec != "lowrank"


def test_fast_does_not_look(shelf) -> None:
    base, new, _ = merged("F32")
    spec = TensorSpec(dtype="F32", shape=SHAPE)
    assert put(shelf, new, spec, parent=put(shelf, base, spec).id, effort="fast").codec != "lowrank"


def test_weights_that_are_not_finite_zero_or_masked(shelf) -> None:
    rng = np.random.default_rng(4)
    for dtype in ("BF16", "F16", "F32"):
        base, new, _ = merged(dtype, seed=4)
        kind = "<u4" if dtype == "F32" else "<u2"
        old, now = np.frombuffer(base, kind).copy(), np.frombuffer(new, kind).copy()
        top = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}[dtype]
        places = rng.integers(0, old.size, 400)
        old[places[:100]] = top
        now[places[50:150]] = top + 1
        old[places[150:350]] = now[places[150:350]] = 0
        old[places[300:350]] ^= old.dtype.type(1 << 8 * old.itemsize - 1)
        now[places[300:350]] = old[places[300:350]]
        spec = TensorSpec(dtype=dtype, shape=SHAPE)
        stored = put(shelf, now.tobytes(), spec, parent=put(shelf, old.tobytes(), spec).id)
        assert stored.codec == "lowrank"
        assert now.nbytes / stored.bytes_written > 4


def test_convolutions_and_other_ranks(shelf) -> None:
    for shape, rank in (((128, 64, 3, 3), 4), ((2048, 512), 32), ((300, 4000), 16)):
        base, new, _ = merged("F32", shape=shape, rank=rank)
        spec = TensorSpec(dtype="F32", shape=shape)
        stored = put(shelf, new, spec, parent=put(shelf, base, spec).id)
        assert stored.codec == "lowrank"
        assert len(new) / stored.bytes_written > 3.5


def test_a_tensor_of_several_extents(shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelgit.patching.coding.EXTENT_BYTES", 8 << 20)
    shape = (4300, 1100)  # 18 MiB: three extents, whose borders lie inside of rows
    base, new, _ = merged("F32", shape=shape)
    spec = TensorSpec(dtype="F32", shape=shape)
    parent = put(shelf, base, spec).id
    stored = put(shelf, new, spec, parent=parent)
    assert stored.codec == "lowrank"
    records = shelf.records(stored.id)
    assert [record.start for record in records] == [0, 8 << 20, 16 << 20]
    assert len(new) / stored.bytes_written > 15
    reader = TensorReader(shelf.store)
    border = 8 << 20
    for start, stop in ((border - 4, border + 4), (border - 40_000, border + 40_000), (border, border + 4)):
        assert reader.read(stored.id, start, stop) == new[start:stop]


def test_a_correction_of_a_grown_matrix(shelf) -> None:
    base, new, _ = merged("F32", shape=(700, 768))
    small = TensorSpec(dtype="F32", shape=(600, 768))
    spec = TensorSpec(dtype="F32", shape=(700, 768))
    parent = put(shelf, base[: small.size_bytes], small).id
    stored = put(shelf, new, spec, parent=parent)
    assert shelf.get(stored.id) == new
