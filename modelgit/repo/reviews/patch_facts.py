"""What an update changes, from manifests and small files: the facts that policies decide on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects import Commit, CommitId, FileEntry, Manifest, ObjectId, Patch, PatchFacts, TensorEntry
from modelgit.repo.contents import file_bytes, models_of
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Tree", "code_paths", "gather_facts"]

_CODE = frozenset(
    {".py", ".pyc", ".pyx", ".ipynb", ".so", ".pyd", ".dll", ".dylib", ".sh", ".bat", ".ps1", ".js", ".wasm"}
    | {".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".rs", ".exe", ".jar", ".whl"}
)
_TOKENIZER = frozenset(
    {"special_tokens_map.json", "added_tokens.json", "merges.txt", "tekken.json", "normalizer.json", "encoder.json"}
    | {"dict.txt", "bpe.codes"}
)
_TOKENIZER_PARTS = ("tokenizer", "vocab")
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json"})
_TOKENIZER_SUFFIXES = (".tiktoken", ".spm", ".bpe", ".model")
_TEMPLATE_NAMES = frozenset({"chat_template.json", "chat_template.jinja"})
_TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
_TEMPLATE_KEY = "chat_template"
# Keys of config files whose values name Python that is fetched or imported when the model is loaded.
_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate")
_GATE_TABLES = ("policy", "eval", "task", "gate")
_SUITES = "evals/"
_MAX_JSON_BYTES = 16 << 20


class Tree(NamedTuple):
    """A manifest and the store that has its records."""

    repo: Repository
    manifest: Manifest
    store: ObjectStore

    def read(self, path: str) -> bytes:
        """A small file, b"" for one that is absent or larger than 16 MiB."""
        entry = self.manifest.file(path)
        if entry is None or entry.size > _MAX_JSON_BYTES:
            return b""
        return file_bytes(self.repo, entry.digest, store=self.store)

    def tensors(self) -> dict[tuple[str, str], TensorEntry]:
        """All tensors by model and name."""
        models = models_of(self.repo, self.manifest, store=self.store)
        return {(model, name): entry for model, tensors in models.items() for name, entry in tensors.items()}


def gather_facts(old: Tree, new: Tree, commits: Mapping[CommitId, Commit], *, store: ObjectStore) -> PatchFacts:
    """The facts of an update from `old` to `new` by `commits` (parents first), all of which `store` has.

    Metadata and small files are read, no weights: `values_changed` and `dense` are those of whoever counts.
    """
    before, after = old.tensors(), new.tensors()
    both = before.keys() & after.keys()
    respecified = {key for key in both if before[key].spec != after[key].spec}
    changed = {key for key in both - respecified if before[key].id != after[key].id}
    files = _changed_files(old.manifest, new.manifest)
    # Loaders look for one file after the other: without tokenizer.json the model reads with what vocab.txt says.
    gone = sorted({entry.path for entry in old.manifest.files} - {entry.path for entry in new.manifest.files})
    return PatchFacts(
        commits=len(commits),
        bytes_added=_added_bytes(store, dict(commits), pruned=pruned_commits(new.repo)),
        raw_bytes=sum(entry.size for entry in new.manifest.files),
        tensors=len(after),
        tensors_changed=len(changed),
        tensors_added=len(after.keys() - before.keys()),
        tensors_removed=len(before.keys() - after.keys()),
        tensors_respecified=len(respecified),
        values=sum(entry.spec.elements for entry in after.values()),
        lossy=tuple(commit for commit, record in commits.items() if not read_record(store, record.patch, Patch).exact),
        code=tuple(sorted({*code_paths(files), *(path for path, entry in files.items() if entry.executable)})),
        auto_map=tuple(_new_classes(old, new, files)),
        tokenizer=tuple(path for path in (*files, *gone) if _is_tokenizer(old, new, path)),
        chat_template=tuple(path for path in (*files, *gone) if _is_template(old, new, path)),
        gate=tuple(_gate_files(old, new)),
    )


def _added_bytes(store: ObjectStore, commits: dict[CommitId, Commit], *, pruned: Collection[CommitId] = ()) -> int:
    """What somebody who has the parents of `commits` would have to receive, as it is coded in `store`.

    Commits that are `pruned` come without their weights.
    """
    from modelgit.remotes.closure import closure
    from modelgit.remotes.selection import select_records

    wanted = list(closure(store, commits, pruned=pruned))
    ids = {item.id for item in wanted}

    def missing(asked: Collection[ObjectId]) -> set[ObjectId]:
        return ids.intersection(asked)

    located = {object_id: store.locate(object_id) for object_id in ids}
    chosen = select_records(
        lambda asked: {object_id: located.get(object_id) or store.locate(object_id) for object_id in asked},
        wanted,
        missing,
        where="this repository",
        lacking=IntegrityError,
    )
    return chosen.size_bytes


def code_paths(paths: Collection[str]) -> Iterator[str]:
    """Those of `paths` that are code by their names."""
    return (path for path in sorted(paths) if PurePosixPath(path).suffix.lower() in _CODE)


def _changed_files(old: Manifest, new: Manifest) -> dict[str, FileEntry]:
    """The files of `new` that are new or differ, by path; code that went away can do no harm."""
    before = {entry.path: (entry.digest, entry.executable) for entry in old.files}
    return {e.path: e for e in new.files if before.get(e.path) != (e.digest, e.executable)}


def _json(tree: Tree, path: str) -> object:
    try:
        return json.loads(tree.read(path) or b"null")
    except (ValueError, RecursionError):
        return None


def _is_tokenizer(old: Tree, new: Tree, path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    if name == "tokenizer_config.json":
        before, after = _json(old, path), _json(new, path)
        if isinstance(before, dict) and isinstance(after, dict):
            return _without(before, _TEMPLATE_KEY) != _without(after, _TEMPLATE_KEY)
    if PurePosixPath(name).suffix in _CODE:
        return False
    return name in _TOKENIZER or name.endswith(_TOKENIZER_SUFFIXES) or any(part in name for part in _TOKENIZER_PARTS)


def _is_template(old: Tree, new: Tree, path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    if name in _TEMPLATE_NAMES or name.endswith(_TEMPLATE_SUFFIXES):
        return True
    if not name.endswith(".json"):
        return False
    before, after = (
        found.get(_TEMPLATE_KEY) if isinstance(found, dict) else None for found in (_json(old, path), _json(new, path))
    )
    return before != after


def _without(value: dict[str, object], key: str) -> dict[str, object]:
    return {name: item for name, item in value.items() if name != key}


def _new_classes(old: Tree, new: Tree, files: Mapping[str, FileEntry]) -> Iterator[str]:
    """`PATH: CLASS` for each class of its own that a config file names now and did not before."""
    for path in sorted(files):
        if path.endswith(".json"):
            if files[path].size > _MAX_JSON_BYTES and PurePosixPath(path).name not in _VOCABULARIES:
                yield f"{path}: too large to be looked into"
                continue
            known = set(_named_classes(_json(old, path)))
            yield from (f"{path}: {name}" for name in sorted(set(_named_classes(_json(new, path))) - known))


def _named_classes(value: object) -> Iterator[str]:
    """What the values below the keys that name code say, at any depth."""
    stack: list[tuple[object, bool]] = [(value, False)]
    while stack:
        item, named = stack.pop()
        if isinstance(item, dict):
            stack += [(child, named or key in _CODE_KEYS) for key, child in item.items()]
        elif isinstance(item, list):
            stack += [(child, named) for child in item]
        elif named and item is not None:
            yield str(item)[:200]


def _gate_files(old: Tree, new: Tree) -> Iterator[str]:
    """The files of the gate that were added, changed or removed."""
    before = {entry.path: entry.digest for entry in old.manifest.files}
    after = {entry.path: entry.digest for entry in new.manifest.files}
    if before.get(PROJECT_CONFIG) != after.get(PROJECT_CONFIG) and _gate_of(old) != _gate_of(new):
        yield PROJECT_CONFIG
    named = {*_named_by_suites(old), *_named_by_suites(new)}
    paths = sorted(path for path in {*before, *after} if path.startswith(_SUITES) or path in named)
    yield from (path for path in paths if before.get(path) != after.get(path))


def _named_by_suites(tree: Tree) -> set[str]:
    """Where the data and the code of suites lie: easier data are another gate.  Suites that do not parse name none."""
    from modelgit.repo.gates.suites import recorded_suites
    from modelgit.repo.trust import suite_code

    found: set[str] = set()
    try:
        texts = recorded_suites(tree.repo, tree.manifest, store=tree.store)
    except UsageError:
        return found
    for name in {*texts.files, *texts.settings.eval}:
        try:
            [suite] = texts.suites([name])
        except UsageError:
            continue
        found |= {source.path for source in suite.data.values()}
        found |= suite_code(tree.repo, suite, manifest=tree.manifest, store=tree.store).keys()
    return found


def _gate_of(tree: Tree) -> object:
    """The tables of mgit.toml that belong to the gate; the bytes themselves where they are no TOML."""
    data = tree.read(PROJECT_CONFIG)
    try:
        settings = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return data
    return {name: settings.get(name) for name in _GATE_TABLES}
