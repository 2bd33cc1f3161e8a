"""External objects in a Hugging Face cache: where a snapshot lies, and what to say when it is not there."""

from __future__ import annotations

from pathlib import Path

from modelgit.errors import ExternalAbsentError
from modelgit.objects import External, ObjectId, parse_source
from modelgit.store.lent_files import snapshot_path

__all__ = ["absent", "download_hint", "external_root"]


def external_root(hub: Path | None, external: External) -> Path | None:
    """The directory of the snapshot that an external object lies in; None without a cache."""
    if hub is None:
        return None
    source = parse_source(external.source)
    return snapshot_path(hub, source.folder, source.revision)


def download_hint(source: str) -> str:
    """The command that brings a model."""
    parsed = parse_source(source)
    return f"`hf download {parsed.name} --revision {parsed.revision}`"


def absent(external: External, object_id: ObjectId) -> ExternalAbsentError:
    """The error for an external object whose file is not on this machine."""
    return ExternalAbsentError(
        f"{object_id.KIND} {object_id} lies in {external.path} of {external.source}, which is not on this machine",
        hint=download_hint(external.source),
    )
