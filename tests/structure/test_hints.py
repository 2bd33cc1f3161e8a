"""A hint is a command to type: every `mgit ...` in messages and documents must exist, with its options."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from modelgit.cli._commands import COMMANDS
from modelgit.cli._options import Group
from modelgit.cli.main import mgit

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDERS = {"COMMAND", "NAME", "ARGUMENTS"}


def strings(path: Path) -> Iterator[str]:
    """String literals; what an f-string fills in becomes X."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def command_lines() -> dict[str, str]:
    """Everything that is shown as a command line of mgit, and where."""
    texts = [(path, text) for path in sorted((ROOT / "modelgit").rglob("*.py")) for text in strings(path)]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts += [(page, page.read_text(encoding="utf-8")) for page in pages]
    found: dict[str, str] = {}
    for path, text in texts:
        for line in [*re.findall(r"`mgit ([^`\n]+)`", text), *re.findall(r"^\$ mgit (.+)$", text, re.MULTILINE)]:
            found.setdefault(line, path.relative_to(ROOT).as_posix())
    return found


def problem(line: str) -> str | None:
    name, *rest = line.split()
    if name in PLACEHOLDERS or name in ("X", "repository,") or name.startswith("-"):
        return None
    if name not in COMMANDS:
        return f"no command {name}"
    context = click.Context(mgit, info_name="mgit")
    command = mgit.get_command(context, name)
    assert command is not None
    implied = command.default if isinstance(command, Group) and command.implied else None
    if isinstance(command, click.Group) and rest and (implied or not rest[0].startswith("-")):
        command = command.get_command(context, rest[0]) or (command.get_command(context, implied) if implied else None)
        if command is None:
            return f"no command {name} {rest[0]}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.split("=")[0].rstrip(",") for word in rest]
    unknown = [word for word in options if re.fullmatch(r"--?[a-zA-Z][a-z-]*", word) and word not in {*known, "--help"}]
    return f"no option {unknown[0]}" if unknown else None


def test_commands_in_messages_and_documents_exist() -> None:
    lines = command_lines()
    assert len(lines) > 100
    wrong = {line: f"{problem(line)} ({where})" for line, where in lines.items() if problem(line)}
    assert wrong == {}
