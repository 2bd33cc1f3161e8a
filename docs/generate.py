"""Writes docs/commands.md from the program itself: `python docs/generate.py`.  A test compares the two."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import click

from modelgit.cli._commands import COMMANDS
from modelgit.cli.main import mgit

HEAD = """# Commands

Made from the program by `python docs/generate.py`; `mgit COMMAND --help` shows the same.

Data go to stdout, words and progress to stderr. `--json` prints one document with a versioned schema. Exit codes are in
[errors](errors.md). An executable `mgit-NAME` on `PATH` is run as `mgit NAME`.

"""


def commands_page() -> str:
    """The whole page."""
    context = click.Context(mgit, info_name="mgit")
    parts = [HEAD, _contents(), _common(context)]
    section = ""
    for name, entry in COMMANDS.items():
        if entry.section != section:
            section = entry.section
            parts.append(f"## {section}\n\n")
        command = mgit.get_command(context, name)
        if command is None:
            raise SystemExit(f"`mgit {name}` is in the table of commands and cannot be imported")
        parts += _command(command, click.Context(command, info_name=name, parent=context), level=3)
    return "".join(parts).rstrip() + "\n"


def _contents() -> str:
    rows = [f"| [`{name}`](#mgit-{name}) | {entry.help} |\n" for name, entry in COMMANDS.items()]
    return "| | |\n|---|---|\n" + "".join(rows) + "\n"


def _common(context: click.Context) -> str:
    return "## Common options\n\nBefore the command or after it.\n\n" + _table(mgit.common, context)


def _command(command: click.Command, context: click.Context, *, level: int) -> list[str]:
    usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    parts = [f"{'#' * level} {context.command_path}\n\n", f"```text\n{usage}\n```\n\n"]
    text = textwrap.dedent(inspect.cleandoc(command.help or "")).replace("\b\n", "")
    if not text:
        raise SystemExit(f"`{context.command_path}` has no help")
    parts.append(f"{text}\n\n")
    example = getattr(command, "example", "")
    if example:
        parts.append(f"```sh\n{example}\n```\n\n")
    common = getattr(command, "common", [])
    options = [option for option in command.params if isinstance(option, click.Option) and option not in common]
    if options:
        parts.append(_table(options, context))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                parts += _command(child, click.Context(child, info_name=name, parent=context), level=level + 1)
    return parts


def _table(options: list[click.Option], context: click.Context) -> str:
    rows = []
    for option in options:
        record = option.get_help_record(context)
        if record is None:
            continue
        names, text = record
        if not text:
            raise SystemExit(f"`{context.command_path} {names}` has no help")
        rows.append(f"| `{_cell(names)}` | {_cell(text)} |\n")
    return "| option | |\n|---|---|\n" + "".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    target = Path(__file__).with_name("commands.md")
    target.write_text(commands_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
