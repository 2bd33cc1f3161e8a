"""Models that were moved: which one of another manifest a path means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.objects import Manifest
from modelgit.repo.contents import models_of, tensors_of
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["path_elsewhere"]

_MOVED = 0.5
"""The share of tensors' names that a model and one that was moved have in common, at least."""


def path_elsewhere(
    repo: Repository,
    path: str,
    here: Manifest,
    there: Manifest,
    *,
    store: ObjectStore | None = None,
    other_store: ObjectStore | None = None,
) -> str | None:
    """The path in `there` of the model that is at `path` in `here`; None where there is no such model.

    It is the same path if there is a model at it; else, of the models of `there` that are not in `here`, the one most
    alike by the names of its tensors, if half of them agree.  The objects of `here` are in `store`, those of `there` in
    `other_store` (the repository's unless given).  Reads metadata only.
    """
    if any(model.path == path for model in there.models):
        return path
    names = set(models_of(repo, here, store=store).get(path, ()))
    known = {model.path for model in here.models}
    alike = {}
    for model in there.models:
        if model.path not in known:
            found = set(tensors_of(repo, there, model, store=other_store))
            alike[model.path] = len(names & found) / max(1, len(names | found))
    nearest = max(sorted(alike), key=alike.__getitem__, default=None)
    return nearest if nearest is not None and alike[nearest] >= _MOVED else None
