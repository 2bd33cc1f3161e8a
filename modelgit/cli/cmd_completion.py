"""`mgit completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session
from modelgit.errors import UsageError

__all__ = ["completion"]


@command("completion", example='eval "$(mgit completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_session
def completion(session: Session, shell: str) -> None:
    """Print a script that completes commands, options and branches in SHELL; evaluate it in your shell's start file."""
    from modelgit.cli.main import mgit

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}", hint="`mgit completion bash`")
    session.output.raw(found(mgit, {}, "mgit", "_MGIT_COMPLETE").source())
