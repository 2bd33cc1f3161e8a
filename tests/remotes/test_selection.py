from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import IntegrityError, RemoteError
from modelgit.objects import BlobId, ObjectId
from modelgit.remotes.base import Needed
from modelgit.remotes.closure import closure, new_commits
from modelgit.remotes.selection import Selection, select_records
from modelgit.store.base import Located

A, B, C, D = (BlobId.of(name.encode()) for name in "abcd")


def row(
    of: BlobId, length: int, base: BlobId | None = None, *, start: int = 0, stop: int = 100, total: int = 100
) -> Located:
    return Located(
        "blob", of.digest, start, stop, total, f"{length}.pack", 16, length, 1, None if base is None else base.digest
    )


def select(rows: list[Located], wanted: Collection[BlobId], here: Collection[BlobId] = ()) -> Selection:
    def locate(ids: Collection[ObjectId]) -> dict[ObjectId, list[Located]]:
        return {object_id: [item for item in rows if item.digest == object_id.digest] for object_id in ids}

    items = [Needed(item, "x") for item in wanted]
    return select_records(locate, items, lambda ids: set(ids) - set(here), where="origin", lacking=RemoteError)


def lengths(selection: Selection) -> list[int]:
    return [item.length for item in selection.records]


def test_the_smallest_record_with_a_base_that_is_there_or_sent_is_taken() -> None:
    rows = [row(A, 90), row(A, 5, B), row(A, 3, C), row(B, 80), row(C, 80)]
    assert lengths(select(rows, [A])) == [90]
    assert lengths(select(rows, [A], here=[B])) == [5]
    assert lengths(select(rows, [A], here=[B, C])) == [3]
    assert lengths(select(rows, [A, C])) == [3, 80]


def test_a_base_that_is_needed_and_not_there_is_sent_too() -> None:
    chosen = select([row(A, 5, B), row(B, 6, C), row(C, 70)], [A])
    assert lengths(chosen) == [5, 6, 70]
    assert [item.id for item in chosen.items] == [A, B, C]
    assert [item.name for item in chosen.items] == ["x", "base of x", "base of x"]


def test_records_never_wait_for_each_other() -> None:
    rows = [row(A, 90), row(A, 5, B), row(B, 90), row(B, 5, A)]
    assert sorted(lengths(select(rows, [A, B]))) == [5, 90]
    # The cheap choice for A (on B) leaves B, which rests on A alone, without any: then A is taken whole.
    rows = [row(A, 90), row(A, 5, B), row(B, 5, A)]
    assert lengths(select(rows, [A, B])) == [90, 5]
    with pytest.raises(RemoteError, match="coded against what is rebuilt from it"):
        select([row(A, 5, B), row(B, 5, A)], [A, B])
    with pytest.raises(RemoteError, match="coded against what is rebuilt from it"):
        select([row(A, 5, A)], [A])


def test_extents_are_tiled_without_overlap() -> None:
    tiles = [row(A, 40, stop=50), row(A, 41, start=50)]
    sly = row(A, 2, start=30, stop=70)
    assert lengths(select([*tiles, sly], [A])) == [40, 41]
    with pytest.raises(RemoteError, match=r"origin does not hold blob .* whole"):
        select([tiles[0], sly], [A])
    with pytest.raises(RemoteError, match=r"origin does not hold blob b3:[0-9a-f]{64} \(x\)(?:\n|$)"):
        select([], [A])


@pytest.mark.parametrize(
    "bad",
    [
        row(A, 100, start=0, stop=0),
        row(A, 5 << 20),
        row(A, 1 << 40),
        row(A, 200 << 20)._replace(header=200 << 20),
        row(A, 0)._replace(header=1),
    ],
)
def test_rows_that_cannot_be_are_not_followed(bad: Located) -> None:
    with pytest.raises(RemoteError, match="does not hold"):
        select([bad], [A])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90), st.none() | st.integers(0, 3)), max_size=12, unique=True),
    st.sets(st.integers(0, 3), min_size=1),
)
def test_whatever_is_chosen_can_be_rebuilt(entries: list[tuple[int, int, int | None]], wanted: set[int]) -> None:
    names = [A, B, C, D]
    rows = [row(names[i], length, None if base is None else names[base]) for i, length, base in entries if i != base]
    rows += [row(name, 91) for name in names]  # as in a sound store: each can be read without the others
    chosen = select(rows, [names[i] for i in sorted(wanted)])
    bases = {item.digest: item.base for item in chosen.records}
    assert len(bases) == len(chosen.records)
    for digest in bases:
        current: bytes | None = digest
        for _ in range(5):
            if current is None:
                break
            current = bases[current]
        assert current is None


