"""`remote`: the repositories that this one knows by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelgit.config.edit import set_value, unset_value
from modelgit.errors import RepositoryError, UsageError
from modelgit.objects.refs import check_ref_name
from modelgit.remotes.base import Transport, open_transport
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["DEFAULT_REMOTE", "add_remote", "open_remote", "remotes", "remove_remote"]

DEFAULT_REMOTE = "origin"


def remotes(repo: Repository) -> dict[str, str]:
    """URLs by name."""
    return {name: remote.url for name, remote in sorted(repo.settings.remote.items())}


def add_remote(repo: Repository, name: str, url: str) -> None:
    """Remember a remote.  Raises UsageError for a bad name or URL, RepositoryError when the name is taken."""
    check_ref_name(name, what="remote")
    if "/" in name:
        raise UsageError(f"a remote's name cannot hold a slash: {name}", hint="`mgit remote add NAME URL`")
    if name in repo.settings.remote:
        raise RepositoryError(
            f"remote {name} exists already ({repo.settings.remote[name].url})", hint=f"`mgit remote remove {name}`"
        )
    open_transport(url, environment=repo.environment, relative_to=repo.worktree).close()  # refuses malformed URLs
    value = json.dumps(url, ensure_ascii=False)
    _edit(repo, lambda text: set_value(text, f"remote.{name}.url", value, name=".mgit/config.toml"))


def remove_remote(repo: Repository, name: str) -> None:
    """Forget a remote and its remote-tracking refs."""
    _remote_url(repo, name)
    _edit(repo, lambda text: unset_value(text, f"remote.{name}.url", name=".mgit/config.toml"))
    prefix = f"remotes/{name}/"
    repo.publish(
        lambda view: view.with_refs({ref: tip for ref, tip in view.refs.items() if not ref.startswith(prefix)}),
        f"remote: remove {name}",
    )


def _edit(repo: Repository, edit: Callable[[str], str]) -> None:
    text = repo.paths.config.read_text(encoding="utf-8") if repo.paths.config.exists() else ""
    write_durably(repo.paths.config, edit(text).encode())
    repo.forget_settings()


def _remote_url(repo: Repository, name: str) -> str:
    remote = repo.settings.remote.get(name)
    if remote is None:
        known = ", ".join(sorted(repo.settings.remote))
        raise UsageError(
            f"no remote `{name}`", hint=f"known: {known}" if known else "`mgit remote add origin URL` adds one"
        )
    return remote.url


def open_remote(repo: Repository, name: str) -> Transport:
    """A transport to the remote called `name`."""
    return open_transport(_remote_url(repo, name), environment=repo.environment, relative_to=repo.worktree)
