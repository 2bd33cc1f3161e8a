"""Lazy registries of named implementations: built-ins as "module:attribute", entry points when a name is unknown."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from modelgit.errors import UsageError, did_you_mean

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to implementations without importing any of them before it is asked for.

    `kind` is the word used in messages ("merge strategy"), `group` the entry-point group that third parties use;
    `builtins` are the names of its own implementations, in the order in which they were given.
    """

    def __init__(self, kind: str, group: str, builtins: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self.builtins = tuple(builtins)
        self._targets: dict[str, str] = dict(builtins)
        self._loaded: dict[str, T] = {}
        self._scanned = False

    def names(self) -> list[str]:
        """All known names, entry points included, sorted."""
        self._scan()
        return sorted(self._targets)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in self.names()

    def get(self, name: str) -> T:
        """Import and return the implementation called `name`.

        Raises UsageError with the nearest known name when there is none.
        """
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._targets:
            self._scan()
        target = self._targets.get(name)
        if target is None:
            known = ", ".join(sorted(self._targets))
            raise UsageError(
                f"no {self.kind} `{name}`{did_you_mean(name, self._targets)}",
                hint=f"known: {known}",
            )
        module_name, _, attribute = target.partition(":")
        value = cast(T, getattr(importlib.import_module(module_name), attribute))
        self._loaded[name] = value
        return value

    def _scan(self) -> None:
        if self._scanned:
            return
        from importlib.metadata import entry_points

        for point in entry_points(group=self.group):
            self._targets.setdefault(point.name, point.value)
        self._scanned = True
