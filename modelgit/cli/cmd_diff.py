"""`mgit diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._errors import Quit
from modelgit.cli._options import SEED, command, json_option, pass_session
from modelgit.cli._output import Output, Part, columns, dim, plain_data
from modelgit.cli._session import Session
from modelgit.errors import UnknownRevision, UsageError
from modelgit.reporting.wording import amount, change, share

if TYPE_CHECKING:
    from modelgit.objects.diffs import ModelDiff
    from modelgit.repo.history.samples import Prompts

__all__ = ["diff"]


@command("diff", example="mgit diff main~1 main --html diff.html")
@click.argument("old", required=False, shell_complete=complete_revision, metavar="[A]")
@click.argument("new", required=False, shell_complete=complete_revision, metavar="[B]")
@click.option("--stat", is_flag=True, help="One line for each tensor, in place of the map.")
@click.option("--fisher", is_flag=True, help="Say what the change does to the outputs: KL divergence, Fisher mass.")
@click.option("--task", metavar="NAME", help="With --fisher, --samples: the task of mgit.toml (the only one).")
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="N",
    help="With --fisher: how many examples.",
)
@click.option(
    "--samples",
    metavar="FILE",
    help="Show what both sides answer to the prompts of a .jsonl file: generated text, or predictions.",
)
@click.option(
    "--n-tokens",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    metavar="N",
    help="With --samples: tokens of a language model at most.",
)
@click.option(
    "--seed",
    type=SEED,
    metavar="N",
    default=0,
    show_default=True,
    help="With --samples: the seed, the same for both sides.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.7,
    show_default=True,
    metavar="T",
    help="With --samples: how freely tokens are drawn; 0 takes the most likely one.",
)
@click.option("--html", metavar="FILE", help="Write the report as one self-contained file, too.")
@click.option("--no-index", is_flag=True, help="A and B are checkpoint files or directories; no repository is needed.")
@click.option("--exit-code", is_flag=True, help="End with 1 if anything differs.")
@json_option
@pass_session
def diff(
    session: Session,
    old: str | None,
    new: str | None,
    stat: bool,
    fisher: bool,
    task: str | None,
    examples: int,
    samples: str | None,
    n_tokens: int,
    seed: int,
    temperature: float,
    html: str | None,
    no_index: bool,
    exit_code: bool,
    as_json: bool,
) -> None:
    """Compare A with B, tensor by tensor; without B, with the work tree; without A, the current commit.

    Only tensors whose ids differ are read.  The map shows where in the model the change lies; a block is as high as
    the change.  `A..B` is A and B.

    --fisher runs both sides on a task's test data: how far the outputs move (KL divergence), which layers and tensors
    carry it, which predictions change.  --samples puts their answers next to each other; both are drawn with the same
    random numbers, so that what differs is the model.
    """
    if old is not None and new is None and ".." in old and not no_index:
        if "..." in old:
            raise UsageError("`A...B` is not supported", hint="`mgit diff A B` compares the two")
        old, _, new = (part or "HEAD" for part in old.partition(".."))
    if task is not None and not fisher and samples is None:
        raise UsageError("--task goes with --fisher or --samples", hint="`mgit diff --fisher --task NAME`")
    if no_index:
        found = _compare_paths(session, old, new, computes=fisher or samples is not None)
    else:
        asked = None
        if samples is not None:
            from modelgit.repo.history.samples import Prompts

            asked = Prompts(session.path(samples), n_tokens, temperature, seed, shown=samples)
        found = _compare_revisions(session, old, new, fisher=fisher, task=task, examples=examples, prompts=asked)
    output = session.output
    if as_json:
        output.json("mgit.diff/1", _document(found))
    else:
        output.hold()
        _print(output, found, stat=stat)
        output.release()
    if html is not None:
        from modelgit.cli._reports import write_report
        from modelgit.reporting.html import diff_html

        write_report(session.path(html), diff_html(found))
        output.say(f"wrote {html} (self-contained)")
    if exit_code and found:
        raise Quit(1)


def _compare_revisions(
    session: Session,
    old: str | None,
    new: str | None,
    *,
    fisher: bool,
    task: str | None,
    examples: int,
    prompts: Prompts | None,
) -> ModelDiff:
    from modelgit.repo.history.diff import diff as compare

    repo = session.repository
    try:
        return compare(
            repo,
            old,
            new,
            fisher=fisher,
            task=task,
            examples=examples,
            prompts=prompts,
            progress=session.progress,
        )
    except UnknownRevision as error:
        if any(text is not None and session.path(text).exists() for text in (old, new)):
            raise UnknownRevision(
                error.message,
                hint="`mgit diff` compares whole commits; --stat lists every tensor; --no-index takes paths",
            ) from None
        raise


def _compare_paths(session: Session, old: str | None, new: str | None, *, computes: bool) -> ModelDiff:
    from modelgit.repo.history.diff import diff_files

    if old is None or new is None:
        raise UsageError("--no-index compares two paths", hint="`mgit diff --no-index A B`")
    if computes:
        raise UsageError("--fisher and --samples need a task of a repository", hint="leave out --no-index, or these")
    return diff_files(Path(old), Path(new), cwd=session.environment.cwd, progress=session.progress)


def _print(output: Output, found: ModelDiff, *, stat: bool) -> None:
    from modelgit.reporting.behaviour_text import behaviour_lines
    from modelgit.reporting.diff_text import diff_lines, nonfinite_lines, summary_line
    from modelgit.reporting.samples import sample_lines

    if not stat:
        for line in diff_lines(found, width=output.width):
            output.line(line)
        return
    for model in found.models:
        output.line(summary_line(found, model))
        output.lines(columns(_rows(found, model), right=[1, 2, 3], indent=2))
        for line in nonfinite_lines(found.of(model)):
            output.line(line)
    output.lines([[f"{file.path}  ", dim(file.kind)] for file in found.files])
    if found.behaviour is not None:
        for line in behaviour_lines(found, found.behaviour, width=output.width):
            output.line(line)
    if found.samples is not None:
        for line in sample_lines(found, found.samples, width=output.width):
            output.line(line)


def _rows(found: ModelDiff, model: str) -> list[list[Part]]:
    rows: list[list[Part]] = []
    for tensor in found.of(model):
        if tensor.values_changed is None:
            rows.append([tensor.name, amount(tensor.elements), "", "", dim(tensor.kind)])
            continue
        part = share(tensor.values_changed, tensor.elements)
        rows.append([tensor.name, amount(tensor.values_changed), part, change(tensor.relative_norm), dim(tensor.kind)])
    return rows


def _document(found: ModelDiff) -> dict[str, object]:
    """The diff without the sizes of untouched tensors, and with the totals that they are for."""
    document: dict[str, object] = {name: value for name, value in plain_data(found).items() if name != "sizes"}
    document["models"] = [
        {
            "path": model,
            "tensors_changed": len(found.of(model)),
            "values_changed": found.values_changed(model),
            "elements": found.elements(model),
            "relative_norm": found.relative_norm(model),
        }
        for model in found.models
    ]
    return document
