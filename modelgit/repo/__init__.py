"""Repositories: everything below wired together, one module per verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelgit.environment import Environment
from modelgit.repo.repository import Repository

__all__ = ["Repository", "clone", "init", "open", "snapshot"]


def open(path: Path | str = ".", *, environment: Environment | None = None) -> Repository:  # noqa: A001
    """Open the repository that `path` lies in.  Raises RepositoryError when there is none."""
    return Repository.open(path, environment=environment)


def init(path: Path | str = ".", *, branch: str = "main", environment: Environment | None = None) -> Repository:
    """Make an empty repository in `path`."""
    return Repository.init(path, branch=branch, environment=environment)


def clone(
    url: str,
    path: Path | str | None = None,
    *,
    borrow: Sequence[str] = (),
    environment: Environment | None = None,
) -> Repository:
    """Copy a remote repository and check out its branch; what the lenders in `borrow` have is not copied."""
    from modelgit.repo.exchange.cloning import clone as clone_repository

    return clone_repository(url, path, borrow=borrow, environment=environment or Environment.capture())


def snapshot(source: Path | str, *, model: str | None = None, environment: Environment | None = None) -> Path:
    """A read-only directory with a model of `source`, a repository's path or a remote's URL, with `@REVISION`."""
    from modelgit.repo.snapshots import open_snapshot

    return open_snapshot(source, model=model, environment=environment)
