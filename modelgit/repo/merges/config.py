"""`merge-file --config`: the merges that a mergekit configuration describes, one after the other."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelgit.environment import Environment
from modelgit.errors import UsageError
from modelgit.merging.direct.card import Recipe
from modelgit.merging.direct.checkpoint import Checkpoint, open_checkpoint
from modelgit.merging.direct.compute import DirectMerge
from modelgit.merging.direct.mergekit_file import MergekitConfig, read_configs
from modelgit.merging.direct.mergekit_files import configured_files
from modelgit.merging.direct.mergekit_plan import plan_config
from modelgit.merging.direct.write import SHARD_BYTES
from modelgit.objects import is_source
from modelgit.progress import SILENT, Progress
from modelgit.repo.merges.merge_file import MergedFiles, Tell, check_target, open_model, write_output
from modelgit.store.durable import make_directory, temporary_name

__all__ = ["merge_by_config"]

_MAX_CONFIG_BYTES = 16 << 20
_PUBLISHED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@\S+)?\Z")


def merge_by_config(
    environment: Environment,
    path: Path,
    target: Path,
    *,
    shown: str,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    tell: Tell = lambda _: None,
    progress: Progress = SILENT,
) -> MergedFiles:
    """Do the merges of the mergekit configuration at `path`, and write the last one to `target`.

    Of several documents, those with a `name` are models for the others; they lie beside `target` until it is done.
    Errors are those of `merge_files`, and UsageError for what the configuration says and cannot be done.
    """
    check_target(target, overwrite=overwrite)
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise UsageError(f"{shown} is too large for a configuration")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    ordered = _in_order(read_configs(text, shown), shown)
    make_directory(target.parent)
    between = target.parent / temporary_name()
    made: dict[str, Path] = {}
    resolved: list[str] = []
    try:
        for config in ordered[:-1]:
            name = config.name or ""
            make_directory(between)
            made[name] = between / f"{len(made)}"
            _merge(environment, config, made[name], text, shown, made, resolved, shard_bytes, False, tell, progress)
        return _merge(
            environment, ordered[-1], target, text, shown, made, resolved, shard_bytes, overwrite, tell, progress
        )
    finally:
        shutil.rmtree(between, ignore_errors=True)


def _in_order(configs: Sequence[MergekitConfig], shown: str) -> list[MergekitConfig]:
    """The documents, each after those that it uses; the one that is the output is last."""
    names = [config.name for config in configs]
    unnamed = names.count(None)
    if unnamed > 1:
        raise UsageError(f"{shown} has {unnamed} documents without a `name`; one of them can be the output")
    known = [name for name in names if name is not None]
    if len(set(known)) < len(known):
        raise UsageError(f"{shown} gives the name {next(name for name in known if known.count(name) > 1)} two times")
    last = configs[names.index(None)] if unnamed else configs[-1]
    waiting = [config for config in configs if config is not last]
    done: list[MergekitConfig] = []
    while waiting:
        ready = next(
            (
                config
                for config in waiting
                if not any(other.name in config.models for other in (*waiting, last) if other is not config)
                and config.name not in config.models
            ),
            None,
        )
        if ready is None:
            raise UsageError(f"{shown}: {waiting[0].name} needs a merge that needs it, or the output")
        waiting.remove(ready)
        done.append(ready)
    return [*done, last]


def _merge(
    environment: Environment,
    config: MergekitConfig,
    target: Path,
    text: str,
    shown: str,
    made: Mapping[str, Path],
    resolved: list[str],
    shard_bytes: int,
    overwrite: bool,
    tell: Tell,
    progress: Progress,
) -> MergedFiles:
    with contextlib.ExitStack() as closing:

        def opened(name: str) -> Checkpoint:
            if name in made:
                return closing.enter_context(open_checkpoint(made[name], shown=name, source=name))
            model = open_model(environment, _reference(environment, name, shown), tell=tell, progress=progress)
            if model.source not in resolved:
                resolved.append(model.source)
            return closing.enter_context(model)

        models = {name: opened(name) for name in config.models}
        plan = plan_config(config, models, shown=shown)
        tokenizer = None
        if config.tokenizer not in (None, "union", "base"):
            tokenizer = models.get(config.tokenizer) or opened(config.tokenizer)
        files = configured_files(config, plan, models, tokenizer, shown=shown)
        merge = DirectMerge(plan.wanted, plan.strategies, progress=progress)
        recipe = Recipe(models=tuple(resolved), config=text, notes=plan.notes)
        return write_output(
            target,
            merge,
            recipe,
            files,
            sources=list(models.values()),
            notes=plan.notes,
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            progress=progress,
        )


def _reference(environment: Environment, name: str, shown: str) -> str:
    """A model as `open_model` takes it: a path, or a published model."""
    if is_source(name) or (environment.cwd / name).exists():
        return name
    if _PUBLISHED.match(name):
        return f"hf:{name}"
    raise UsageError(f"{shown}: there is nothing at {name}", hint="a path seen from here, or `org/name` on the hub")
