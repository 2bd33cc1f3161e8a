"""Allowed signers: which keys may sign what, as `ssh-keygen` keeps them, read more strictly.

A line counts only if it says everything that it is trusted for: principals without wildcards, and
`namespaces="mgit-eval"`.  ssh takes a key without `namespaces` for all of them; a key that was listed for the signing
of git commits must not vouch for models.  Lines of certificate authorities are passed over.  Times are UTC, so that a
key is valid at the same moment everywhere.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from modelgit.errors import IntegrityError

__all__ = ["SIGNERS_FILE", "AllowedSigner", "AllowedSigners"]

SIGNERS_FILE = "evals/allowed_signers"
_KEY_TYPE = re.compile(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+\Z")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+:/-]*\Z")
_OPTION = re.compile(r'([a-zA-Z-]+)(?:="([^"\\]*)")?(,|\s+|\Z)')
_MAX_CHARACTERS = 1 << 20


class AllowedSigner(NamedTuple):
    """One line: a key, whom it stands for, what it may sign, and when (seconds since 1970)."""

    principals: tuple[str, ...]
    key_type: str
    key: bytes
    namespaces: tuple[str, ...]
    valid_after_s: int | None = None
    valid_before_s: int | None = None

    def problem(self, namespace: str, at_s: float) -> str | None:
        """Why a signature of this key in `namespace`, made at a moment, does not count; None when it does."""
        who = self.principals[0]
        if not self.namespaces:
            return f'the line of {who} in {SIGNERS_FILE} does not say namespaces="{namespace}"'
        if namespace not in self.namespaces:
            return f"the key of {who} may sign {', '.join(self.namespaces)}, not {namespace}"
        if self.valid_after_s is not None and at_s < self.valid_after_s:
            return f"the key of {who} is valid from {_day(self.valid_after_s)} on, and it was signed before"
        if self.valid_before_s is not None and at_s >= self.valid_before_s:
            return f"the key of {who} expired on {_day(self.valid_before_s)}"
        return None


class AllowedSigners:
    """The lines of a file, in order; `unread` are the numbers of lines that allow nobody because they do not parse."""

    def __init__(self, lines: Iterable[AllowedSigner], *, unread: Iterable[int] = ()) -> None:
        self.lines = tuple(lines)
        self.unread = tuple(unread)

    @classmethod
    def parse(cls, text: str) -> AllowedSigners:
        """Read a file.  Lines that mgit cannot read allow nobody.  Raises IntegrityError for an absurdly long one."""
        if len(text) > _MAX_CHARACTERS:
            raise IntegrityError(f"{SIGNERS_FILE} is longer than {_MAX_CHARACTERS} characters")
        found, unread = [], []
        # At line feeds only, as ssh does: to others U+2028 and the like are a part of the comment that they stand in.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                signer = _read_line(line.strip())
                if signer is None:
                    unread.append(number)
                else:
                    found.append(signer)
        return cls(found, unread=unread)

    def of_key(self, key: bytes) -> list[AllowedSigner]:
        """The lines that list a public key."""
        return [line for line in self.lines if line.key == key]


def _read_line(line: str) -> AllowedSigner | None:
    names, _, rest = line.partition(" ")
    principals = tuple(names.split(","))
    options: dict[str, str] = {}
    rest = rest.strip()
    while rest and not _KEY_TYPE.match(rest.split(None, 1)[0]):
        match = _OPTION.match(rest)
        name = match[1].lower() if match is not None else ""
        if match is None or name in options or name not in ("namespaces", "valid-after", "valid-before"):
            return None  # cert-authority, too: mgit believes keys, not those who vouch for keys
        options[name] = match[2] or ""
        rest = rest[match.end() :]
    words = rest.split()
    if len(words) < 2 or not all(_PRINCIPAL.match(name) for name in principals):
        return None
    try:
        key = base64.b64decode(words[1], validate=True)
        after = _moment(options["valid-after"]) if "valid-after" in options else None
        before = _moment(options["valid-before"]) if "valid-before" in options else None
    except (binascii.Error, ValueError):
        return None
    namespaces = tuple(name for name in options.get("namespaces", "").split(",") if name)
    return AllowedSigner(principals, words[0], key, namespaces, after, before)


def _moment(text: str) -> int:
    digits = text.removesuffix("Z")
    form = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    if form is None or not digits.isdigit():
        raise ValueError(f"not a time of allowed signers: {text[:20]!a}")
    return int(datetime.strptime(digits, form).replace(tzinfo=UTC).timestamp())


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d")
