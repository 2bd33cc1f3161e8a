import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.merging.plan import Side, plan
from modelgit.merging.resolve import find_conflicts
from modelgit.objects import CommitId, ContentId, ManifestId, TensorId, TensorSpec, decode, encode
from modelgit.objects.merges import Conflict, MergePlan, MergeState, Resolution


def tensor(value, dtype="F32", shape=(2, 3)):
    return TensorSpec(dtype=dtype, shape=shape), TensorId.of(f"{value} {dtype} {shape}".encode())


def side(name="m", model="models/bot", files=None, **tensors):
    return Side(
        manifest=None if name is None else ManifestId.of(name.encode()),
        models={} if model is None else {model: {key: value for key, value in tensors.items() if value is not None}},
        files={key: ContentId.of(value) for key, value in (files or {}).items()},
    )


def decide(base, ours, theirs):
    found = plan(side("b", t=base), side("o", t=ours), side("t", t=theirs))
    (decision,) = found.tensors or (None,)
    return decision.action if decision else None, [c.kind for c in found.conflicts]


A, B, C = tensor("a"), tensor("b"), tensor("c")


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "action"),
    [
        (A, A, A, "keep"),
        (A, B, A, "ours"),
        (A, A, B, "theirs"),
        (A, B, B, "both-same"),
        (A, None, A, "ours"),
        (A, A, None, "theirs"),
        (A, None, None, "both-same"),
        (None, B, None, "ours"),
        (None, None, B, "theirs"),
        (None, B, B, "both-same"),
        (A, B, C, "combine"),
        (A, A, tensor("b", shape=(4, 3)), "theirs"),
        (A, tensor("b", "BF16"), A, "ours"),
    ],
)
def test_what_ids_decide(base, ours, theirs, action):
    assert decide(base, ours, theirs) == (action, [])


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "kind"),
    [
        (A, B, None, "deleted-changed"),
        (A, None, B, "deleted-changed"),
        (None, B, C, "added-added"),
        (A, B, tensor("c", shape=(4, 3)), "shape"),
        (A, tensor("b", shape=(4, 3)), tensor("c", shape=(4, 3)), "shape"),
        (A, B, tensor("c", "BF16"), "dtype"),
        (A, tensor("b", "BF16"), tensor("c", "BF16"), "dtype"),
        (tensor("a", "I64"), tensor("b", "I64"), tensor("c", "I64"), "integer"),
        (tensor("a", "BOOL"), tensor("b", "BOOL"), tensor("c", "BOOL"), "integer"),
    ],
)
def test_what_somebody_has_to_decide(base, ours, theirs, kind):
    extra = {"other": A}  # another tensor, so that the model itself is on all sides
    found = plan(side("b", t=base, **extra), side("o", t=ours, **extra), side("t", t=theirs, **extra))
    (conflict,) = found.conflicts
    assert (conflict.id, conflict.kind) == ("models/bot:t", kind)
    assert [d.name for d in found.tensors if d.action == "conflict"] == ["t"]


def test_a_shape_conflict_shows_both_shapes():
    (conflict,) = plan(
        side("b", t=A), side("o", t=tensor("b", shape=(49152, 960))), side("t", t=tensor("c", shape=(49160, 960)))
    ).conflicts
    assert (conflict.ours, conflict.theirs) == ("[49152, 960]", "[49160, 960]")


def test_changes_of_different_tensors_never_conflict():
    base, ours, theirs = side("b", x=A, y=A, z=A), side("o", x=B, y=A, w=A), side("t", x=A, y=B, z=A)
    found = plan(base, ours, theirs)
    assert not found.conflicts
    assert {d.name: d.action for d in found.tensors} == {"x": "ours", "y": "theirs", "z": "ours", "w": "ours"}
    assert found.counts == {"ours": 3, "theirs": 1}


def test_without_a_common_ancestor_equal_shapes_are_combined():
    empty = Side()
    found = plan(empty, side("o", x=A, y=B), side("t", x=A, y=C))
    assert {d.name: d.action for d in found.tensors} == {"x": "both-same", "y": "combine"}
    assert not found.conflicts
    assert found.base is None


