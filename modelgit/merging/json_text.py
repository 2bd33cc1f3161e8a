"""JSON objects with their text: parsed values for comparing, source spans for writing back what nobody changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

__all__ = [
    "JsonObject",
    "JsonValue",
    "Style",
    "adapt",
    "key_path",
    "parse_object",
    "parse_value",
    "value_span",
    "written",
]

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN_KEY = re.compile(r'[^.\s":\\]+\Z')
_MAX_DEPTH = 200

# Numbers keep their type and every digit, so that 1, 1.0 and true differ and 1e-5 equals 1e-05.
_DECODER = json.JSONDecoder(
    parse_int=lambda text: ("integer", Decimal(text)),
    parse_float=lambda text: ("real", Decimal(text)),
    parse_constant=lambda text: ("constant", text),
)
_KEYS = json.JSONDecoder()


class JsonValue(NamedTuple):
    """A value: its text as written, and `plain`, which is equal for equal values however they are written."""

    text: str
    plain: Any


class JsonMember(NamedTuple):
    """A member as written: the white space before its key, the key with its colon, and the value."""

    lead: str
    label: str
    value: JsonValue | JsonObject


class JsonObject(NamedTuple):
    """An object: its members by key, in order, and the white space before the closing brace."""

    text: str
    plain: Any
    members: Mapping[str, JsonMember]
    tail: str


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a document is written: one step of indentation (None: on one line), separators, ASCII escapes or not."""

    step: str | None
    comma: str
    colon: str
    ascii_only: bool

    @classmethod
    def of(cls, text: str) -> Style:
        """The style of a document, from its first lines."""
        first = re.match(r"[ \t\r\n]*\{[ \t]*\r?\n([ \t]*)\S", text)
        colon = re.search(r'"(:[ \t]*)', text)
        comma = re.search(r',([ \t]*)["\d\[{tfn-]', text)
        return cls(
            step=first.group(1) if first else None,
            comma="," + (comma.group(1) if comma else " "),
            colon=colon.group(1) if colon else ": ",
            ascii_only=text.isascii() and "\\u" in text,
        )


def parse_object(text: str) -> tuple[str, JsonObject, str] | None:
    """A document that is one object, with the text before and after it.

    None for anything else: not JSON, another kind of value, a key given twice, nesting without end.
    """
    start = _SPACE.match(text, 0)
    begin = start.end() if start else 0
    if text[begin : begin + 1] != "{":
        return None
    try:
        found, end = _object(text, begin, 0)
    except (ValueError, InvalidOperation, RecursionError):
        return None
    if _skip(text, end) != len(text):
        return None
    return text[:begin], found, text[end:]


def parse_value(text: str) -> JsonValue | None:
    """One JSON value, or None where `text` is not one."""
    try:
        plain, end = _DECODER.raw_decode(text)
    except (ValueError, InvalidOperation, RecursionError):
        return None
    return JsonValue(text=text, plain=plain) if end == len(text) else None


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _object(text: str, begin: int, depth: int) -> tuple[JsonObject, int]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    members: dict[str, JsonMember] = {}
    at = begin + 1
    key_at = _skip(text, at)
    if text[key_at : key_at + 1] == "}":
        return JsonObject(text=text[begin : key_at + 1], plain={}, members={}, tail=text[at:key_at]), key_at + 1
    while True:
        if text[key_at : key_at + 1] != '"':
            raise ValueError("a key must be a string")
        key, key_end = _KEYS.raw_decode(text, key_at)
        colon = _skip(text, key_end)
        if text[colon : colon + 1] != ":" or key in members:
            raise ValueError("no colon, or a key given twice")
        value_at = _skip(text, colon + 1)
        value: JsonValue | JsonObject
        if text[value_at : value_at + 1] == "{":
            value, end = _object(text, value_at, depth + 1)
        else:
            plain, end = _DECODER.raw_decode(text, value_at)
            value = JsonValue(text=text[value_at:end], plain=plain)
        members[key] = JsonMember(lead=text[at:key_at], label=text[key_at:value_at], value=value)
        after = _skip(text, end)
        if text[after : after + 1] == "}":
            plain_members = {name: member.value.plain for name, member in members.items()}
            return (
                JsonObject(text=text[begin : after + 1], plain=plain_members, members=members, tail=text[end:after]),
                after + 1,
            )
        if text[after : after + 1] != ",":
            raise ValueError("neither a comma nor the end of the object")
        at = after + 1
        key_at = _skip(text, at)


def value_span(text: str, keys: tuple[str, ...]) -> tuple[int, int] | None:
    """Where the value at `keys` of a document begins and ends; None where there is none.

    Only the members of the objects on the way are looked at, each as a whole: a vocabulary takes milliseconds.
    """
    begin = _skip(text, 0)
    end = len(text)
    try:
        for key in keys:
            if text[begin : begin + 1] != "{":
                return None
            at, found = _skip(text, begin + 1), False
            while not found:
                name, at = _KEYS.raw_decode(text, at)
                begin = _skip(text, _skip(text, at) + 1)
                end = _KEYS.raw_decode(text, begin)[1]
                found, at = name == key, _skip(text, _skip(text, end) + 1)
    except (ValueError, RecursionError):
        return None
    return begin, end


def written(value: object, style: Style, depth: int) -> str:
    """A value as a document of `style` has it `depth` objects down."""
    if style.step is None:
        return json.dumps(value, ensure_ascii=style.ascii_only, separators=(style.comma, style.colon))
    text = json.dumps(value, ensure_ascii=style.ascii_only, indent=style.step, separators=(",", style.colon))
    return text.replace("\n", "\n" + style.step * depth)


def adapt(text: str, source: Style, target: Style) -> str:
    """A value's text from a document of style `source`, indented and escaped as in one of style `target`."""
    if target.ascii_only and not text.isascii():
        # Characters outside ASCII can only be in strings, so each may be escaped where it stands.
        text = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    if "\n" not in text or source.step == target.step:
        return text
    if target.step is None:
        lines = [line.strip() for line in text.split("\n")]
        joined = lines[0]
        for line in lines[1:]:
            joined += (target.comma[1:] if joined.endswith(",") else "") + line
        return joined
    lines = []
    for line in text.split("\n"):
        depth = 0
        while source.step and line.startswith(source.step):
            line, depth = line[len(source.step) :], depth + 1
        lines.append(target.step * depth + line)
    return "\n".join(lines)


def key_path(keys: tuple[str, ...]) -> str:
    """Keys from the top down, joined by dots; a key with dots, spaces or quotes is written as a JSON string."""
    path = ".".join(key if _PLAIN_KEY.match(key) else json.dumps(key, ensure_ascii=False) for key in keys)
    return path.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is no text
