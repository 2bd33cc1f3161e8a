"""External objects: named by their id here, lying in a published model that nobody needs a second copy of."""

from __future__ import annotations

import re
from typing import NamedTuple

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects.canonical import Record
from modelgit.objects.ids import BlobId, TensorId
from modelgit.objects.paths import path_problem
from modelgit.objects.tensors import DIGEST_BYTES, TensorSpec, leaf_count, raw_id

__all__ = ["External", "HubSource", "check_external", "is_source", "parse_source"]

_SOURCE = re.compile(
    r"hf:(?P<name>(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95})@(?P<revision>\S{1,200})\Z"
)
_SHA = re.compile(r"[0-9a-f]{40}\Z")


class HubSource(NamedTuple):
    """A model on the Hugging Face hub: `org/name`, and the commit (40 hex digits) or, as typed, a branch or tag."""

    name: str
    revision: str

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _SHA.match(self.revision) is not None

    @property
    def folder(self) -> str:
        """The name of its directory in a Hugging Face cache."""
        return "models--" + self.name.replace("/", "--")

    def __str__(self) -> str:
        return f"hf:{self.name}@{self.revision}"


class External(Record, frozen=True, kw_only=True):
    """Where an object lies: from byte `offset` of the file `path` of `source` (`hf:org/name@COMMIT`).

    `leaves` are the digests of its leaves, one after the other: with `spec` (None for a blob) they prove the id
    without the bytes, and each leaf that is read is compared with its own.
    """

    source: str
    path: str
    leaves: bytes
    offset: int = 0
    spec: TensorSpec | None = None


def is_source(text: str) -> bool:
    """Whether `text` is meant as a source rather than a path."""
    return text.startswith("hf:")


def parse_source(text: str) -> HubSource:
    """Read `hf:org/name@REVISION`.  Raises UsageError for anything else."""
    match = _SOURCE.match(text)
    if match is None or ".." in match["name"] or "--" in match["name"]:
        raise UsageError(f"not a model on the hub: `{text[:120]}`", hint="write it as `hf:org/name@COMMIT`")
    return HubSource(match["name"], match["revision"])


def check_external(external: External, object_id: TensorId | BlobId, size_bytes: int) -> None:
    """Make sure that a record that somebody sent names a place, and that its leaves are those of the object.

    Raises IntegrityError otherwise.  Only the bytes themselves are left to be compared, when they are read.
    """
    what = f"{object_id.KIND} {object_id}"
    try:
        pinned = parse_source(external.source).is_pinned
    except UsageError:
        pinned = False
    if not pinned or path_problem(external.path) is not None or not 0 <= external.offset < 1 << 62:
        raise IntegrityError(f"{what} is said to lie in a place that cannot be: {external.source[:80]!a}")
    if len(external.leaves) != DIGEST_BYTES * leaf_count(size_bytes):
        raise IntegrityError(f"{what} has {len(external.leaves)} bytes of leaf digests for {size_bytes} bytes")
    leaves = [external.leaves[at : at + DIGEST_BYTES] for at in range(0, len(external.leaves), DIGEST_BYTES)]
    if (external.spec is None) != isinstance(object_id, BlobId):
        raise IntegrityError(f"{what} is recorded as another kind of object")
    if external.spec is not None:
        external.spec.check()
        if external.spec.size_bytes != size_bytes:
            raise IntegrityError(f"{what} has {size_bytes} bytes, its shape asks for {external.spec.size_bytes}")
    if raw_id(size_bytes, external.spec, leaves) != object_id:
        raise IntegrityError(f"{what} is recorded with leaf digests of another object")
