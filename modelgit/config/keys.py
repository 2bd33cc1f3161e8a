"""Dotted keys of settings (`eval.smoke.accuracy.max_drop`) and the types that the schema gives them."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

import msgspec

from modelgit.config.schema import Settings
from modelgit.errors import UsageError
from modelgit.objects.paths import path_problem

__all__ = ["Family", "Leaf", "Node", "Table", "child_of", "join_key", "node_of", "parse_value", "split_key", "to_leaf"]

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_PART = re.compile(r"""([A-Za-z0-9_-]+)|"([^"\\\x00-\x1f\x7f]*)"|'([^'\x00-\x1f\x7f]*)'""")
_SHOW_ALL = "`mgit config list` shows all keys"


class Table(NamedTuple):
    """A table with the fields of `struct`."""

    struct: type[msgspec.Struct]


class Family(NamedTuple):
    """A table of tables by name, as `[task.NAME]`, each with the fields of `struct`."""

    struct: type[msgspec.Struct]


class Leaf(NamedTuple):
    """A single value of type `kind`."""

    kind: Any


Node = Table | Family | Leaf


@cache
def _children(struct: type[msgspec.Struct]) -> dict[str, Node]:
    return {field.name: _classify(field.type) for field in msgspec.structs.fields(struct)}


def _classify(kind: Any) -> Node:
    inner = kind
    if get_origin(kind) in (Union, types.UnionType):
        real = [part for part in get_args(kind) if part is not type(None)]
        inner = real[0] if len(real) == 1 else kind
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        return Table(inner)
    if get_origin(inner) is dict:
        return Family(get_args(inner)[1])
    return Leaf(kind)


def join_key(parts: Iterable[str]) -> str:
    """The dotted form of a key path; parts that TOML would not take bare are quoted."""
    return ".".join(part if _BARE.match(part) else f'"{part}"' for part in parts)


def split_key(text: str) -> tuple[str, ...]:
    """The parts of a dotted key, in which a part may be quoted.  Raises UsageError for anything else."""
    parts: list[str] = []
    position = 0
    while match := _PART.match(text, position):
        parts.append(next(group for group in match.groups() if group is not None))
        position = match.end()
        if position == len(text):
            return tuple(parts)
        if text[position] != ".":
            break
        position += 1
    raise UsageError(f"{text[:100]!a} is not a dotted key", hint=_SHOW_ALL)


def _plain(text: str) -> str:
    """`text` from a settings file as it may be shown: no control characters, at most 160 characters."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 160 else text[:157] + "..."


def _unknown(path: tuple[str, ...], known: Iterable[str], where: str) -> NoReturn:
    near = difflib.get_close_matches(path[-1], known, n=1)
    suggestion = f"; did you mean `{join_key((*path[:-1], near[0]))}`?" if near else ""
    raise UsageError(f"{where}unknown setting `{_plain(join_key(path))}`{suggestion}", hint=_SHOW_ALL)


def child_of(node: Table | Family, path: tuple[str, ...], *, where: str = "") -> Node:
    """The node under `node` that the last part of `path` names.

    `where` begins the message ("mgit.toml: ").  Raises UsageError, with the nearest known key, for an unknown one.
    """
    if isinstance(node, Family):
        name = path[-1]
        if not name or len(name) > 100 or not name.isprintable():
            raise UsageError(f"{where}{name[:100]!a} is not a name for [{path[0]}.NAME]")
        return Table(node.struct)
    children = _children(node.struct)
    if path[-1] not in children:
        _unknown(path, children, where)
    return children[path[-1]]


def node_of(parts: tuple[str, ...], *, where: str = "") -> Node:
    """What the schema says about the key `parts`.  Raises UsageError for a key that does not exist."""
    node: Node = Table(Settings)
    for length in range(1, len(parts) + 1):
        if isinstance(node, Leaf):
            raise UsageError(f"{where}`{join_key(parts[: length - 1])}` is a value, not a table", hint=_SHOW_ALL)
        node = child_of(node, parts[:length], where=where)
    return node


def _check_meaning(path: tuple[str, ...], value: object, where: str) -> None:
    """Refuse what has the right type and cannot mean anything, or something dangerous."""
    key = join_key(path)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}`{key}` must be a finite number, not {value}")  # a limit of nan never bites
    if path in (("track", "paths"), ("track", "training_state")) and isinstance(value, tuple):
        for item in value:
            problem = None if item == "." else path_problem(item)
            if problem is not None:
                raise UsageError(f"{where}`{key}` lists {item[:100]!a}, which has {problem}")


def _allowed(kind: Any) -> str | None:
    values = [value for part in (kind, *get_args(kind)) if get_origin(part) is Literal for value in get_args(part)]
    return "one of " + ", ".join(map(str, values)) if values else None


def to_leaf(path: tuple[str, ...], leaf: Leaf, value: object, *, where: str = "") -> object:
    """`value`, as TOML gives it, in the type of `leaf`.  Raises UsageError that names the key."""
    try:
        converted: object = msgspec.convert(value, leaf.kind)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at ")[0]
        reason = reason[:1].lower() + reason[1:]
        raise UsageError(f"{where}`{join_key(path)}`: {_plain(reason)}", hint=_allowed(leaf.kind)) from None
    _check_meaning(path, converted, where)
    return converted


def parse_value(key: str, text: str, *, where: str = "") -> object:
    """The value of the setting `key` that a user typed as `text`: a TOML literal, or else a plain string.

    The result is plain TOML data (lists, not tuples).  Raises UsageError unless the schema takes it.
    """
    parts = split_key(key)
    node = node_of(parts, where=where)
    try:
        document = tomllib.loads(f"value = {text}")
        literal = document["value"] if len(document) == 1 else text
    except (tomllib.TOMLDecodeError, RecursionError):
        literal = text
    if not isinstance(node, Leaf):
        if not isinstance(literal, dict):
            raise UsageError(f"{where}`{join_key(parts)}` is a table, not a value", hint=_SHOW_ALL)
        return literal
    try:
        to_leaf(parts, node, literal, where=where)
    except UsageError:
        if literal == text:
            raise
        try:
            to_leaf(parts, node, text, where=where)
        except UsageError:
            pass
        else:
            return text
        raise
    return literal
