"""Typed object ids: BLAKE3-256 over a domain header and canonical content, written `b3:` and 64 hex digits."""

from __future__ import annotations

import re
from typing import ClassVar, TypeVar

from blake3 import blake3

from modelgit.errors import IntegrityError, UsageError

__all__ = [
    "BlobId",
    "CommitId",
    "ContentId",
    "EvalRecordId",
    "FisherId",
    "ManifestId",
    "MaskId",
    "NoteId",
    "ObjectId",
    "OperationId",
    "PatchId",
    "RetentionId",
    "StatisticsId",
    "TensorId",
    "domain",
    "id_class",
]

_TEXT = re.compile(r"b3:[0-9a-f]{64}\Z")
Self = TypeVar("Self", bound="ObjectId")


class ObjectId:
    """A 32-byte digest of one kind of object.  Ids of different kinds never compare equal."""

    __slots__ = ("digest",)
    KIND: ClassVar[str] = ""

    def __init__(self, digest: bytes) -> None:
        if type(digest) is not bytes or len(digest) != 32:
            raise IntegrityError(f"not an object id: {len(digest)} bytes where 32 are needed")
        self.digest = digest

    @classmethod
    def parse(cls: type[Self], text: str) -> Self:
        """Read `b3:<64 lower-case hex digits>`.  Raises UsageError for anything else."""
        if not _TEXT.match(text):
            raise UsageError(f"not an object id: {text[:80]!r}")
        return cls(bytes.fromhex(text[3:]))

    @classmethod
    def of(cls: type[Self], content: bytes) -> Self:
        """The id of `content`, hashed under this kind's domain."""
        return cls(blake3(domain(cls.KIND) + content).digest())

    @property
    def hex(self) -> str:
        """The digest as 64 hex digits."""
        return self.digest.hex()

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self.digest[:6].hex()

    def __str__(self) -> str:
        return "b3:" + self.digest.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __lt__(self, other: ObjectId) -> bool:
        return (self.KIND, self.digest) < (other.KIND, other.digest)


def domain(kind: str) -> bytes:
    """The bytes that go before the content of every object of `kind`, so that kinds cannot be confused."""
    return b"mgit:" + kind.encode("ascii") + b":v1\0"


class TensorId(ObjectId):
    """A tensor: dtype, shape and raw little-endian bytes."""

    __slots__ = ()
    KIND = "tensor"


class BlobId(ObjectId):
    """Bytes without a tensor meaning: headers, tokenizers, text."""

    __slots__ = ()
    KIND = "blob"


class ContentId(ObjectId):
    """The segments and tensor table of one file."""

    __slots__ = ()
    KIND = "content"


class ManifestId(ObjectId):
    """All files and models of one commit."""

    __slots__ = ()
    KIND = "manifest"


class PatchId(ObjectId):
    """What a commit changed."""

    __slots__ = ()
    KIND = "patch"


class CommitId(ObjectId):
    """A commit."""

    __slots__ = ()
    KIND = "commit"


class MaskId(ObjectId):
    """A set of positions in named tensors."""

    __slots__ = ()
    KIND = "mask"


class FisherId(ObjectId):
    """A Fisher estimate."""

    __slots__ = ()
    KIND = "fisher"


class EvalRecordId(ObjectId):
    """The verdict of a suite on a candidate."""

    __slots__ = ()
    KIND = "eval"


class NoteId(ObjectId):
    """A statement about weights or suites, with its signature."""

    __slots__ = ()
    KIND = "note"


class OperationId(ObjectId):
    """One published change of the repository's view."""

    __slots__ = ()
    KIND = "operation"


class StatisticsId(ObjectId):
    """What a repository keeps beside its commits: Fisher estimates and notes."""

    __slots__ = ()
    KIND = "statistics"


class RetentionId(ObjectId):
    """Which commits were pruned, and when."""

    __slots__ = ()
    KIND = "retention"


_CLASSES: dict[str, type[ObjectId]] = {
    cls.KIND: cls
    for cls in (
        TensorId,
        BlobId,
        ContentId,
        ManifestId,
        PatchId,
        CommitId,
        MaskId,
        FisherId,
        EvalRecordId,
        NoteId,
        OperationId,
        RetentionId,
        StatisticsId,
    )
}


def id_class(kind: str) -> type[ObjectId]:
    """The id class of `kind`.  Raises IntegrityError for a kind that this version does not know."""
    try:
        return _CLASSES[kind]
    except KeyError:
        raise IntegrityError(f"unknown object kind {kind[:40]!r}") from None
