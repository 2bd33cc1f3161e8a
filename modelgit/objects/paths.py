"""Which paths a tree may hold: the check that stands between a stranger's commit and the user's disk.

A path of a commit is text that somebody else chose.  It is refused when any file system that mgit runs on would take
it for something else: a parent directory, the repository's own directory under another spelling, a device, another
file's name in other case or another Unicode form.  The rules are those that git learnt from CVE-2014-9390,
CVE-2019-1352 to -1354 and CVE-2021-21300; they hold on every system, so that a commit that can be checked out
anywhere can be checked out everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from modelgit.errors import IntegrityError

__all__ = ["check_tree", "check_tree_path", "find_twins", "is_within", "join_path", "path_problem"]

MAX_PATH_BYTES = 4096
MAX_COMPONENT_BYTES = 255
_OURS = frozenset({".mgit", ".git"})
# What NTFS calls a directory in its DOS name space: the first letters or a hash, a tilde and a digit.
_SHORT_NAME = re.compile(r"(?:mgit|git|mg[0-9a-f]{4}|gi[0-9a-f]{4})~[0-9]+")
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
# Control, format (zero-width, direction), surrogate, line and paragraph separators.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _fold(name: str) -> str:
    """What `name` becomes on file systems that ignore case and Unicode form."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _skeleton(name: str) -> str:
    """`name` without case, accents and compatibility forms: more than any file system ignores."""
    if name.isascii():
        return name.lower()
    decomposed = unicodedata.normalize("NFKD", name).casefold().replace("\u0131", "i")
    return "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cf"))


def _component_problem(name: str) -> str | None:
    if name in ("", ".", ".."):
        return {"": "an empty component", ".": "a `.` component", "..": "a `..` component"}[name]
    if not name.isascii() or not name.isprintable():
        hidden = next((c for c in name if unicodedata.category(c) in _HIDDEN_CATEGORIES), None)
        if hidden is not None:
            return f"the hidden or control character U+{ord(hidden):04X}"
    if "\\" in name:
        return "a backslash"
    if ":" in name:
        return "a drive letter" if _DRIVE.match(name) else "a colon, which names a stream on Windows"
    skeleton = _skeleton(name)
    if skeleton.rstrip(". ") in _OURS:
        return "a name of the repository's own directory"
    if _SHORT_NAME.fullmatch(skeleton.rstrip(". ")):
        return "a short name of the repository's own directory"
    if name[-1] in ". ":
        return "a trailing dot or space"
    if name.split(".", 1)[0].rstrip(" ").upper() in _DEVICES:
        return "the name of a Windows device"
    if len(name.encode()) > MAX_COMPONENT_BYTES:
        return f"a name longer than {MAX_COMPONENT_BYTES} bytes"
    return None


def path_problem(path: str) -> str | None:
    """What is wrong with `path` as the path of a file in a tree ("a `..` component"), or None if nothing is.

    A good path is relative, with forward slashes, and means the same file on Linux, macOS and Windows.
    """
    if not path:
        return "an empty path"
    if path.startswith("/"):
        return "an absolute path"
    for component in path.split("/"):
        problem = _component_problem(component)
        if problem is not None:
            return problem
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"more than {MAX_PATH_BYTES} bytes"
    return None


def is_within(path: str, place: str) -> bool:
    """Whether `path` is `place` or lies below it; `.`, the root, holds everything."""
    return place in (".", path) or path.startswith(f"{place}/")


def join_path(place: str, name: str) -> str:
    """The path of `name` in the directory `place`, which is `.` for the root."""
    return name if place == "." else f"{place}/{name}"


def find_twins(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two entries of a tree that cannot both exist on every file system, or None.

    Found are a path given twice, paths (or their directories) that differ only in case or Unicode form, and a path
    that is a file in one place and a directory in another.
    """
    spelt: dict[str, str] = {}  # folded path -> the spelling seen first
    files: set[str] = set()
    directories: set[str] = set()
    for path in paths:
        if path in files or path in directories:
            return path, path
        files.add(path)
        prefix = path
        while prefix not in directories:
            first = spelt.setdefault(_fold(prefix), prefix)
            if first != prefix:
                return first, prefix
            if prefix is not path:
                if prefix in files:
                    return prefix, path
                directories.add(prefix)
            prefix, slash, _ = prefix.rpartition("/")
            if not slash:
                break
    return None


def _shown(path: str) -> str:
    text = ascii(path)
    return text if len(text) <= 160 else text[:156] + "...'"


def check_tree_path(path: str) -> None:
    """Raise IntegrityError unless `path` may be written into a work tree."""
    problem = path_problem(path)
    if problem is not None:
        raise IntegrityError(f"refuses path {_shown(path)} in commit: {problem}")


def check_tree(paths: Iterable[str]) -> None:
    """Raise IntegrityError unless all `paths` may be written into one work tree together."""
    paths = list(paths)
    for path in paths:
        check_tree_path(path)
    twins = find_twins(paths)
    if twins is not None:
        first, second = twins
        reason = (
            "it is there twice" if first == second else f"it cannot lie beside {_shown(first)} on every file system"
        )
        raise IntegrityError(f"refuses path {_shown(second)} in commit: {reason}")
