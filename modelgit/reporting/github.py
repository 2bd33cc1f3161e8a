"""Reports as workflow commands of GitHub actions: annotations of a run."""

from __future__ import annotations

from collections.abc import Sequence

from modelgit.reporting.entries import Entry, Group, Level

__all__ = ["annotation_lines"]

# Of each kind GitHub shows ten for a step and drops the rest without a word.
_SHOWN = 10
_COMMANDS: dict[Level, str] = {"error": "error", "warning": "warning", "note": "notice"}
_MAX_MESSAGE = 3000
_MAX_TITLE = 200


def annotation_lines(groups: Sequence[Group]) -> list[str]:
    """`::error file=F,title=T::MESSAGE` for what keeps a change out, `::warning` for warnings, `::notice` for notes.

    No more than GitHub shows; the last one of each says how many were left out.
    """
    lines: list[str] = []
    for level, command in _COMMANDS.items():
        found = [(group, entry) for group in groups for entry in group.entries if entry.level == level]
        shown = found if len(found) <= _SHOWN else found[: _SHOWN - 1]
        lines += [_annotation(command, group, entry) for group, entry in shown]
        if len(found) > len(shown):
            lines.append(f"::{command} title=mgit::and {len(found) - len(shown):,} more; the summary lists them")
    if not lines:
        checked = sum(len(group.entries) for group in groups)
        lines.append(f"::notice title=mgit::{checked:,} checks passed")
    return lines


def _annotation(command: str, group: Group, entry: Entry) -> str:
    place = {"file": entry.file} if entry.file else {}
    properties = {**place, "title": f"mgit {group.name}: {entry.name}"[:_MAX_TITLE]}
    shown = ",".join(f"{name}={_escaped(value, '%:,')}" for name, value in properties.items())
    text = entry.text
    if len(text) > _MAX_MESSAGE:
        text = text[:_MAX_MESSAGE] + "…"
    return f"::{command} {shown}::{_escaped(text, '%')}"


def _escaped(text: str, special: str) -> str:
    """As the runner reads it back; a line break that is not escaped would begin another command."""
    return "".join(f"%{ord(c):02X}" if c in "\r\n" or c in special else c for c in text)
