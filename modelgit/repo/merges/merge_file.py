"""`merge-file`: models that are in no repository, merged from files to files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modelgit.environment import Environment
from modelgit.errors import RepositoryError, UsageError
from modelgit.merging.base import STATISTICS, STRATEGIES, BoundStrategy, parse_rule, rule_text
from modelgit.merging.direct.beside import CARD, files_beside, set_dtype
from modelgit.merging.direct.card import Recipe, model_card, recipe_metadata
from modelgit.merging.direct.checkpoint import Checkpoint, open_checkpoint
from modelgit.merging.direct.compute import DirectMerge
from modelgit.merging.direct.plan import plan_same
from modelgit.merging.direct.reads import CheckpointReads, OpenDiagonals
from modelgit.merging.direct.write import SHARD_BYTES, flushed, shards, write_shards
from modelgit.merging.model import DEFAULT_RULE, Diagonals
from modelgit.objects import is_source
from modelgit.progress import SILENT, Progress
from modelgit.repo.exchange.hub import downloaded
from modelgit.store.durable import make_directory, publish, sync_directory, temporary_name, write_all

__all__ = [
    "DTYPES_OUT",
    "MergedFiles",
    "Tell",
    "check_target",
    "merge_files",
    "open_model",
    "write_output",
]

_DEFAULT_STRATEGY = "average"
DTYPES_OUT = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
Tell = Callable[[str], None]
_SLACK_BYTES = 16 << 20


class MergedFiles(NamedTuple):
    """What was written: `copied` of the tensors were the same on all sides, or one side's by rule."""

    path: Path
    tensors: int
    copied: int
    size_bytes: int
    files: int
    notes: tuple[str, ...]


def merge_files(
    environment: Environment,
    sources: Sequence[str],
    target: Path,
    *,
    base: str | None = None,
    strategy: str | None = None,
    options: Mapping[str, str] | None = None,
    rules: Mapping[str, str] | None = None,
    fishers: Sequence[str] = (),
    dtype: str = "",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    tell: Tell = lambda _: None,
    progress: Progress = SILENT,
) -> MergedFiles:
    """Merge the models `sources` (files, directories, `hf:org/name[@REVISION]`) and write the result to `target`.

    A target that ends with `.safetensors` is one file, any other a directory.  `dtype` (of DTYPES_OUT's values) is what
    floats are stored as; without it each tensor keeps the first model's.  `fishers` are files of diagonals, one a
    source.  Raises UsageError for models that do not fit together and a target that exists, CheckpointFormatError for
    malformed files, RemoteError where a download fails, RepositoryError when a file changes meanwhile or the disk
    refuses: then nothing is left behind.
    """
    check_target(target, overwrite=overwrite)
    bound = STRATEGIES.get(strategy or _DEFAULT_STRATEGY).bind(options or {})
    strategies = {DEFAULT_RULE: bound, **{pattern: parse_rule(text) for pattern, text in (rules or {}).items()}}
    _check_strategies(strategies, sources, fishers)
    with contextlib.ExitStack() as closing:

        def opened(text: str) -> Checkpoint:
            return closing.enter_context(open_model(environment, text, tell=tell, progress=progress))

        models = [opened(text) for text in sources]
        ancestor = None if base is None else opened(base)
        diagonals = [opened(text) for text in fishers]
        reads = CheckpointReads()
        merge = DirectMerge(
            plan_same(models, ancestor, strategies, dtype=dtype),
            strategies,
            reads=reads,
            fishers=_diagonals(reads, diagonals),
            progress=progress,
        )
        beside = files_beside(models, ancestor)
        files = dict(beside.files)
        config = files.get("config.json")
        if dtype and isinstance(config, bytes):
            files["config.json"] = set_dtype(config, dtype)
        recipe = Recipe(
            models=tuple(model.source for model in models),
            base=None if ancestor is None else ancestor.source,
            strategy=rule_text(bound),
            rules=dict(rules or {}),
            dtype=dtype,
        )
        return write_output(
            target,
            merge,
            recipe,
            files,
            sources=[*models, *([ancestor] if ancestor else []), *diagonals],
            notes=beside.notes,
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            progress=progress,
        )


