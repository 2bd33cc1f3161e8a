"""The files beside the weights of a merged directory: configuration, tokenizer and others, merged or taken by rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modelgit.merging.direct.checkpoint import Checkpoint
from modelgit.merging.files import merge_file

__all__ = ["CARD", "Beside", "files_beside", "set_dtype"]

CARD = "README.md"
_VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Beside(NamedTuple):
    """Files by name, their content or (large ones) where they are copied from; `notes` are for the user."""

    files: dict[str, bytes | Path]
    notes: tuple[str, ...]


def files_beside(models: Sequence[Checkpoint], base: Checkpoint | None) -> Beside:
    """The first model's files; with a base, three-way merges of them with those of the others.

    Where models changed the same thing differently, or there is no base, the first model's stays, and a note says so.
    The model card is none of these files: the merge has its own.
    """
    files: dict[str, bytes | Path] = {}
    notes: list[str] = []
    names = dict.fromkeys(models[0].files)
    if base is not None:
        names |= dict.fromkeys(name for model in models[1:] for name in model.files if name not in base.files)
    for name in names:
        if name == CARD:
            continue
        owner = next(model for model in models if name in model.files)
        content = owner.text(name)
        if content is None:
            files[name] = owner.path(name)
            continue
        open_points: list[str] = []
        before = None if base is None else base.text(name)
        merged: bytes | None = content
        for model in models[1:]:
            theirs = model.text(name)
            if model is owner or theirs is None or theirs == merged:
                continue
            if before is None:
                open_points.append(f"{model.shown} has another one")
                continue
            result = merge_file(name, before, merged, theirs)
            if any(not conflict.item for conflict in result.conflicts):
                open_points.append(f"{model.shown} changed the same parts")
                continue
            merged = result.content
            open_points += [f"{conflict.item} is {conflict.theirs} in {model.shown}" for conflict in result.conflicts]
        if merged is None:
            continue
        files[name] = merged
        if open_points:
            kept = f"{name} is that of {owner.shown}: {'; '.join(open_points[:3])}"
            more = f" (+{len(open_points) - 3} more)" if len(open_points) > 3 else ""
            rows = ", so rows of the embeddings may stand for other tokens" if name in _VOCABULARY else ""
            notes.append(kept + more + rows)
    return Beside(files, tuple(notes))


def set_dtype(config: bytes, dtype: str) -> bytes:
    """The text of a config.json with another dtype, where it names one."""
    name = _TORCH_NAMES.get(dtype)
    try:
        table = json.loads(config)
    except (ValueError, RecursionError):
        return config
    keys = [key for key in ("dtype", "torch_dtype") if isinstance(table, dict) and key in table]
    if name is None or all(table[key] == name for key in keys):
        return config
    table |= dict.fromkeys(keys, name)
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()
