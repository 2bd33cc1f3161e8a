"""`mgit show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._commits import note_rows, verdict_lines
from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural, size
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, bold, columns, dim, green, plain_data, red, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_log import full_entry
from modelgit.reporting.wording import amount, share

if TYPE_CHECKING:
    from modelgit.objects import FileChange, Manifest, TensorChange
    from modelgit.repo.history.encodings import TensorEncoding
    from modelgit.repo.history.log import LogEntry

__all__ = ["show"]

_MARKS: dict[str, Part] = {
    "added": green("A"),
    "removed": red("D"),
    "changed": yellow("M"),
    "respecified": yellow("T"),
}
_WORDS = {"respecified": "another dtype or shape"}


@command("show", example="mgit show main~1")
@click.argument("revision", required=False, default="HEAD", shell_complete=complete_revision, metavar="[REV]")
@click.option("--storage", is_flag=True, help="Show how each tensor that changed is stored, and why; reads samples.")
@json_option
@pass_session
def show(session: Session, revision: str, storage: bool, as_json: bool) -> None:
    """Show a commit (the current one, if none is named): message, verdicts and notes, what it changed, and its files.

    Reads no weights, unless asked how they are stored.
    """
    from modelgit.repo.gates.gate import recorded_verdicts
    from modelgit.repo.history.log import log
    from modelgit.repo.tracking.training import training_of

    repo, output = session.repository, session.output
    [entry] = log(repo, revision, limit=1)
    manifest = repo.manifest_at(entry.commit.manifest)
    verdicts = recorded_verdicts(repo, entry.id)
    if storage:
        _show_storage(session, entry, as_json)
        return
    if as_json:
        output.json(
            "mgit.show/1", {**plain_data(entry), "evaluations": plain_data(verdicts), "tree": plain_data(manifest)}
        )
        return
    output.hold()
    output.lines(full_entry(entry))
    output.lines(verdict_lines(verdicts, baseline=next(iter(entry.commit.parents), None), indent=4))
    if entry.attested:
        _section(session, "attestations", note_rows(entry.attested))
    if entry.patch.base is not None and entry.patch.tensors:
        _section(session, "tensors", [_tensor(change) for change in entry.patch.tensors])
    if entry.patch.base is not None and entry.patch.files:
        _section(session, "files", [_file(change) for change in entry.patch.files])
    _section(session, "tree", _tree(manifest))
    training = training_of(repo, entry.id)
    if training.is_absent:
        _section(session, "training state", [[dim("not kept here: it expired, or was never fetched")]])
    elif training.id is not None:
        _section(session, "training state", _tree(training.manifest))
    output.release()


def _show_storage(session: Session, entry: LogEntry, as_json: bool) -> None:
    from modelgit.repo.history.encodings import encodings

    found = encodings(session.repository, entry.id, progress=session.progress)
    output = session.output
    if as_json:
        output.json("mgit.storage/1", {"commit": entry.id.hex, "tensors": plain_data(found)})
        return
    stored, raw = sum(item.stored_bytes for item in found), sum(item.raw_bytes for item in found)
    output.hold()
    output.line("commit ", yellow(entry.id.short), f"  {entry.commit.subject}")
    ratio = f", {raw / stored:.2f}x" if stored else ""
    output.line(dim(f"{plural(len(found), 'tensor')} added or changed: {size(raw)} stored in {size(stored)}{ratio}"))
    _section(session, "tensors", [_encoding(item) for item in found])
    output.release()


def _encoding(item: TensorEncoding) -> list[Part]:
    against = "whole"
    if item.base is not None:
        at = f"@{item.base_commit.short}" if item.base_commit is not None else ""
        against = f"against {'' if item.base == item.name else item.base}{at}"
    if item.mask is not None:
        against += f" under {item.mask.KIND} {item.mask.short}"
    ratio = f"{item.raw_bytes / item.stored_bytes:.2f}x" if item.stored_bytes else ""
    reading = f"{plural(item.depth, 'base')} below, read in {item.cost:.2f} passes"
    return [
        f"{item.model}:{item.name}", item.codec, against, size(item.stored_bytes), ratio, dim(reading), dim(item.reason)
    ]  # fmt: skip


def _section(session: Session, title: str, rows: list[list[Part]]) -> None:
    session.output.line()
    session.output.line(bold(title))
    session.output.lines(columns(rows, indent=2))


def _tensor(change: TensorChange) -> list[Part]:
    values = ""
    if change.values_changed is not None:
        part = share(change.values_changed, change.elements)
        values = f"{amount(change.values_changed)} of {amount(change.elements)} values ({part})"
    return [
        _MARKS.get(change.kind, "?"),
        f"{change.model}:{change.name}",
        values or dim(_WORDS.get(change.kind, change.kind)),
    ]


def _file(change: FileChange) -> list[Part]:
    return [_MARKS.get(change.kind, "?"), change.path]


def _tree(manifest: Manifest) -> list[list[Part]]:
    layouts = {path: model for model in manifest.models for path in model.weights}
    rows: list[list[Part]] = []
    for entry in manifest.files:
        model = layouts.get(entry.path)
        rows.append([entry.path, size(entry.size), dim(f"weights of {model.path}") if model else ""])
    return rows