def test_the_closure_lists_children_first_each_once_and_only_what_is_new(alice: Any, weights: Any, tuned: Any) -> None:
    first = alice.commit(weights, with_mask=True)
    second = alice.commit(tuned, parents=[first])
    everything = list(closure(alice.store, new_commits(alice.store, [second])))
    kinds = [item.id.KIND for item in everything]
    assert len({item.id for item in everything}) == len(everything)
    assert kinds.count("commit") == 2 and kinds.count("tensor") == 5 and kinds.count("mask") == 1
    assert everything[-1].id == second
    assert [item.id for item in everything].index(first) < kinds.index("content", kinds.index("commit"))
    for item in everything:
        if item.id.KIND == "tensor":
            assert item.spec is not None and item.size == item.spec.size_bytes
    fresh = list(closure(alice.store, new_commits(alice.store, [second], stop={first})))
    assert [item.id.KIND for item in fresh] == ["tensor", "content", "manifest", "patch", "eval", "eval", "commit"]
    assert fresh[0].name == "layer.2.weight of model.safetensors"


def test_a_tensor_that_moved_to_another_file_is_not_sent_again(alice: Any, weights: Any) -> None:
    first = alice.commit(weights, path="a.safetensors")
    second = alice.commit({**weights, "new": np.ones(3, np.float32)}, parents=[first], path="b.safetensors")
    fresh = list(closure(alice.store, new_commits(alice.store, [second], stop={first})))
    assert [item.name for item in fresh if item.id.KIND == "tensor"] == ["new of b.safetensors"]


def test_a_file_that_is_not_as_long_as_its_parts_is_refused() -> None:
    from modelgit.objects import FileContent, Literal, TensorEntry, TensorId, TensorRef, TensorSpec, TensorView
    from modelgit.remotes.closure import check_content

    tensor = TensorEntry(name="w", spec=TensorSpec(dtype="F32", shape=(3,)), id=TensorId(bytes(32)))
    good = FileContent(format="x", segments=(Literal(blob=A, length=5), TensorRef(index=0)), tensors=(tensor,))
    check_content(good, "f", 17)

    def view(**fields: Any) -> FileContent:
        made = TensorView(**{"name": "v", "tensor": 0, **fields})
        return FileContent(format="x", segments=(TensorRef(index=0),), tensors=(tensor,), views=(made,))

    check_content(view(), "f", 12)
    check_content(view(spec=TensorSpec(dtype="U8", shape=(3, 2)), offset=6, strides=(1, 3)), "f", 12)
    for content, message in [
        (good, "said to have 16 bytes"),
        (FileContent(format="x", segments=(TensorRef(index=1),), tensors=(tensor,)), "names tensor 1 of 1"),
        (FileContent(format="x", segments=(TensorRef(index=-1),), tensors=(tensor,)), "names tensor -1 of 1"),
        (FileContent(format="x", segments=(Literal(blob=A, length=-5),)), "segment of -5 bytes"),
        (
            FileContent(
                format="x",
                segments=(),
                tensors=(TensorEntry(name="w", spec=TensorSpec(dtype="F32", shape=(-1,)), id=tensor.id),),
            ),
            "a tensor with shape",
        ),
        (FileContent(format="x", segments=(Literal(blob=A, length=5, offset=-1),)), "begins at byte -1"),
        (view(tensor=1), "view of tensor 1 of 1"),
        (view(tensor=-1), "view of tensor -1 of 1"),
        (view(offset=4), "reaches to byte 16 of a storage of 12"),
        (view(offset=-4), "impossible offset or stride"),
        (view(strides=(2,)), "reaches to byte 20 of a storage of 12"),
        (view(strides=(-1,)), "impossible offset or stride"),
        (view(strides=(1, 1)), "impossible offset or stride"),
        (view(spec=TensorSpec(dtype="F32", shape=(1 << 40,)), strides=(0,)), "repeats its storage"),
        (view(spec=TensorSpec(dtype="F32", shape=(1 << 62, 1 << 62))), "a tensor"),
    ]:
        with pytest.raises(IntegrityError, match=message):
            check_content(content, "f", 12 if content.views else 16)
