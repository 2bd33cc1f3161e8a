"""`mgit hooks`."""

from __future__ import annotations

import sys

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._options import command, group, pass_session
from modelgit.cli._output import blue, dim
from modelgit.cli._session import Session
from modelgit.errors import UsageError

__all__ = ["hooks"]


@group("hooks", example="mgit hooks install --pre-push")
def hooks() -> None:
    """Run checks from the hooks of git, where the repository lies in one of git's as well."""


@command("install", example="mgit hooks install --dry-run")
@click.option("--pre-push", is_flag=True, help="Before `git push` check the current commit, too (without suites).")
@click.option(
    "--base",
    default="origin/main",
    show_default=True,
    shell_complete=complete_revision,
    metavar="REF",
    help="With --pre-push: what the update is to land on.",
)
@click.option("--uninstall", is_flag=True, help="Take the blocks of mgit out of all hooks.")
@click.option("--dry-run", is_flag=True, help="Show what would be written; write nothing.")
@pass_session
def install(session: Session, pre_push: bool, base: str, uninstall: bool, dry_run: bool) -> None:
    """Add a marked block to git's pre-commit hook that checks mgit.toml and the suites.

    A hook that is there stays: a shell script gets the block after its first line, anything else is refused.
    --uninstall gives back the hook as it was.
    """
    from modelgit.integrations.git_hooks import apply_changes, plan_install, plan_uninstall

    if uninstall and pre_push:
        raise UsageError("--uninstall takes no --pre-push", hint="`mgit hooks install --uninstall`")
    root = session.repository.worktree
    commands = {"pre-commit": ["eval", "lint"]}
    if pre_push:
        commands["pre-push"] = ["check", "--base", base, "--no-suites"]
    changes = plan_uninstall(root) if uninstall else plan_install(root, commands, python=sys.executable)
    output = session.output
    for change in changes:
        word = "remove" if change.after is None else "make" if change.before is None else "change"
        if dry_run:
            output.line(dim(f"would {word} "), blue(change.path))
            for line in (change.after or "").splitlines():
                output.line("  ", line)
    if not dry_run:
        apply_changes(changes)
        for change in changes:
            done = "Removed" if change.after is None else "Made" if change.before is None else "Changed"
            output.say(f"{done} ", blue(change.path))
    if not changes:
        output.say(
            "Nothing to do: " + ("no hook holds a block of mgit" if uninstall else "the hooks are as they should be")
        )


hooks.add_command(install)
