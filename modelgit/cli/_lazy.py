"""The top of the command tree: names and one-line helps in a table, modules imported when a command is run.

`mgit --help`, completion of command names and did-you-mean read the table only, so that they cost no imports.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click

from modelgit.cli._errors import Quit
from modelgit.cli._options import Group

__all__ = ["Entry", "LazyGroup"]

_EXTERNAL_NAME = re.compile(r"[a-z][a-z0-9-]*\Z")


class Entry(NamedTuple):
    """A command that is not imported yet: where it is, what it does, under which heading it is listed."""

    target: str
    help: str
    section: str


class LazyGroup(Group):
    """A group whose commands are looked up in a table of entries, then among `mgit-NAME` executables on PATH."""

    def __init__(
        self,
        *arguments: Any,
        entries: Mapping[str, Entry],
        foreign: Mapping[str, str] | None = None,
        external: Callable[[str], str | None] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.entries = entries
        self.foreign = foreign or {}
        self._external = external or _find_external

    def list_commands(self, context: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """The names of built-in commands, in the order of the table."""
        return list(self.entries)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command called `name`, or wrap an executable; None when there is neither."""
        entry = self.entries.get(name)
        if entry is not None:
            module_name, _, attribute = entry.target.partition(":")
            found: click.Command = getattr(importlib.import_module(module_name), attribute)
            return found
        path = self._external(name)
        return _external_command(name, path) if path else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands under their headings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.entries.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        # One width for all sections, so that the page reads as one table.
        widest = max(len(name) for name in self.entries)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl([(f"{name:<{widest}}", text) for name, text in rows])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[Any]:
        """Complete the names of commands without importing them."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry.help) for name, entry in self.entries.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, context, incomplete)


def _find_external(name: str) -> str | None:
    """The executable `mgit-NAME` on PATH, if there is one."""
    if not _EXTERNAL_NAME.match(name):
        return None
    import shutil

    return shutil.which(f"mgit-{name}")


def _external_command(name: str, path: str) -> click.Command:
    """A command that hands all of its arguments to an executable and ends with its exit code."""

    @click.command(
        name,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        add_help_option=False,
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_obj
    def run_external(session: Any, arguments: tuple[str, ...]) -> None:
        import subprocess

        done = subprocess.run([path, *arguments], cwd=session.environment.cwd, check=False)
        # A program that died of a signal reports what a shell would.
        raise Quit(done.returncode if done.returncode >= 0 else 128 - done.returncode)

    return run_external
