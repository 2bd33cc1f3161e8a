"""What an ssh signature says about itself, read without checking it (PROTOCOL.sshsig of OpenSSH)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import NamedTuple

from modelgit.errors import IntegrityError

__all__ = ["SignatureParts", "fingerprint", "read_armor"]

_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_MAGIC = b"SSHSIG"
_MAX_CHARACTERS = 64 << 10


class SignatureParts(NamedTuple):
    """The public key (as ssh writes it on the wire) that a signature claims, and the namespace it was made for."""

    key: bytes
    namespace: str


def fingerprint(key: bytes) -> str:
    """A public key as `ssh-keygen -l` shows it: `SHA256:...`."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def read_armor(text: str) -> SignatureParts:
    """The parts of an armoured signature.  Raises IntegrityError for anything that is none."""
    lines = text.strip().splitlines()
    if len(text) > _MAX_CHARACTERS or len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        raise IntegrityError("the signature is not an ssh signature")
    try:
        data = base64.b64decode("".join(lines[1:-1]), validate=True)
    except (binascii.Error, ValueError):
        raise IntegrityError("the signature is not an ssh signature: its text is damaged") from None
    if not data.startswith(_MAGIC) or data[6:10] != b"\0\0\0\1":
        raise IntegrityError("the signature is of a version that mgit does not read")
    key, at = _string(data, 10)
    namespace, _ = _string(data, at)
    return SignatureParts(key, namespace.decode("utf-8", errors="replace"))


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + 4], "big")
    start, stop = at + 4, at + 4 + length
    if stop > len(data):
        raise IntegrityError("the signature ends too early")
    return data[start:stop], stop
