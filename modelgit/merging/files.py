"""Three-way merging of files that hold no weights: JSON by key, text by lines, anything else only by choice."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from modelgit.errors import UsageError
from modelgit.merging.json_merge import merge_json
from modelgit.merging.text import merge_lines
from modelgit.objects.merges import Conflict, Resolution

__all__ = ["FileMerge", "merge_file"]

_SHOWN = 48


@dataclass(frozen=True, kw_only=True)
class FileMerge:
    """The outcome for one file.

    `content` is None when the file goes.  While there are `conflicts`, `content` is not a result but what a person
    may start from: ours in JSON and binary files, conflict markers in text.
    """

    content: bytes | None
    conflicts: tuple[Conflict, ...] = ()


def merge_file(
    path: str,
    base: bytes | None,
    ours: bytes | None,
    theirs: bytes | None,
    *,
    resolutions: Mapping[str, Resolution] | None = None,
) -> FileMerge:
    """Merge one file; None stands for a file that is not there.

    `resolutions` maps a dotted key of a JSON file, or "" for the whole file, to what somebody decided.

    Raises UsageError for a resolution that does not fit the file.
    """
    resolutions = resolutions or {}
    if theirs in (ours, base):
        return FileMerge(content=ours)
    if ours == base:
        return FileMerge(content=theirs)
    whole = resolutions.get("")
    if whole is not None:
        return FileMerge(content=_whole(path, whole, base, ours, theirs))
    if ours is None or theirs is None:
        conflict = Conflict(path=path, kind="deleted-changed", ours=_presence(ours), theirs=_presence(theirs))
        return FileMerge(content=theirs if ours is None else ours, conflicts=(conflict,))
    texts = [None if side is None else _text(side) for side in (base, ours, theirs)]
    if (base is not None and texts[0] is None) or texts[1] is None or texts[2] is None:
        sizes = {"ours": f"{len(ours)} bytes", "theirs": f"{len(theirs)} bytes"}
        return FileMerge(content=ours, conflicts=(Conflict(path=path, kind="binary", **sizes),))
    if PurePosixPath(path).suffix.lower() == ".json":
        merged = merge_json(path, texts[0], texts[1], texts[2], resolutions=resolutions)
        if merged is not None:
            return FileMerge(content=merged[0].encode("utf-8", "backslashreplace"), conflicts=merged[1])
    return _merge_text(path, base, ours, theirs)


def _whole(
    path: str, resolution: Resolution, base: bytes | None, ours: bytes | None, theirs: bytes | None
) -> bytes | None:
    if resolution.take is None:
        raise UsageError(
            f"`--with` decides one key of a JSON file, not the whole of {path}",
            hint=f"`mgit resolve {path} --take ours` (or theirs, or base)",
        )
    return {"ours": ours, "theirs": theirs, "base": base}[resolution.take]


def _merge_text(path: str, base: bytes | None, ours: bytes, theirs: bytes) -> FileMerge:
    merged = merge_lines(base or b"", ours, theirs)
    if base is None:
        conflict = Conflict(path=path, kind="added-added", ours=_line_count(ours), theirs=_line_count(theirs))
        return FileMerge(content=merged.content, conflicts=(conflict,))
    if merged.conflicts:
        mine, other = merged.conflicts[0]
        more = f" (+{len(merged.conflicts) - 1} more)" if len(merged.conflicts) > 1 else ""
        conflict = Conflict(path=path, kind="text", ours=_first_line(mine) + more, theirs=_first_line(other) + more)
        return FileMerge(content=merged.content, conflicts=(conflict,))
    if PurePosixPath(path).suffix.lower() == ".toml" and _is_toml(ours, theirs) and not _is_toml(merged.content):
        # Lines that merge cleanly can still define a key twice.
        conflict = Conflict(path=path, kind="text", ours="merged lines are not", theirs="valid TOML")
        return FileMerge(content=merged.content, conflicts=(conflict,))
    return FileMerge(content=merged.content)


def _text(data: bytes) -> str | None:
    """The text of a file, or None for a binary one: a NUL byte, or not UTF-8."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_toml(*documents: bytes) -> bool:
    try:
        for document in documents:
            tomllib.loads(document.decode())
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return True


def _presence(data: bytes | None) -> str:
    return "deleted" if data is None else "changed"


def _line_count(data: bytes) -> str:
    count = len(data.splitlines())
    return "1 line" if count == 1 else f"{count} lines"


def _first_line(data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip("\n").split("\n", 1)[0].strip()
    if not text:
        return "deleted lines" if not data else "blank lines"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
