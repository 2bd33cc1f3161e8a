"""Canonical bytes leave defaults out, and msgspec tells a default by identity: only singletons are safe ones."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest

import modelgit.objects
import modelgit.store
import modelgit.worktree
from modelgit.objects import Record, decode, encode

PERSISTED = (modelgit.objects, modelgit.store, modelgit.worktree)


def _records() -> Iterator[type[msgspec.Struct]]:
    for package in PERSISTED:
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    pending = [Record]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        # Whatever else was imported before: the reports of commands are encoded for people only.
        if kind.__module__.startswith(tuple(f"{package.__name__}." for package in PERSISTED)):
            yield kind


@pytest.mark.parametrize("kind", list(_records()), ids=lambda kind: kind.__name__)
def test_defaults_are_singletons(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        default = field.default
        if default is msgspec.NODEFAULT or default is None or isinstance(default, bool):
            continue
        assert type(default) in (int, str, bytes, tuple) and not default, f"{kind.__name__}.{field.name} = {default!r}"


def test_records_within_records_have_at_most_15_fields() -> None:
    # From 16 on, msgspec writes another head of the map, and `encode` mends that of the outermost record only.
    def named(kind: object) -> Iterator[type[msgspec.Struct]]:
        for part in (kind, *get_args(kind)):
            if part is not kind:
                yield from named(part)
            elif isinstance(part, type) and issubclass(part, Record):
                yield part

    objects = modelgit.objects
    stored: list[type[msgspec.Struct]] = [
        objects.Commit, objects.Manifest, objects.Patch, objects.FileContent, objects.Mask, objects.FisherEstimate,
        objects.EvalRecord, objects.Note, objects.Operation, objects.Retention, objects.Statistics, objects.Root,
    ]  # fmt: skip
    inner: set[type[msgspec.Struct]] = set()
    while stored:
        for field in msgspec.structs.fields(stored.pop()):
            fresh = set(named(field.type)) - inner
            stored += fresh
            inner |= fresh
    assert len(inner) > 10
    assert {kind.__name__ for kind in inner if len(msgspec.structs.fields(kind)) > 15} == set()


class Grown(Record, frozen=True, kw_only=True):
    """A record that outgrew 15 fields."""

    a: int
    b01: int = 0
    b02: int = 0
    b03: int = 0
    b04: int = 0
    b05: int = 0
    b06: int = 0
    b07: int = 0
    b08: int = 0
    b09: int = 0
    b10: int = 0
    b11: int = 0
    b12: int = 0
    b13: int = 0
    b14: int = 0
    b15: int = 0


def test_a_record_that_grows_keeps_the_bytes_of_old_objects() -> None:
    assert encode(Grown(a=1)) == b"\x81\xa1a\x01"
    assert decode(Grown, b"\x81\xa1a\x01") == Grown(a=1)
    full = encode(Grown(a=1, **{f"b{number:02d}": 1 for number in range(1, 16)}))
    assert full[:3] == b"\xde\x00\x10"
    assert decode(Grown, full).b15 == 1
