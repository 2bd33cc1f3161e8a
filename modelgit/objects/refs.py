"""Names of branches, tags and remotes: which ones are allowed, and the full names that a view uses.

The rules are those of `git check-ref-format`, so that a name that git takes can be used here and the other way round,
and two more: a name may not hide characters, and not begin with a dash, since it becomes an argument of commands.
"""

from __future__ import annotations

import unicodedata

from modelgit.errors import UsageError

__all__ = ["BRANCHES", "REMOTES", "TAGS", "check_ref_name", "check_view_ref", "ref_problem", "short_ref"]

BRANCHES, TAGS, REMOTES = "heads/", "tags/", "remotes/"
MAX_NAME_BYTES = 1024
MAX_COMPONENT_BYTES = 255
_FORBIDDEN = frozenset(' ~^:?*[\\"<>|')
# Control, format (zero-width, direction), surrogate, and all separators.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})


def ref_problem(name: str) -> str | None:
    """What is wrong with `name` as the name of a branch, a tag or a remote ("it has a space"), or None."""
    if not name:
        return "it is empty"
    for character in name:
        if character in _FORBIDDEN:
            return "it has a space" if character == " " else f"it has `{character}`"
        if unicodedata.category(character) in _HIDDEN_CATEGORIES:
            return f"it has the hidden or control character U+{ord(character):04X}"
    if name.startswith("-"):
        return "it begins with a dash"
    if name in ("@", "HEAD"):
        return f"`{name}` means the current commit"
    if ".." in name:
        return "it has `..`, which separates a range"
    if "@{" in name:
        return "it has `@{`, which names an older position"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    for component in name.split("/"):
        if not component:
            return "it has an empty part: a `/` at an end, or two in a row"
        if component.startswith("."):
            return "a part of it begins with a dot"
        if component.endswith("."):
            return "a part of it ends with a dot"
        if component.endswith(".lock"):
            return "a part of it ends with `.lock`"
        if len(component.encode()) > MAX_COMPONENT_BYTES:
            return f"a part of it is longer than {MAX_COMPONENT_BYTES} bytes"
    return None


def check_ref_name(name: str, *, what: str = "branch") -> None:
    """Raise UsageError unless `name` can be the name of a `what` (branch, tag, remote)."""
    problem = ref_problem(name)
    if problem is None and name.startswith("refs/"):
        # As git writes full names; here it would be a branch of that very name, beside the one that was meant.
        problem = "names are short here, as in `main`"
    if problem is not None:
        raise UsageError(
            f"invalid {what} name {_shown(name)}: {problem}", hint="letters, digits, `-`, `_`, `.` and `/`"
        )


def check_view_ref(name: str) -> None:
    """Raise UsageError unless `name` is a full name that a view may hold: `heads/...`, `tags/...`, `remotes/R/...`."""
    for prefix in (BRANCHES, TAGS, REMOTES):
        if name.startswith(prefix):
            problem = ref_problem(name[len(prefix) :])
            if problem is None and prefix == REMOTES and "/" not in name[len(prefix) :]:
                problem = "it names a remote without a branch"
            if problem is not None:
                raise UsageError(f"invalid ref name {_shown(name)}: {problem}")
            return
    raise UsageError(f"invalid ref name {_shown(name)}: it is neither a branch nor a tag")


def short_ref(name: str) -> str:
    """`heads/main` as `main`, `tags/v1` as `v1`, `remotes/origin/main` as `origin/main`."""
    for prefix in (BRANCHES, TAGS, REMOTES):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _shown(name: str) -> str:
    text = ascii(name)
    return text if len(text) <= 120 else text[:116] + "...'"
