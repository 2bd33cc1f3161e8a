"""Published models: which commit a name means, and downloading what is not on this machine.

`huggingface_hub` is used where it is installed, with the user's own token and HF_ENDPOINT; nothing here contacts
anybody unless a command was asked to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelgit.environment import Environment
from modelgit.errors import ExternalAbsentError, MissingExtraError, NothingToDo, RemoteError, UsageError
from modelgit.objects import BlobId, HubSource, TensorId, parse_source
from modelgit.progress import SILENT, Progress
from modelgit.store.base import is_external
from modelgit.store.hub import download_hint
from modelgit.store.lent_files import snapshot_path

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["downloaded", "fetch_sources", "pinned"]

_READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.md", "LICENSE*")
_NOT_READ = ("consolidated*", "*/*.safetensors", "onnx/*", "openvino/*")


def pinned(environment: Environment, text: str, progress: Progress = SILENT) -> HubSource:
    """The commit that `hf:org/name@REVISION` means, which must be on this machine.

    A branch or tag is looked up on the hub.  Raises UsageError where that cannot be done, ExternalAbsentError when the
    snapshot is not in the cache.
    """
    source = parse_source(text)
    if not source.is_pinned:
        source = _look_up(environment, source)
    root = _snapshot(environment, source)
    if root is None or not root.is_dir():
        raise ExternalAbsentError(f"{source} is not on this machine", hint=download_hint(str(source)))
    progress.check()
    return source


def downloaded(
    environment: Environment, text: str, *, tell: Callable[[str], None], progress: Progress = SILENT
) -> tuple[Path, HubSource]:
    """The directory in the hub's cache where a published model lies, and which commit of it that is.

    What is missing is downloaded, safetensors files and what belongs to them alone; before that, `tell` gets a sentence
    with the size and the free space.  A commit whose files are here is used without asking anybody.  Raises RemoteError
    when the hub cannot be reached, refuses, or the disk has no room for the download.
    """
    source = parse_source(text if "@" in text else f"{text}@main")
    if not source.is_pinned:
        cached = _cached_commit(environment, source)
        if environment.offline and cached is not None:
            source = HubSource(source.name, cached)
        else:
            source = _look_up(environment, source)
    folder = _snapshot(environment, source)
    if folder is None:
        raise RemoteError("no place is known where the hub's files are kept", hint="set HF_HOME")
    if folder.is_dir() and _is_complete(folder):
        return folder, source
    library = _library(environment, f"downloading {source}")
    try:
        info = library.HfApi(endpoint=environment.hub_endpoint).model_info(
            source.name, revision=source.revision, files_metadata=True
        )
        sizes = {str(item.rfilename): int(item.size or 0) for item in info.siblings}
    except Exception as error:
        raise RemoteError(f"the hub does not list the files of {source}: {_first_line(error)}") from error
    missing = {name: size for name, size in sizes.items() if _is_read(name) and not (folder / name).exists()}
    if missing:
        room = next(place for place in (folder, *folder.parents) if place.is_dir())
        free = shutil.disk_usage(room).free
        size = sum(missing.values())
        words = f"{source}: {len(missing)} files, {size / 1e9:.2f} GB to download, {free / 1e9:.1f} GB free"
        if size > free:
            raise RemoteError(words, hint="make room, or set HF_HOME to another disk")
        tell(words)
        progress.check()
        _download(environment, source, sorted(missing))
    return folder, source


def _is_read(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _READ) and not any(
        fnmatchcase(name, pattern) for pattern in _NOT_READ
    )


def _is_complete(folder: Path) -> bool:
    """Whether the weights that a snapshot says it has are there, and its configuration."""
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").exists():
        return False
    if (folder / "model.safetensors").exists():
        return True
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).exists() for name in names)


def fetch_sources(repo: Repository, source: str | None = None, *, progress: Progress = SILENT) -> dict[str, int]:
    """Download `source`, or the files of published models that this repository refers to and that are not here.

    Returns how many files were asked for, by source.  Raises NothingToDo when everything is here, RemoteError when the
    hub cannot be reached or refuses, MissingExtraError without `huggingface_hub`.
    """
    wanted: Mapping[str, Sequence[str] | None]
    wanted = _absent(repo) if source is None else {str(parse_source(source)): None}
    if not wanted:
        raise NothingToDo("everything that lies in published models is on this machine")
    counts = {}
    for name, paths in wanted.items():
        progress.check()
        counts[name] = _download(repo.environment, parse_source(name), paths)
    return counts


def _absent(repo: Repository) -> dict[str, list[str]]:
    from modelgit.repo.upkeep.reach import commit_roots, kept_objects, needed_objects

    found: dict[str, set[str]] = {}
    for object_id, _ in needed_objects(repo, commit_roots(repo), kept=kept_objects(repo)):
        if not isinstance(object_id, TensorId | BlobId):
            continue
        records = repo.store.locate(object_id)
        for record in records if all(map(is_external, records)) else ():
            try:
                repo.store.foreign(record)
            except ExternalAbsentError:
                external, _ = repo.store.external(record)
                found.setdefault(external.source, set()).add(external.path)
    return {source: sorted(paths) for source, paths in sorted(found.items())}


def _snapshot(environment: Environment, source: HubSource) -> Path | None:
    if environment.hub_cache is None:
        return None
    return snapshot_path(environment.hub_cache, source.folder, source.revision)


def _library(environment: Environment, what: str) -> Any:
    if environment.offline:
        raise RemoteError(f"{what} needs the hub, and MGIT_OFFLINE is set", hint="name the commit: hf:org/name@COMMIT")
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError(f"{what} needs huggingface_hub", hint="`pip install 'modelgit[hub]'`") from None
    return huggingface_hub


def _look_up(environment: Environment, source: HubSource) -> HubSource:
    cached = _cached_commit(environment, source)
    try:
        library = _library(environment, f"{source}, which names no commit,")
    except (RemoteError, MissingExtraError) as error:
        if cached is not None:
            error.hint = f"`mgit borrow add {HubSource(source.name, cached)}` takes the one in the cache"
        raise
    try:
        found = library.HfApi(endpoint=environment.hub_endpoint).model_info(source.name, revision=source.revision).sha
    except Exception as error:
        raise RemoteError(f"the hub does not say which commit {source} is: {_first_line(error)}") from error
    pinned_source = HubSource(source.name, str(found))
    if not pinned_source.is_pinned:
        raise RemoteError(f"the hub names {str(found)[:80]!a} for {source}, which is no commit")
    return pinned_source


def _cached_commit(environment: Environment, source: HubSource) -> str | None:
    if environment.hub_cache is None or "/" in source.revision or ".." in source.revision:
        return None
    try:
        text = (environment.hub_cache / source.folder / "refs" / source.revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if HubSource(source.name, text).is_pinned else None


def _download(environment: Environment, source: HubSource, paths: Sequence[str] | None) -> int:
    if not source.is_pinned:
        raise UsageError(f"{source} names no commit", hint="write it as `hf:org/name@COMMIT`")
    library = _library(environment, f"downloading {source}")
    try:
        folder = library.snapshot_download(
            source.name,
            revision=source.revision,
            cache_dir=environment.hub_cache,
            endpoint=environment.hub_endpoint,
            allow_patterns=None if paths is None else list(paths),
        )
    except Exception as error:
        raise RemoteError(
            f"{source} cannot be downloaded: {_first_line(error)}", hint=download_hint(str(source))
        ) from error
    return len(paths) if paths is not None else sum(path.is_file() for path in Path(folder).rglob("*"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
