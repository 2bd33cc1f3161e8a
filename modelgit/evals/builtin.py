"""The gate that is never absent: values finite, names and shapes as before, files that say what the weights are.

It needs no data and no model code, and reads only tensors that changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from blake3 import blake3

from modelgit.errors import MgitError
from modelgit.evals.finite import ValueCounts, count_values, is_mask
from modelgit.objects import (
    CheckResult,
    Decision,
    EvalRecord,
    ManifestId,
    TensorEntry,
    TensorId,
    domain,
    worst_decision,
)
from modelgit.patching.base import TensorReads
from modelgit.progress import SILENT, Progress

__all__ = ["BUILTIN_SUITE", "Side", "run_builtin"]

BUILTIN_SUITE = "builtin"
_SUITE_ID = "b3:" + blake3(domain("suite") + b"builtin 1").hexdigest()
_SHOWN = 3
# Without these a checkpoint does not load; other JSON beside it is somebody's notes.
_ESSENTIAL = frozenset(
    {
        "adapter_config.json",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
_INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True, kw_only=True)
class Side:
    """What the built-in gate looks at of one manifest.

    `models` maps each model's path to its tensors by name, `weights` to its weight files; `files` maps the path of
    every file without tensors to a reader of its bytes.
    """

    manifest: ManifestId
    models: Mapping[str, Mapping[str, TensorEntry]]
    files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def run_builtin(
    candidate: Side,
    baseline: Side | None,
    reader: TensorReads,
    *,
    counted: Mapping[TensorId, ValueCounts] | None = None,
    progress: Progress = SILENT,
) -> EvalRecord:
    """The verdict of the built-in suite: "finite values", "names and shapes", "files".

    NaN and infinities in a floating-point tensor fail, unless the baseline's tensor of that name has just as many or
    the tensor is an additive attention mask (zeros and -Inf only).  `counted` holds what the writer saw of the tensors
    that it has just coded, exactly as they are stored: these are not read again.
    Added, removed and re-shaped tensors warn.  Files of a model that do not parse, and a shard index that disagrees
    with the tensors, fail.
    """
    started = time.monotonic()
    results = (
        _finite_values(candidate, baseline, reader, counted or {}, progress),
        _names_and_shapes(candidate, baseline),
        _files(candidate),
    )
    return EvalRecord(
        candidate=candidate.manifest,
        baseline=None if baseline is None else baseline.manifest,
        suite=BUILTIN_SUITE,
        suite_id=_SUITE_ID,
        results=results,
        decision=worst_decision(result.decision for result in results),
        seconds=round(time.monotonic() - started, 3),
        versions={"numpy": np.__version__},
    )


def _finite_values(
    candidate: Side,
    baseline: Side | None,
    reader: TensorReads,
    counted: Mapping[TensorId, ValueCounts],
    progress: Progress,
) -> CheckResult:
    before = {} if baseline is None else baseline.models
    passed_ids = {entry.id for tensors in before.values() for entry in tensors.values()}
    changed = [
        (path, entry)
        for path, tensors in sorted(candidate.models.items())
        for _, entry in sorted(tensors.items())
        if entry.id not in passed_ids
    ]
    broken: list[str] = []
    kept: list[str] = []
    task = "check values"
    progress.start(task, sum(entry.spec.size_bytes for _, entry in changed))
    try:
        for path, entry in changed:
            seen = counted.get(entry.id)
            if seen is None:
                counts = count_values(reader, entry, progress=progress, task=task)
            else:
                counts = seen
                progress.advance(task, entry.spec.size_bytes)
            if not counts.broken:
                continue
            line = f"{entry.name} ({counts})"
            old = before.get(path, {}).get(entry.name)
            (kept if _expected(entry, counts, old, reader) else broken).append(line)
    except MgitError as error:
        return CheckResult(name="finite values", decision="error", detail=error.message)
    finally:
        progress.finish(task)
    if broken:
        return CheckResult(
            name="finite values", decision="fail", value=float(len(broken)), unit="count", detail=_listed(broken)
        )
    if kept:
        return CheckResult(name="finite values", decision="warn", detail=f"as before or by design: {_listed(kept)}")
    noun = "tensor" if len(changed) == 1 else "tensors"
    return CheckResult(name="finite values", decision="pass", detail=f"{len(changed):,} changed {noun} read")


def _expected(entry: TensorEntry, counts: ValueCounts, old: TensorEntry | None, reader: TensorReads) -> bool:
    """Whether non-finite values are those of a mask buffer, or were there before in the same numbers."""
    return is_mask(reader, entry, counts) or (old is not None and count_values(reader, old) == counts)


def _names_and_shapes(candidate: Side, baseline: Side | None) -> CheckResult:
    name = "names and shapes"
    if baseline is None:
        return CheckResult(name=name, decision="baseline")
    changes: list[str] = []
    for path in sorted({*candidate.models, *baseline.models}):
        new, old = candidate.models.get(path), baseline.models.get(path)
        if new is None or old is None:
            changes.append(f"model {path} {'removed' if new is None else 'added'}")
            continue
        changes += [f"{tensor} removed" for tensor in sorted(old.keys() - new.keys())]
        changes += [f"{tensor} added" for tensor in sorted(new.keys() - old.keys())]
        changes += [
            f"{tensor} {_spec(old[tensor])} → {_spec(new[tensor])}"
            for tensor in sorted(new.keys() & old.keys())
            if new[tensor].spec != old[tensor].spec
        ]
    decision: Decision = "warn" if changes else "pass"
    return CheckResult(name=name, decision=decision, detail=_listed(changes))


def _files(candidate: Side) -> CheckResult:
    failures: list[str] = []
    warnings: list[str] = []
    for path, base, read in _json_files(candidate):
        essential = base in _ESSENTIAL or base.endswith(_INDEX_SUFFIX)
        try:
            value = json.loads(read())
        except (ValueError, RecursionError) as error:
            (failures if essential else warnings).append(f"{path} is not JSON ({error})")
            continue
        except MgitError as error:
            return CheckResult(name="files", decision="error", detail=error.message)
        if essential and not isinstance(value, dict):
            failures.append(f"{path} is not a JSON object")
        elif base.endswith(_INDEX_SUFFIX):
            failures += _index_faults(candidate, path, value)
    decision: Decision = "fail" if failures else "warn" if warnings else "pass"
    return CheckResult(name="files", decision=decision, detail=_listed(failures or warnings))


def _json_files(side: Side) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """The JSON files in the directories of models: path, base name, reader."""
    for path, read in sorted(side.files.items()):
        pure = PurePosixPath(path)
        if pure.suffix == ".json" and any(str(pure.parent) == _directory(side, model) for model in side.models):
            yield path, pure.name, read


def _directory(side: Side, model: str) -> str:
    """Where a model's small files lie: its path, or the directory of the file that it is."""
    if side.weights.get(model) == (model,):
        return str(PurePosixPath(model).parent)
    return str(PurePosixPath(model))


def _index_faults(side: Side, path: str, value: dict[str, object]) -> Iterator[str]:
    """Where a shard index says other than the files: tensors without data, data without an entry, missing shards."""
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        yield f"{path} has no weight_map of names to files"
        return
    parent = PurePosixPath(path).parent
    model = next(model for model in side.models if _directory(side, model) == str(parent))
    shards = {str(parent / str(shard)) for shard in weight_map.values()}
    if model in side.weights:
        yield from (f"{path} names {shard}, which is not there" for shard in sorted(shards - set(side.weights[model])))
    tensors = side.models[model].keys()
    yield from (f"{path} names {name}, which no file holds" for name in sorted(weight_map.keys() - tensors))
    yield from (f"{path} does not name {name}" for name in sorted(tensors - weight_map.keys()))


def _spec(entry: TensorEntry) -> str:
    return f"{entry.spec.dtype} {list(entry.spec.shape)}"


def _listed(lines: list[str]) -> str:
    more = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")
