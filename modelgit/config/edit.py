"""Change one setting in the text of a settings file; comments, order and spacing of all else stay.

Every edit is checked twice: the new text must be valid settings, and must differ from the old in the intended key
only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelgit.config.keys import Family, join_key, node_of, parse_value, split_key
from modelgit.config.load import PRIVATE, VERSIONED, ConfigLayer, check_layer
from modelgit.errors import NothingToDo, UsageError, did_you_mean
from modelgit.objects.paths import path_problem

if TYPE_CHECKING:
    import tomlkit

__all__ = ["add_tracked_path", "remove_tracked_path", "set_value", "unset_value"]

_TRACK = "track"


def _by_hand(name: str) -> UsageError:
    return UsageError(f"{name} is written in a way that cannot be edited by a program", hint=f"edit {name} by hand")


def _parse(text: str, name: str) -> tomlkit.TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    check_layer(ConfigLayer(name, text))
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise _by_hand(name) from error


def _table_at(document: tomlkit.TOMLDocument, path: tuple[str, ...]) -> Any:
    """The table at `path`, made where it does not exist: `[a.b]` for two levels, inline below an entry."""
    import tomlkit

    table: Any = document
    for depth, part in enumerate(path, start=1):
        if part not in table:
            fresh: Any
            if depth > 2:
                fresh = tomlkit.inline_table()
            else:
                fresh = tomlkit.table(is_super_table=depth < len(path) or isinstance(node_of(path[:depth]), Family))
            table[part] = fresh
        table = table[part]
    return table


def _edited(
    text: str, name: str, change: Callable[[tomlkit.TOMLDocument], None], expect: Callable[[dict[str, Any]], None]
) -> str:
    """`text` after `change`, which must mean what `expect` does to the plain data."""
    from tomlkit.exceptions import TOMLKitError

    document = _parse(text, name)
    wanted = tomllib.loads(text)
    expect(wanted)
    try:
        change(document)
        result = document.as_string()
        meant = tomllib.loads(result)
    except (TOMLKitError, tomllib.TOMLDecodeError) as error:
        raise _by_hand(name) from error
    if meant != wanted:
        raise _by_hand(name)
    check_layer(ConfigLayer(name, result))
    return result


def _assign(data: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = value


def set_value(text: str, key: str, value_text: str, *, name: str = "config.toml") -> str:
    """The settings file `text` with the dotted `key` set to what `value_text` says.

    `value_text` is a TOML literal (`3`, `true`, `["a", "b"]`) or else a plain string; `name` is the file's name in
    messages.  Raises UsageError for an unknown key, a value of a wrong type, or text that is not valid settings.
    """
    parts = split_key(key)
    value = parse_value(key, value_text)
    if name.endswith(VERSIONED) and parts[0] in PRIVATE:
        raise UsageError(
            f"`{join_key(parts)}` belongs to each clone, and {name} is shared",
            hint=f"`mgit config set {join_key(parts)} VALUE` writes it to this clone's own file",
        )
    if isinstance(value, dict) and (len(parts) < 3 or not isinstance(node_of(parts[:1]), Family)):
        raise UsageError(
            f"`{join_key(parts)}` is a table; set its keys one by one", hint="`mgit config list` shows them"
        )

    def change(document: tomlkit.TOMLDocument) -> None:
        import tomlkit

        fresh: Any
        if isinstance(value, dict):
            fresh = tomlkit.inline_table()
            fresh.update(value)
        else:
            fresh = tomlkit.item(value)
        _table_at(document, parts[:-1])[parts[-1]] = fresh

    return _edited(text, name, change, lambda data: _assign(data, parts, value))


def unset_value(text: str, key: str, *, name: str = "config.toml") -> str:
    """The settings file `text` without the dotted `key` (a value or a whole table); tables left empty go too.

    Raises NothingToDo when the file does not set it, UsageError for an unknown key.
    """
    parts = split_key(key)
    node_of(parts)
    _parse(text, name)
    plain: Any = tomllib.loads(text)
    for part in parts:
        if not isinstance(plain, dict) or part not in plain:
            raise NothingToDo(
                f"{name} does not set `{join_key(parts)}`", hint="`mgit config list --origin` shows what is set where"
            )
        plain = plain[part]

    def remove(data: Any) -> None:
        tables = [data]
        for part in parts[:-1]:
            tables.append(tables[-1][part])
        del tables[-1][parts[-1]]
        for depth in range(len(parts) - 1, 0, -1):
            if len(tables[depth]):
                break
            del tables[depth - 1][parts[depth - 1]]

    return _edited(text, name, remove, remove)


def add_tracked_path(text: str, path: str, *, key: str = "paths", name: str = VERSIONED) -> str:
    """The text of `mgit.toml` with `path` in the list `track.KEY`; the same text if it is there already.

    Raises UsageError for a path that leaves the repository.
    """
    problem = None if path == "." else path_problem(path)
    if problem is not None:
        raise UsageError(f"{path!a} cannot be tracked: {problem}")
    _parse(text, name)
    tracked = tomllib.loads(text).get(_TRACK, {}).get(key, [])
    if path in tracked:
        return text

    def change(document: tomlkit.TOMLDocument) -> None:
        import tomlkit

        table = _table_at(document, (_TRACK,))
        if key not in table:
            table[key] = tomlkit.array()
        table[key].append(path)

    return _edited(text, name, change, lambda data: _assign(data, (_TRACK, key), [*tracked, path]))


def remove_tracked_path(text: str, path: str, *, key: str = "paths", name: str = VERSIONED) -> str:
    """The text of `mgit.toml` without `path` in the list `track.KEY`.

    Raises UsageError, with the nearest tracked path, when it is not there.
    """
    _parse(text, name)
    tracked = tomllib.loads(text).get(_TRACK, {}).get(key, [])
    if path not in tracked:
        raise UsageError(
            f"{path} is not tracked{did_you_mean(path, tracked)}",
            hint="tracked: " + (", ".join(tracked) or "nothing yet"),
        )

    def change(document: tomlkit.TOMLDocument) -> None:
        array: Any = document[_TRACK][key]
        for position in reversed([i for i, item in enumerate(tracked) if item == path]):
            del array[position]

    return _edited(
        text, name, change, lambda data: _assign(data, (_TRACK, key), [item for item in tracked if item != path])
    )
