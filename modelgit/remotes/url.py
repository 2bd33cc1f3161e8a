"""Reading the URL of a remote: a text that may come from a stranger and ends up in file names and in commands."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from modelgit.errors import UsageError

__all__ = ["RemoteUrl", "parse_url"]

MAX_URL_CHARACTERS = 4096
# What git and ssh take for a place on another host: `user@host:path`.
_SCP_LIKE = re.compile(r"[^/\s]+@[^/\s:]+:")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # one letter is a drive
_HINT = "a directory (`../bot.mgit`) or a URL (`file:///srv/bot.mgit`)"


class RemoteUrl(NamedTuple):
    """A URL in parts: `host` is what stands between `//` and the next slash, `path` the rest, decoded."""

    text: str
    scheme: str
    host: str
    path: str

    def local_path(self, relative_to: Path, home: Path) -> Path:
        """The directory that a `file` URL names."""
        if self.path == "~" or self.path.startswith("~/"):
            return home / self.path[2:]
        return Path(relative_to) / self.path


def parse_url(text: str) -> RemoteUrl:
    """Read `scheme://host/path`, `file:path` or a plain path.

    Raises UsageError for one that is empty, hides characters, or has a host or path that a program would take for an
    option.
    """
    _refuse_hidden(text)
    if not text or len(text) > MAX_URL_CHARACTERS:
        raise UsageError("an empty or endless remote URL", hint=_HINT)
    if text.startswith("-"):
        raise UsageError(f"a remote cannot begin with a dash: `{text[:80]}`", hint=_HINT)
    if _SCP_LIKE.match(text):
        host, path = text.split(":", 1)
        return RemoteUrl(text, "ssh", host, path)
    match = _SCHEME.match(text)
    if match is None:
        return RemoteUrl(text, "file", "", text)
    scheme = match.group(1).lower()
    rest = text[match.end() :]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    path = unquote(path)
    _refuse_hidden(path)
    if host.startswith("-") or path.startswith("-") or "@-" in host:
        raise UsageError(f"strange host or path in `{text[:80]}`: it begins with a dash", hint=_HINT)
    if scheme == "file":
        if host not in ("", "localhost"):
            raise UsageError(f"`{text[:80]}` names the host `{host[:40]}`; a file URL has three slashes", hint=_HINT)
        if not path:
            raise UsageError(f"`{text[:80]}` has no path", hint=_HINT)
    return RemoteUrl(text, scheme, host, path)


def _refuse_hidden(text: str) -> None:
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise UsageError(
                f"a remote URL has the hidden or control character U+{ord(character):04X}: {text[:80]!a}",
                hint=_HINT,
            )
