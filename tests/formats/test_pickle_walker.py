"""The opcode walker: it follows every protocol, and hostile pickles cost neither time nor memory."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest

from modelgit.errors import CheckpointFormatError
from modelgit.formats import pickle_walker, torch_pickle
from modelgit.formats.pickle_walker import Call, Mapping, PickleWindow, Walker
from modelgit.formats.torch_globals import is_allowed
from modelgit.formats.torch_pickle import read_tensors
from modelgit.testing.fuzzing import MemoryFile


def walk(data: bytes) -> object:
    walker = Walker(PickleWindow(MemoryFile(data, name="m.pt"), 0, len(data)), is_allowed)
    return walker.walk()[0]


def plain(value: object) -> object:
    """What the walker found, as the objects that a pickle of plain data is of."""
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.pairs}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, 255, 256, 65535, -1, -300, 2**31 - 1, -(2**31), 2**40, -(2**70), 1.5,
        float("inf"), "", "ä\n😀", "x" * 300,
        (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [1, 2], {}, {"a": 1}, {"a": {"b": [1, (2,)]}, 3: None},
        [[[]]] * 3, list(range(3000)),
    ],
)  # fmt: skip
def test_plain_data(value: object, protocol: int) -> None:
    assert plain(walk(pickle.dumps(value, protocol))) == value


def test_shared_and_recursive_values() -> None:
    inner: list[object] = []
    inner.append(inner)
    for protocol in (0, 2, 5):
        found = walk(pickle.dumps([inner, inner], protocol))
        assert isinstance(found, list) and found[0] is found[1] and found[0][0] is found[0]
        assert read_tensors(found, "m.pt") == []


def test_calls_are_recorded_with_their_state() -> None:
    from argparse import Namespace

    for protocol in (2, 4):
        found = walk(pickle.dumps(Namespace(a=1), protocol))
        assert isinstance(found, Call)
        assert (found.callee.module, found.callee.name) in (("argparse", "Namespace"), ("copyreg", "_reconstructor"))
        assert plain(found.state) == {"a": 1}


HOSTILE = {
    "dictionaries that double": b"\x80\x02ccollections\nOrderedDict\nq\x00}(K\x01K\x02K\x03K\x04u"
    + b"q\x01h\x00h\x01h\x01\x86Rq\x01" * 60 + b".",
    "tuples that double": b"\x80\x02)" + b"2\x86" * 50_000 + b".",
    "a million marks": b"\x80\x02" + b"(" * 1_000_000,
    "a million dictionaries": b"\x80\x02" + b"}" * 1_000_000,
    "a deep list": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
    "a length that lies": b"\x80\x02X\xff\xff\xff\xff",
    "bytes of 8 exbibytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "an integer of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a memo of nothing": b"\x80\x02h\x05.",
    "nothing to call": b"\x80\x02)R.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a number in a dictionary": b"\x80\x02K\x01K\x02K\x03s.",
    "an unhashable key": b"\x80\x02}]K\x03s",
    "the extension registry": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "a name without end": b"cos" + b"x" * 10_000,
    "a name with a newline": b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.",
    "a name that is no text": b"\x80\x04K\x01K\x02\x93.",
    "a huge number in text": b"I" + b"9" * 4000 + b"\n.",
    "protocol 9": b"\x80\x09.",
    "a class of somebody": b"(i__main__\nEvil\n.",
}  # fmt: skip
FINE = {"tuples that double", "a deep list"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fortieth of the steps, under a fortieth of 400 MiB; the limit itself is met by 60,000 tensors."""
    data = HOSTILE[name]
    steps = pickle_walker.MAX_STEPS // 40
    monkeypatch.setattr(pickle_walker, "MAX_STEPS", steps)
    monkeypatch.setattr(torch_pickle, "_MAX_VISITS", 50_000)
    tracemalloc.start()
    try:
        if name in FINE:
            try:
                read_tensors(walk(data), "m.pt")
            except CheckpointFormatError as error:
                assert "again and again" in error.message or "steps" in error.message
        else:
            with pytest.raises(CheckpointFormatError):
                walk(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (10 << 20) + 2 * len(data)


def test_values_that_hold_each_other_are_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "_MAX_VISITS", 10_000)
    data = b"\x80\x02)" + b"2\x86" * 1000 + b"."
    with pytest.raises(CheckpointFormatError, match="again and again"):
        read_tensors(walk(data), "m.pt")
