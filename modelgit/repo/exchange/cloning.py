"""`clone`: a new repository that holds what a remote holds."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelgit.environment import Environment
from modelgit.errors import MgitError, NothingToDo, RemoteError, RepositoryError
from modelgit.objects.refs import ref_problem
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import open_transport
from modelgit.repo.exchange.remote import DEFAULT_REMOTE, add_remote
from modelgit.repo.exchange.sync import adopt, fetch_from
from modelgit.repo.repository import Repository

__all__ = ["clone"]


def clone(
    url: str,
    path: Path | str | None = None,
    *,
    branch: str | None = None,
    borrow: Sequence[str] = (),
    fisher: bool = False,
    environment: Environment,
    progress: Progress = SILENT,
) -> Repository:
    """Copy a remote repository into `path` (named after the URL) and check out its branch.

    What the lenders in `borrow` have (see `repo.borrow`) is compared with its ids and not copied.  With `fisher` its
    estimates come, too.

    Nothing that the remote holds is run.  A failed clone leaves no half-made repository behind.
    """
    name = str(path) if path is not None else Path(url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".mgit")).name
    target = (environment.cwd / (name or "clone")).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RepositoryError(f"{target} exists already and is not empty", hint="`mgit clone URL OTHER_DIRECTORY`")
    existed = target.exists()
    transport = open_transport(url, environment=environment, relative_to=environment.cwd)
    try:
        state = transport.root()  # before anything is made here: most failures show now
        wanted = branch or state.view.branch or "main"
        if ref_problem(f"heads/{wanted}") is not None:
            raise RemoteError(
                f"{url} names a default branch that cannot be one: {wanted[:60]!a}",
                hint="`mgit clone URL --branch NAME` takes another one",
            )
        if f"heads/{wanted}" not in state.view.refs and branch is not None:
            known = ", ".join(sorted(ref[6:] for ref in state.view.refs if ref.startswith("heads/"))) or "none"
            raise RemoteError(f"{url} has no branch {branch}", hint=f"its branches: {known}")
        try:
            target.mkdir(parents=True, exist_ok=True)
            repo = Repository.init(target, branch=wanted, environment=environment)
            shown = url if "://" in url or url.startswith("file:") else str((environment.cwd / url).resolve())
            add_remote(repo, DEFAULT_REMOTE, shown)
            for lender in borrow:
                from modelgit.repo.exchange.borrow import add as add_lender

                add_lender(repo, lender, progress=progress)
            fetch_from(repo, transport, DEFAULT_REMOTE, prune=False, fisher=fisher, progress=progress)
            tip = repo.view().refs.get(f"remotes/{DEFAULT_REMOTE}/{wanted}")
            if tip is not None:
                adopt(repo, tip, f"clone: {shown}", progress)
            elif state.view.refs:
                raise NothingToDo(f"{url} has no branch {wanted}", hint="`mgit clone URL --branch NAME`")
        except (MgitError, KeyboardInterrupt, OSError):
            _discard(target, existed)
            raise
    finally:
        transport.close()
    return repo


def _discard(target: Path, existed: bool) -> None:
    if existed:
        for entry in target.iterdir():
            with contextlib.suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    else:
        shutil.rmtree(target, ignore_errors=True)
