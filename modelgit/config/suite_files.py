"""Suite files, from text to settings: what is wrong in one is said with its place and the nearest known key."""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import msgspec

from modelgit.config.suites import SuiteFile
from modelgit.errors import UsageError, did_you_mean

__all__ = ["SUITES_DIRECTORY", "duration_s", "parse_suite", "suite_name", "suite_path"]

SUITES_DIRECTORY = "evals"
_MAX_CHARACTERS = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|min|h|d|w)\s*\Z")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_MAX_S = 100 * 365 * 86_400.0
_WHERE = re.compile(r" - at `\$\.?(.*)`\Z")


def suite_name(path: str) -> str | None:
    """The name of the suite that the file at `path` (relative to the root) is, None for other files.

    Suites lie in `evals/` itself; what lies deeper is theirs to use.
    """
    directory, _, name = path.rpartition("/")
    if directory != SUITES_DIRECTORY or not name.endswith(".toml"):
        return None
    stem = name.removesuffix(".toml")
    return stem if _NAME.match(stem) else None


def suite_path(name: str) -> str:
    """Where the file of the suite `name` lies, relative to the repository root."""
    return f"{SUITES_DIRECTORY}/{name}.toml"


def duration_s(text: str, *, where: str) -> float:
    """Seconds of "200ms", "90s", "5m", "1.5h", "30d" or "4w", a century at most.

    Raises UsageError, which begins with `where`, for anything else.
    """
    match = _DURATION.match(text)
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not 0 < seconds <= _MAX_S:
        hint = 'write "90s", "5m", "1h" or "30d"'
        raise UsageError(f"{where} is {text[:40]!r}, which is no length of time", hint=hint)
    return seconds


def parse_suite(text: str, *, name: str) -> SuiteFile:
    """The suite `name` from the text of its file.

    Raises UsageError that names file and place for what is not TOML, for unknown keys (with the nearest known one) and
    for values of a wrong type or size.
    """
    where = suite_path(name)
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"{where} is too large for a suite ({len(text):,} characters)")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where} is not TOML: {error}", hint=f"correct {where}") from None
    _check_keys(values, SuiteFile, where)
    try:
        return msgspec.convert(values, SuiteFile)
    except msgspec.ValidationError as error:
        message = str(error)
        place = _WHERE.search(message)
        found = message[: place.start()] if place else message
        at = f" at `{_test_of(values, place[1])}`" if place and place[1] else ""
        raise UsageError(f"{where}{at}: {found[:1].lower()}{found[1:]}", hint=f"correct {where}") from None


def _test_of(values: Mapping[str, Any], place: str) -> str:
    """`test[2].max` with the name of the test in place of its number."""
    match = re.match(r"test\[(\d+)\]\.?(.*)", place)
    if match is None:
        return place
    name = values["test"][int(match[1])].get("name")
    shown = name if isinstance(name, str) else f"test {int(match[1]) + 1}"
    return f"{shown}: {match[2]}" if match[2] else shown


def _check_keys(value: object, kind: Any, where: str) -> None:
    """Raise for the first key that `kind` does not have, before msgspec says less about it."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        found = _chosen(value, [part for part in get_args(kind) if part is not type(None)], where)
        if found is not None:
            _check_keys(value, found, where)
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if isinstance(value, dict):
            _check_table(value, kind, where)
    elif origin is dict and isinstance(value, dict):
        names = get_args(get_args(kind)[0]) if get_origin(get_args(kind)[0]) is Literal else None
        for name, item in value.items():
            if names is not None and name not in names:
                _unknown("key", name, dict.fromkeys(names), where)
            _check_keys(item, get_args(kind)[1], f"{where}, {name}")
    elif origin is tuple and isinstance(value, list):
        for number, item in enumerate(value, start=1):
            name = item.get("name") if isinstance(item, dict) else None
            _check_keys(item, get_args(kind)[0], f"{where}, {f'`{name}`' if name else f'test {number}'}")


def _check_table(value: dict[str, Any], kind: type[msgspec.Struct], where: str) -> None:
    fields = {field.encode_name: field.name for field in msgspec.structs.fields(kind)}
    types_of = get_type_hints(kind)
    tag = kind.__struct_config__.tag_field
    for key, item in value.items():
        if key in fields:
            _check_keys(item, types_of[fields[key]], f"{where}, {key}" if isinstance(item, dict) else where)
        elif key != tag:
            _unknown("key", key, fields, where)


def _chosen(value: object, kinds: list[Any], where: str) -> Any:
    """Which of several tables `value` is, by its tag."""
    tagged = {kind.__struct_config__.tag: kind for kind in kinds if _is_tagged(kind)}
    if not tagged or not isinstance(value, dict):
        return kinds[0] if len(kinds) == 1 else None
    field = next(iter(tagged.values())).__struct_config__.tag_field
    if field not in value:
        raise UsageError(f"{where} has no `{field}`", hint=f"known: {', '.join(sorted(tagged))}")
    if value[field] not in tagged:
        _unknown(str(field), str(value[field]), tagged, where)
    return tagged[value[field]]


def _is_tagged(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag is not None


def _unknown(what: str, name: str, known: Mapping[str, Any], where: str) -> NoReturn:
    shown = name if name.isprintable() and len(name) <= 100 else ascii(name[:100])
    raise UsageError(
        f"{where}: unknown {what} `{shown}`{did_you_mean(name, known)}",
        hint=f"known: {', '.join(sorted(known))}",
    )