def open_model(environment: Environment, text: str, *, tell: Tell, progress: Progress = SILENT) -> Checkpoint:
    """Open a file, a directory or a published model, downloading what of the last is not on this machine."""
    if is_source(text):
        folder, source = downloaded(environment, text, tell=tell, progress=progress)
        return open_checkpoint(folder, shown=text, source=str(source))
    return open_checkpoint(environment.cwd / text, shown=text)


def write_output(
    target: Path,
    merge: DirectMerge,
    recipe: Recipe,
    files: Mapping[str, bytes | Path],
    *,
    sources: Sequence[Checkpoint],
    notes: Sequence[str] = (),
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> MergedFiles:
    """Write a merge under a temporary name beside `target`, and rename it when all of it is on the disk."""
    make_directory(target.parent)
    specs = merge.specs
    needed = sum(spec.size_bytes for _, spec in specs) + _SLACK_BYTES
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise RepositoryError(
            f"{target} needs {needed >> 20} MiB, and {free >> 20} MiB are free there",
            hint="free some space, or name another place with `-o`",
        )
    is_file = target.suffix == ".safetensors"
    layout = [(target.name, list(range(len(specs))))] if is_file else shards(specs, shard_bytes)
    merge.prepare()
    made = target.parent / temporary_name()
    make_directory(made)
    try:
        size = write_shards(
            made,
            layout,
            merge,
            recipe_metadata(recipe),
            threads=min(8, os.cpu_count() or 1),
            progress=progress,
        )
        changed = next((source for source in sources if not source.is_unchanged()), None)
        if changed is not None:
            raise RepositoryError(
                f"{changed.shown} changed while it was being read", hint="try again when nothing writes it"
            )
        if is_file:
            publish(made / target.name, target)
        else:
            card = model_card(target.name, recipe).encode()
            _write_beside(made, {**files, CARD: card})
            _replace(made, target, overwrite=overwrite)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return MergedFiles(
        target,
        len(specs),
        merge.copied,
        size,
        len(layout),
        tuple(dict.fromkeys([*merge.notes, *(() if is_file else notes)])),
    )


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise UsageError for a target that exists, unless it may be overwritten and is of the right kind."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UsageError(f"{target} exists already", hint="`--force` replaces it")
    is_file = target.suffix == ".safetensors"
    if is_file != target.is_file() or (not is_file and not _is_model(target)):
        raise UsageError(f"{target} is not a model that `--force` could replace", hint="choose another name")


def _is_model(folder: Path) -> bool:
    """Whether a directory holds weights, or nothing at all: what may be replaced."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else ["no directory"]
    return not names or any(name.endswith(".safetensors") for name in names)


def _write_beside(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    for name, content in files.items():
        make_directory((folder / name).parent)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
            continue
        with flushed(folder / name) as descriptor:
            write_all(descriptor, content)


def _replace(made: Path, target: Path, *, overwrite: bool) -> None:
    """Rename a directory into place; one that is there goes when the new one is."""
    old = target.parent / temporary_name()
    try:
        if overwrite and target.exists():
            os.replace(target, old)
        os.replace(made, target)
    except OSError as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise RepositoryError(f"cannot write {target}: {error.strerror or error}") from error
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_strategies(strategies: Mapping[str, BoundStrategy], sources: Sequence[str], fishers: Sequence[str]) -> None:
    needing = [bound.name for bound in strategies.values() if bound.strategy.needs & STATISTICS]
    if needing and not fishers:
        raise UsageError(
            f"`{needing[0]}` needs Fisher estimates or Gram matrices, which files of weights do not hold",
            hint="`--fisher F.safetensors` for each model, or merge in a repository, after `mgit fisher`",
        )
    if fishers and not needing:
        raise UsageError("--fisher belongs to a strategy that uses it", hint="`--strategy fisher`")
    if fishers and len(fishers) != len(sources):
        raise UsageError(f"{len(fishers)} --fisher for {len(sources)} models", hint="give one a model, in their order")


def _diagonals(reads: CheckpointReads, files: Sequence[Checkpoint]) -> list[Diagonals | None]:
    return [OpenDiagonals(reads, file.tensors, shown=file.shown) for file in files]
