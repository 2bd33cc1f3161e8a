"""Canonical bytes leave defaults out, and msgspec tells a default by identity: only singletons are safe ones."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import msgspec
import pytest

import modelgit.objects
import modelgit.store
import modelgit.worktree
from modelgit.objects import Record

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
