"""Canonical bytes leave defaults out, and msgspec tells a default by identity: only singletons are safe ones."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import msgspec
import pytest

import modelgit.objects
from modelgit.objects import Record


def _records() -> Iterator[type[msgspec.Struct]]:
    for module in pkgutil.iter_modules(modelgit.objects.__path__):
        importlib.import_module(f"modelgit.objects.{module.name}")
    importlib.import_module("modelgit.worktree.journal")
    importlib.import_module("modelgit.worktree.index")
    pending = [Record]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        yield kind


@pytest.mark.parametrize("kind", list(_records()), ids=lambda kind: kind.__name__)
def test_defaults_are_singletons(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        default = field.default
        if default is msgspec.NODEFAULT or default is None or isinstance(default, bool):
            continue
        assert type(default) in (int, str, tuple) and not default, f"{kind.__name__}.{field.name} = {default!r}"
