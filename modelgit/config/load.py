"""Merge the layers of settings, remember where each value came from, and refuse what the schema does not know.

Layers come lowest first: system, user, `mgit.toml`, `.mgit/config.toml`, environment, flags.  Tables merge key by
key, a value of a higher layer replaces that of a lower one, arrays are replaced whole.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from modelgit.config.keys import Family, Leaf, Table, child_of, join_key, node_of, parse_value, split_key, to_leaf
from modelgit.config.schema import Settings
from modelgit.errors import UsageError

__all__ = [
    "BUILT_IN",
    "PRIVATE",
    "VERSIONED",
    "ConfigLayer",
    "LoadedSettings",
    "check_layer",
    "file_layer",
    "load_settings",
]

BUILT_IN = "built-in"
ENVIRONMENT = "environment"
VERSIONED = "mgit.toml"
PRIVATE = ("user", "storage", "remote")
_MAX_BYTES = 1 << 20
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")

_Path = tuple[str, ...]


class ConfigLayer(NamedTuple):
    """One source of settings.

    `name` appears in messages and as origin; a layer whose name ends in `mgit.toml` is versioned and may not set
    what belongs to one clone; in the layer named "environment" unknown keys only warn.  `source` is TOML text, or a
    mapping from dotted keys to values, in which a string is read as a TOML literal or else as itself.
    """

    name: str
    source: str | Mapping[str, object]

    @property
    def is_versioned(self) -> bool:
        """Whether this travels with the repository, so that strangers may have written it."""
        return self.name.endswith(VERSIONED)


@dataclass(frozen=True, kw_only=True)
class LoadedSettings:
    """Settings, the layer that each explicitly set dotted key came from, and sentences about what was ignored."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        """The name of the layer that set `key`, or "built-in"."""
        return self.origins.get(key, BUILT_IN)

    def value(self, key: str) -> object:
        """The value of the dotted `key`, None when it is not set.  Raises UsageError for an unknown key."""
        parts = split_key(key)
        node_of(parts)
        value: Any = self.settings
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else getattr(value, part)
            if value is None:
                return None
        return value

    def items(self) -> Iterator[tuple[str, object, str]]:
        """Dotted key, value and origin of every setting that has a value, in the order of the schema."""

        def walk(value: object, path: _Path) -> Iterator[tuple[str, object, str]]:
            if isinstance(value, msgspec.Struct):
                for field in msgspec.structs.fields(value):
                    yield from walk(getattr(value, field.name), (*path, field.name))
            elif isinstance(value, dict):
                for name in sorted(value):
                    yield from walk(value[name], (*path, name))
            elif value is not None:
                key = join_key(path)
                yield key, value, self.origin(key)

        yield from walk(self.settings, ())


def file_layer(path: Path, *, name: str) -> ConfigLayer:
    """The layer in the file at `path`; empty when there is no such file.  Raises UsageError for an unreadable one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ConfigLayer(name, "")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from error
    try:
        return ConfigLayer(name, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from None


def _parse(layer: ConfigLayer, text: str) -> dict[str, Any]:
    if len(text) > _MAX_BYTES:
        raise UsageError(f"{layer.name} is too large for a settings file ({len(text)} characters)")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = _PLACE.search(message)
        what = message[: found.start()] if found else message
        if found and found[1]:
            line, column = int(found[1]), int(found[2])
        else:
            lines = text.split("\n")
            line, column = len(lines), len(lines[-1]) + 1
        raise UsageError(
            f"{layer.name}, line {line}, column {column}: not valid TOML: {what[:1].lower()}{what[1:]}",
            hint=f"correct line {line} of {layer.name}",
        ) from None
    except RecursionError:
        raise UsageError(f"{layer.name} is nested too deeply") from None


class _Collector:
    """Values by key path, and which layer set them last."""

    def __init__(self) -> None:
        self.values: dict[_Path, object] = {}
        self.origins: dict[_Path, str] = {}
        self.entries: dict[_Path, str] = {}  # tables by name and empty tables, and who mentioned them last
        self.warnings: list[str] = []

    def add(self, layer: ConfigLayer) -> None:
        if isinstance(layer.source, str):
            self.table(layer, Table(Settings), (), _parse(layer, layer.source))
        else:
            self.dotted(layer, layer.source)

    def table(self, layer: ConfigLayer, node: Table | Family, path: _Path, content: Mapping[str, object]) -> None:
        for name, value in content.items():
            below = (*path, name)
            if layer.is_versioned and len(below) == 1 and name in PRIVATE:
                self.warnings.append(f"{layer.name} may not set [{name}], which belongs to each clone; it is ignored")
                continue
            child = child_of(node, below, where=f"{layer.name}: ")
            self.put(layer, child, below, value, entry=isinstance(node, Family))

    def put(
        self, layer: ConfigLayer, node: Table | Family | Leaf, path: _Path, value: object, *, entry: bool = False
    ) -> None:
        where = f"{layer.name}: "
        if isinstance(node, Leaf):
            self.values[path] = to_leaf(path, node, value, where=where)
            self.origins[path] = layer.name
            return
        if not isinstance(value, dict):
            raise UsageError(f"{where}`{join_key(path)}` is a table, not a value", hint=f"write [{join_key(path)}]")
        if entry or not value:
            self.entries[path] = layer.name
        self.table(layer, node, path, value)

    def dotted(self, layer: ConfigLayer, source: Mapping[str, object]) -> None:
        where = f"{layer.name}: "
        for key, raw in source.items():
            try:
                parts = split_key(key)
                node = node_of(parts, where=where)
            except UsageError as error:
                if layer.name != ENVIRONMENT:
                    raise
                self.warnings.append(f"{error.message}; it is ignored")
                continue
            value = parse_value(key, raw, where=where) if isinstance(raw, str) else raw
            if isinstance(value, tuple):
                value = list(value)
            if len(parts) >= 2 and isinstance(node_of(parts[:1]), Family):
                self.entries[parts[:2]] = layer.name
            self.put(layer, node, parts, value)

    def build(self) -> Settings:
        tree: dict[str, Any] = {}
        for path in self.entries:
            self._branch(tree, path)
        for path, value in self.values.items():
            self._branch(tree, path[:-1])[path[-1]] = value
        for path, origin in self.entries.items():
            node = node_of(path)
            if isinstance(node, Table):
                try:
                    msgspec.convert(self._branch(tree, path), node.struct)
                except msgspec.ValidationError as error:
                    missing = re.search(r"required field `(\w+)`", str(error))
                    what = f"has no `{missing[1]}`" if missing else str(error)
                    raise UsageError(
                        f"{origin}: [{join_key(path)}] {what}",
                        hint=f"`mgit config set {join_key((*path, missing[1] if missing else 'KEY'))} VALUE`",
                    ) from None
        return msgspec.convert(tree, Settings)

    @staticmethod
    def _branch(tree: dict[str, Any], path: _Path) -> dict[str, Any]:
        for part in path:
            tree = tree.setdefault(part, {})
        return tree


def check_layer(layer: ConfigLayer) -> None:
    """Raise UsageError unless `layer` parses and all its keys and values are known; it need not be complete."""
    collector = _Collector()
    collector.add(layer)


def load_settings(layers: Sequence[ConfigLayer]) -> LoadedSettings:
    """Merge `layers`, lowest first, over the built-in settings.

    Raises UsageError, naming layer and key, for TOML that does not parse (with line and column), unknown keys (with
    the nearest known one), values of a wrong type, numbers that are not finite, and tracked paths that leave the
    repository.
    """
    collector = _Collector()
    for layer in layers:
        collector.add(layer)
    settings = collector.build()
    origins = {join_key(path): name for path, name in collector.origins.items()}
    return LoadedSettings(settings=settings, origins=origins, warnings=tuple(collector.warnings))
