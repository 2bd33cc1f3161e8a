"""`mgit mask verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.errors import CheckFailed

if TYPE_CHECKING:
    from modelgit.repo.patches.mask_verify import MaskVerification, Strayed

__all__ = ["mask_verify"]

_SHOWN = 20
_WORDS = {
    "missing": "not there",
    "new": "not in the base",
    "shape": "another shape or type",
}


@command("verify", example="mgit mask verify latest main..refunds --run runs/refunds.journal")
@click.argument("name", metavar="ID")
@click.argument("targets", nargs=-1, shell_complete=complete_revision, metavar="[A..B | REV | CHECKPOINT]...")
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="JOURNAL",
    help="Check every step that a run's journal tells of; may be repeated.",
)
@click.option(
    "--base", shell_complete=complete_revision, metavar="REV", help="Compare with REV (A; the parent; else HEAD)."
)
@json_option
@pass_session
def mask_verify(
    session: Session, name: str, targets: tuple[str, ...], runs: tuple[Path, ...], base: str | None, as_json: bool
) -> None:
    """Prove that nothing outside a mask changed: in commits, in checkpoint directories, at each step of a run.

    Everything is compared bit for bit with the base. Without a target it is HEAD that is checked against its parent.
    Exit code 1 when a value outside the mask differs.
    """
    from modelgit.repo.patches.mask_verify import verify_mask

    found = verify_mask(session.repository, name, targets=targets, runs=runs, base=base, progress=session.progress)
    output = session.output
    if as_json:
        output.json("mgit.mask-verify/1", {**plain_data(found), "sound": not found.violations})
    else:
        output.line("mask ", yellow(found.mask.short), "  base ", yellow(found.base.short), f"  {_checked(found)}")
        if found.unfinished:
            output.say(dim("  the journal has no last line: its run was cut off, or goes on"))
        if found.unknown:
            names = f"{found.unknown[0]}{'' if len(found.unknown) == 1 else ', …'}"
            output.say(
                dim(
                    f"  {plural(len(found.unknown), 'tensor')} stayed as at the start and the base has no such: {names}"
                )
            )
        rows = [_row(items) for items in _stretches(found.violations)]
        output.lines(columns(rows[:_SHOWN]))
        if len(rows) > _SHOWN:
            output.line(dim(f"… and {len(rows) - _SHOWN} more (`--json` lists all)"))
    if found.violations:
        raise _error(found)
    if not as_json:
        output.say("Nothing outside the mask changed")


def _checked(found: MaskVerification) -> str:
    steps = f"{found.steps} of {plural(found.steps_made, 'step')}" if found.steps_made else ""
    parts = [plural(found.commits, "commit") if found.commits else "", steps]
    parts.append(plural(found.checkpoints, "checkpoint") if found.checkpoints else "")
    return ", ".join(part for part in parts if part) + " checked"


def _stretches(violations: tuple[Strayed, ...]) -> list[list[Strayed]]:
    """Violations of following steps that say the same, together: a leak stays until somebody takes it back."""
    found: list[list[Strayed]] = []
    for item in violations:
        last = next((items for items in reversed(found) if items[-1].tensor == item.tensor), None)
        before = last[-1] if last is not None else None
        follows = before is not None and 0 < _step(before) == _step(item) - 1
        if last is not None and before is not None and follows and before[2:] == item[2:]:
            last.append(item)
        else:
            found.append([item])
    return found


def _step(item: Strayed) -> int:
    return int(item.where.removeprefix("step ")) if item.where.startswith("step ") else -1


def _row(items: list[Strayed]) -> list[Part]:
    item = items[0]
    what = _WORDS.get(item.why) or (plural(item.values, "value") if item.values else "at least 1 value")
    if not item.tensor and item.why == "missing":
        what = "no line in the journal"
    where = item.where if len(items) == 1 else f"steps {_step(item)} to {_step(items[-1])}"
    return [red("outside "), yellow(where), item.tensor or dim("(some tensor)"), what]


def _error(found: MaskVerification) -> CheckFailed:
    first = found.violations[0]
    places = len({item.where for item in found.violations})
    more = f", and at {places - 1} more" if places > 1 else ""
    return CheckFailed(
        f"{first.tensor or 'the model'} differs outside of mask {found.mask.short} at {first.where}{more}",
        hint="`mgit restore` brings back what is committed; training under `freeze_outside` cannot leave the mask",
    )
