"""The weights tree: one name for everything that decides how the models of a manifest behave.

It covers every tensor of every model and the small files of the models' directories (configuration, tokenizer, chat
template, code); messages, data, settings and documentation are no part of it.  So commits that differ in their message,
their README or their suites only have the same one, a verdict on one holds for the others, and a verdict cannot be
passed off as one on other weights.

What is left out is listed, not what counts: a file that nobody knows may change what a model does, and to measure once
too often is the smaller fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from modelgit.objects import CommitId, FileEntry, Manifest, ModelEntry, domain
from modelgit.repo.contents import file_bytes, tensors_of, views_of
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.store.base import ObjectStore
from modelgit.store.checked_files import read_checked, write_checked

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["WeightsOfCommits", "weights_tree"]

_DOCUMENTS = ("readme", "license", "licence", "notice", "changelog", "citation", "authors", "contributing")
_DOCUMENT_SUFFIXES = ("", ".md", ".rst", ".txt", ".cff", ".html", ".pdf")
_DATA = (".md", ".rst", ".csv", ".tsv", ".jsonl", ".parquet", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf")
_SHARDS = ".index.json"  # which shard holds which tensor
_SUITES = "evals/"
_MAGIC = b"mgitwts3"


def weights_tree(repo: Repository, manifest: Manifest, *, store: ObjectStore | None = None) -> str:
    """The name, 64 hexadecimal digits: a BLAKE3 of names, dtypes, shapes and ids of tensors and of the small files.

    Reads metadata and indices of shards only.  Of files that are no safetensors the id of the whole content counts: a
    GGUF holds a tokenizer and a PyTorch archive code beside the tensors.  Equal for a model that was cut into other
    shards, or whose header holds other metadata; an index that says other than the shards counts, for loaders believe
    it.
    """
    models = [_model(repo, manifest, model, store) for model in sorted(manifest.models, key=lambda item: item.path)]
    content = msgspec.json.encode(models, order="deterministic")
    return blake3(domain("weights-tree") + content).hexdigest()


def _model(repo: Repository, manifest: Manifest, model: ModelEntry, store: ObjectStore | None) -> list[object]:
    tensors = [
        (name, entry.spec.dtype, list(entry.spec.shape), entry.id.hex)
        for name, entry in tensors_of(repo, manifest, model, store=store).items()
    ]
    views = [
        (name, entry.id.hex, view.offset, list(view.strides), spec.dtype, list(spec.shape))
        for name, (entry, view) in views_of(repo, manifest, model, store=store).items()
        for spec in (view.spec or entry.spec,)
    ]
    whole = [
        (path, entry.digest.hex)
        for path in model.weights
        if (entry := manifest.file(path)) is not None
        and repo.content_at(entry.digest, store=store).format != "safetensors"
    ]
    return [
        model.path,
        sorted(tensors),
        sorted(views),
        sorted(whole),
        sorted(_small_files(repo, manifest, model, store)),
    ]


def _small_files(
    repo: Repository, manifest: Manifest, model: ModelEntry, store: ObjectStore | None
) -> Iterable[tuple[str, str]]:
    weights = {path for entry in manifest.models for path in entry.weights}
    alone = model.weights == (model.path,)
    folder = "" if model.path == "." else model.path[: model.path.rfind("/") + 1] if alone else f"{model.path}/"
    for entry in manifest.files:
        if entry.path.startswith(folder) and entry.path not in weights and entry.path != model.path:
            if alone and "/" in entry.path[len(folder) :]:
                continue  # of a model that is one file, what lies beside it
            if folder == "" and (entry.path == PROJECT_CONFIG or entry.path.startswith(_SUITES)):
                continue
            name = entry.path.rsplit("/", 1)[-1].lower()
            document = name.startswith(_DOCUMENTS) and PurePosixPath(name).suffix in _DOCUMENT_SUFFIXES
            faithful = name.endswith(_SHARDS) and _is_faithful(repo, manifest, model, entry, store)
            if not (document or faithful or name.startswith(".") or name.endswith(_DATA)):
                yield entry.path[len(folder) :], entry.digest.hex


def _is_faithful(
    repo: Repository, manifest: Manifest, model: ModelEntry, index: FileEntry, store: ObjectStore | None
) -> bool:
    """Whether an index names each tensor of a model, and the shard that holds it."""
    try:
        found = json.loads(file_bytes(repo, index.digest, store=store))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    folder = index.path.rpartition("/")[0]
    held: dict[str, str] = {}
    for path in model.weights:
        if (entry := manifest.file(path)) is not None and path.rpartition("/")[0] == folder:
            content = repo.content_at(entry.digest, store=store)
            shard = path.rpartition("/")[2]
            held |= dict.fromkeys((tensor.name for tensor in content.tensors), shard)
            held |= dict.fromkeys((view.name for view in content.views), shard)
    return bool(found == held)


class WeightsOfCommits:
    """The weights trees of commits, each computed once, and kept in a cache by manifest for the next command.

    For what is shown and what travels; whoever decides whether something is let in computes `weights_tree` itself.
    """

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._path = repo.paths.weights
        self._known = _read_cache(self._path)
        self._fresh = False

    def __enter__(self) -> WeightsOfCommits:
        return self

    def __exit__(self, *_: object) -> None:
        """Write the cache if there is anything new."""
        if self._fresh:
            write_checked(self._path, _MAGIC, b"".join(manifest + tree for manifest, tree in self._known.items()))

    def of(self, commit: CommitId) -> str:
        """The weights tree of a commit.  Raises IntegrityError when its metadata are missing or damaged."""
        manifest = self._repo.commit_at(commit).manifest
        found = self._known.get(manifest.digest)
        if found is None:
            tree = weights_tree(self._repo, self._repo.manifest_at(manifest))
            found = self._known[manifest.digest] = bytes.fromhex(tree)
            self._fresh = True
        return found.hex()

    def commits_by_weights(self, commits: Iterable[CommitId], wanted: Iterable[str]) -> dict[str, CommitId]:
        """Where the weights trees `wanted` occur first among `commits`; stops as soon as all are found."""
        missing = set(wanted)
        found: dict[str, CommitId] = {}
        for commit in commits if missing else ():
            tree = self.of(commit)
            if tree in missing:
                found[tree] = commit
                missing.discard(tree)
                if not missing:
                    break
        return found


def _read_cache(path: Path) -> dict[bytes, bytes]:
    """Weights trees by manifest, 32 bytes each; nothing where there is no cache or it is torn."""
    content = read_checked(path, _MAGIC) or b""
    return {content[at : at + 32]: content[at + 32 : at + 64] for at in range(0, len(content), 64)}
