"""Three-way merging of JSON objects by key: two sides that changed different keys never conflict.

Objects are merged member by member, at any depth; lists and scalars are taken whole.  The result is written in
the style of ours: what theirs did not change stays as it is written there, to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from modelgit.errors import UsageError
from modelgit.merging.json_text import (
    JsonMember,
    JsonObject,
    JsonValue,
    Style,
    adapt,
    key_path,
    parse_object,
    parse_value,
)
from modelgit.objects.merges import Conflict, Resolution

__all__ = ["merge_json"]

Value = JsonValue | JsonObject
_SHOWN = 48
_EMPTY = JsonObject(text="{}", plain={}, members={}, tail="")


@dataclass(kw_only=True)
class _Merge:
    path: str
    ours_style: Style
    theirs_style: Style
    base_style: Style
    resolutions: Mapping[str, Resolution]
    conflicts: list[Conflict] = field(default_factory=list)


def merge_json(
    path: str, base: str | None, ours: str, theirs: str, *, resolutions: Mapping[str, Resolution] | None = None
) -> tuple[str, tuple[Conflict, ...]] | None:
    """Merge three documents; `resolutions` by dotted key decide conflicts.

    Returns the text, with ours in the place of every open conflict, and these conflicts; None where one of the
    documents is not a JSON object, so that it has to be merged as text.  Raises UsageError for a resolution whose
    value is not JSON.
    """
    mine, other = parse_object(ours), parse_object(theirs)
    before = parse_object(base) if base is not None else ("", _EMPTY, "")
    if mine is None or other is None or before is None:
        return None
    merge = _Merge(
        path=path,
        ours_style=Style.of(ours),
        theirs_style=Style.of(theirs),
        base_style=Style.of(base or ours),
        resolutions=resolutions or {},
    )
    try:
        merged = _object(merge, before[1], mine[1], other[1], ())
    except RecursionError:
        return None  # lists nested without end: it was read, and cannot be compared
    return mine[0] + merged + mine[2], tuple(merge.conflicts)


def _object(merge: _Merge, base: JsonObject, ours: JsonObject, theirs: JsonObject, keys: tuple[str, ...]) -> str:
    """The text of the merged object."""
    chosen: dict[str, str | None] = {}
    for name in dict.fromkeys([*ours.members, *theirs.members, *base.members]):
        values = (_at(base, name), _at(ours, name), _at(theirs, name))
        chosen[name] = _value(merge, *values, (*keys, name))
    order = _order(ours, theirs, chosen)
    if order == list(ours.members) and all(chosen[name] == ours.members[name].value.text for name in order):
        return ours.text
    return _written(merge, ours, theirs, order, chosen, len(keys))


def _at(container: JsonObject, name: str) -> Value | None:
    member = container.members.get(name)
    return None if member is None else member.value


def _value(
    merge: _Merge, base: Value | None, ours: Value | None, theirs: Value | None, keys: tuple[str, ...]
) -> str | None:
    """The text of one merged value; None when the key goes."""
    take_theirs = partial(_taken, theirs, merge.theirs_style, merge.ours_style)
    before, mine, other = (None if v is None else (v.plain,) for v in (base, ours, theirs))
    if other in (mine, before):
        return None if ours is None else ours.text
    if isinstance(ours, JsonObject) and isinstance(theirs, JsonObject):
        return _object(merge, base if isinstance(base, JsonObject) else _EMPTY, ours, theirs, keys)
    if mine == before:
        return take_theirs()
    item = key_path(keys)
    resolution = merge.resolutions.get(item)
    if resolution is None:
        merge.conflicts.append(
            Conflict(path=merge.path, item=item, kind="key", ours=_shown(ours), theirs=_shown(theirs))
        )
        return None if ours is None else ours.text
    if resolution.value is not None:
        if parse_value(resolution.value) is None:
            raise UsageError(
                f"{resolution.value[:60]!r} is not a JSON value for {merge.path}:{item}",
                hint="numbers and true, false, null as they are, text in double quotes: `--with '\"text\"'`",
            )
        return resolution.value
    if resolution.take == "theirs":
        return take_theirs()
    if resolution.take == "base":
        return _taken(base, merge.base_style, merge.ours_style)
    return None if ours is None else ours.text


def _taken(value: Value | None, source: Style, target: Style) -> str | None:
    return None if value is None else adapt(value.text, source, target)


def _order(ours: JsonObject, theirs: JsonObject, chosen: Mapping[str, str | None]) -> list[str]:
    """Ours' order; a key that only theirs (or base) has goes behind the key that precedes it there."""
    follower: dict[str | None, str] = {}
    previous: str | None = None
    for name in theirs.members:
        if name not in ours.members:
            follower[previous] = name
        previous = name
    order: list[str] = []
    for head in (None, *ours.members):
        order += [] if head is None else [head]
        after = follower.get(head)
        while after is not None:
            order.append(after)
            after = follower.get(after)
    order += [name for name in chosen if name not in ours.members and name not in theirs.members]
    return [name for name in order if chosen[name] is not None]


def _written(
    merge: _Merge,
    ours: JsonObject,
    theirs: JsonObject,
    order: list[str],
    chosen: Mapping[str, str | None],
    depth: int,
) -> str:
    if not order:
        return "{}"
    style = merge.ours_style
    mine = list(ours.members.values())
    line = None if style.step is None else "\n" + style.step * (depth + 1)
    first_lead = mine[0].lead if mine else line or ""
    later_lead = mine[1].lead if len(mine) > 1 else (first_lead if "\n" in first_lead else line or style.comma[1:])
    tail = ours.tail if mine else ("" if style.step is None else "\n" + style.step * depth)
    written = []
    for position, name in enumerate(order):
        member = ours.members.get(name)
        if position == 0:
            lead = first_lead
        elif member is not None and member is not mine[0]:
            lead = member.lead
        else:
            lead = later_lead
        written.append(f"{lead}{_label(member, theirs.members.get(name), name, style)}{chosen[name]}")
    return "{" + ",".join(written) + tail + "}"


def _label(ours: JsonMember | None, theirs: JsonMember | None, name: str, style: Style) -> str:
    """The key and its colon as ours writes them; a new key as theirs spells it, with ours' colon."""
    if ours is not None:
        return ours.label
    if theirs is not None:
        return adapt(theirs.label[: theirs.label.rindex(":")].rstrip(), style, style) + style.colon
    return json.dumps(name, ensure_ascii=style.ascii_only) + style.colon


def _shown(value: Value | None) -> str:
    if value is None:
        return "deleted"
    text = " ".join(value.text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