def test_a_model_on_one_side_only_is_one_decision():
    base = side("b", x=A, y=A)
    gone = side("t", model=None)
    assert not plan(base, side("o", x=A, y=A), gone).conflicts
    found = plan(base, side("o", x=B, y=A), gone)
    (conflict,) = found.conflicts
    assert (conflict.id, conflict.kind, conflict.ours, conflict.theirs) == (
        "models/bot",
        "deleted-changed",
        "2 tensors",
        "deleted",
    )
    assert found.counts["conflict"] == 2
    # A tensor that the surviving side added hangs on the same answer.
    assert plan(base, gone, side("t", x=A, y=A, z=B)).counts["conflict"] == 3
    (conflict,) = plan(side("b", model=None), side("o", x=A, y=B), side("t", x=A, y=C)).conflicts
    assert (conflict.id, conflict.kind) == ("models/bot", "added-added")


def test_files():
    base = side("b", files={"a": b"0", "b": b"0", "c": b"0", "d": b"0"})
    ours = side("o", files={"a": b"1", "b": b"0", "c": b"1", "e": b"1"})
    theirs = side("t", files={"a": b"2", "b": b"2", "d": b"2", "e": b"2"})
    found = plan(base, ours, theirs)
    assert {f.path: f.action for f in found.files} == {
        "a": "combine",
        "b": "theirs",
        "c": "conflict",
        "d": "conflict",
        "e": "combine",
    }
    assert [(c.id, c.ours, c.theirs) for c in found.conflicts] == [
        ("c", "changed", "deleted"),
        ("d", "deleted", "changed"),
    ]


states = st.sampled_from([None, A, B, C, tensor("d", shape=(9,)), tensor("e", "I32"), tensor("f", "BF16")])
tables = st.dictionaries(st.sampled_from("xyz"), states)


@given(tables, tables, tables, st.booleans())
def test_swapping_the_sides_swaps_the_plan(base, ours, theirs, related):
    b = side("b" if related else None, **(base if related else {}), model="models/bot" if related else None)
    one, other = plan(b, side("o", **ours), side("t", **theirs)), plan(b, side("t", **theirs), side("o", **ours))
    swapped = {"ours": "theirs", "theirs": "ours"}
    assert [swapped.get(d.action, d.action) for d in one.tensors] == [d.action for d in other.tensors]
    assert [(c.id, c.kind, c.ours, c.theirs) for c in one.conflicts] == [
        (c.id, c.kind, c.theirs, c.ours) for c in other.conflicts
    ]


@given(tables, tables)
def test_one_changed_side_is_never_combined_nor_a_conflict(base, changed):
    for ours, theirs in itertools.permutations([base, changed], 2):
        found = plan(side("b", **base), side("o", **ours), side("t", **theirs))
        assert not found.conflicts
        assert "combine" not in found.counts
        assert all(decision.action != "combine" for decision in found.files)


def test_plans_and_states_survive_storage():
    found = plan(side("b", t=A), side("o", t=B), side("t", t=None, u=C))
    assert decode(MergePlan, encode(found)) == found
    state = MergeState(
        ours=CommitId.of(b"o"),
        theirs=CommitId.of(b"t"),
        base=None,
        message="Merge branch tone",
        strategy="fisher",
        options={"floor": 1e-8},
        rules={"*.bias": "average"},
        resolutions={"config.json:temperature": str(Resolution(take="ours"))},
        conflicts=found.conflicts,
    )
    assert decode(MergeState, encode(state)) == state


def test_resolutions_read_back():
    for text in ("take ours", "take base", "with grow-rows", 'with "two words"'):
        assert str(Resolution.parse(text)) == text
    for text in ("take", "take mine", "with", "", "grow-rows"):
        with pytest.raises(UsageError):
            Resolution.parse(text)


def test_conflicts_are_found_by_id_path_or_item():
    conflicts = [
        Conflict(path="m1", item="embed", kind="shape"),
        Conflict(path="m1", item="head", kind="shape"),
        Conflict(path="m2", item="head", kind="shape"),
    ]
    assert find_conflicts(conflicts, "m1") == tuple(conflicts[:2])
    assert find_conflicts(conflicts, "m2:head") == (conflicts[2],)
    assert find_conflicts(conflicts, "embed") == (conflicts[0],)
    with pytest.raises(UsageError, match="2 places"):
        find_conflicts(conflicts, "head")
    with pytest.raises(UsageError, match="did you mean `embed`"):
        find_conflicts(conflicts, "embde")
