"""Completion of branches, tags and remotes: metadata of the repository around the current directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import MgitError

if TYPE_CHECKING:
    import click

    from modelgit.cli._session import Session
    from modelgit.objects import View

__all__ = ["complete_branch", "complete_remote", "complete_revision", "complete_tag"]


def _view(context: click.Context) -> View | None:
    session: Session = context.obj
    try:
        return session.repository.view()
    except MgitError:
        return None  # outside of a repository there is nothing to offer, and a prompt is no place for an error


def _names(context: click.Context, incomplete: str, *prefixes: str) -> list[str]:
    view = _view(context)
    names = {ref[len(prefix) :] for ref in (view.refs if view else ()) for prefix in prefixes if ref.startswith(prefix)}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_branch(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of branches."""
    return _names(context, incomplete, "heads/")


def complete_tag(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of tags."""
    return _names(context, incomplete, "tags/")


def complete_revision(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of branches, tags and remote branches."""
    return _names(context, incomplete, "heads/", "tags/", "remotes/")


def complete_remote(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of remotes."""
    session: Session = context.obj
    try:
        names = session.repository.settings.remote
    except MgitError:
        return []
    return sorted(name for name in names if name.startswith(incomplete))
