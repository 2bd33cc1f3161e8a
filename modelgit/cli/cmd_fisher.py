"""`mgit fisher`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural, size
from modelgit.cli._options import SEED, command, group, json_option, pass_session
from modelgit.cli._output import Part, blue, columns, dim, plain_data, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError
from modelgit.reporting.wording import amount, share

if TYPE_CHECKING:
    from modelgit.repo.patches.fisher import StoredFisher
    from modelgit.repo.patches.fisher_summary import FisherSummary, Mass

__all__ = ["fisher"]

_SHOWN = 10
_LISTS = {"diagonal", "scales", "grams"}


@group("fisher", default="make", implied=True, example="mgit fisher main --task intents --examples 512")
def fisher() -> None:
    """Estimate the diagonal Fisher information of a task's model: how strongly its outputs depend on each weight.

    Masks, merges and `mgit diff --fisher` use it.  `mgit fisher REV` is short for `mgit fisher make REV`.
    """


@command("make", example="mgit fisher make main --task intents --examples 512")
@click.argument("revision", default="HEAD", shell_complete=complete_revision, metavar="[REV]")
@click.option("--task", metavar="NAME", help="The task of mgit.toml (the only one).")
@click.option(
    "--estimator",
    type=click.Choice(["auto", "exact", "rademacher", "sampled", "empirical"]),
    default="auto",
    show_default=True,
    help="How the expectation over labels is taken; exact sums over all classes.",
)
@click.option(
    "--examples", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="How many examples."
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Of what is drawn.")
@click.option(
    "--settle",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    metavar="SHARE",
    help="End early when the top 0.5 % by two halves of the examples overlap by SHARE, twice in a row.",
)
@click.option("--no-early-stop", is_flag=True, help="Look at all N examples, whether or not the ranking has settled.")
@click.option(
    "--gram", "grams", is_flag=True, help="Also keep Gram matrices of what goes into linear layers (regmean, mats)."
)
@click.option("--exact-storage", is_flag=True, help="Keep float32 values in place of one byte a weight.")
@json_option
@pass_session
def fisher_make(
    session: Session,
    revision: str,
    task: str | None,
    estimator: str,
    examples: int,
    seed: int,
    settle: float,
    no_early_stop: bool,
    grams: bool,
    exact_storage: bool,
    as_json: bool,
) -> None:
    """Estimate it at REV (the current commit), on the task's training data, and keep it.

    It is kept by weights and data: the second time it costs nothing.  A pass that was interrupted goes on where it was.
    """
    from modelgit.repo.patches.fisher import estimate_fisher

    made = estimate_fisher(
        session.repository,
        task=task,
        revision=revision,
        estimator=estimator,
        examples=examples,
        seed=seed,
        exact_storage=exact_storage,
        grams=grams,
        settle=None if no_early_stop else settle,
        progress=session.progress,
    )
    output = session.output
    if as_json:
        document = {**_document(made), "cached": made.cached, "resumed": made.resumed}
        output.json("mgit.fisher/1", document)
        return
    output.say(*_heading(made))
    if made.cached:
        output.say(f"  {_source(made)}")
    else:
        went_on = f"; went on from {plural(made.resumed, 'example')} of an interrupted pass" if made.resumed else ""
        output.say(f"  stored in {size(made.bytes_written)}{went_on}")
    output.say_lines([[f"  {line}"] for line in _settled(made)])


@command("show", example="mgit fisher show main")
@click.argument("name", default="HEAD", shell_complete=complete_revision, metavar="[REV|ID]")
@click.option("--task", metavar="NAME", help="Only estimates of this task of mgit.toml (any).")
@click.option("--tensors", "all_tensors", is_flag=True, help="List every tensor, not the ten that matter most.")
@json_option
@pass_session
def fisher_show(session: Session, name: str, task: str | None, all_tensors: bool, as_json: bool) -> None:
    """Show where an estimate's mass lies: the newest of the weights at REV (the current commit), or the one called ID.

    ID may be shortened; `latest` is the newest estimate.
    """
    from modelgit.repo.patches.fisher import shown_fisher
    from modelgit.repo.patches.fisher_summary import summarise

    repo, output = session.repository, session.output
    found = shown_fisher(repo, name, task=task)
    summary = summarise(repo, found.estimate)
    if as_json:
        document = {**_document(found), "settled": found.estimate.settled, "summary": plain_data(summary)}
        output.json("mgit.fisher-summary/1", document)
        return
    output.line(*_heading(found))
    output.line(f"  {_source(found)}; data {found.estimate.data[:12]}, seed {found.estimate.seed}")
    output.lines([[f"  {line}"] for line in _settled(found)])
    output.lines([[f"  {line}"] for line in _summary(found, summary)])
    output.line()
    output.lines(_masses("layer", summary.layers))
    output.line()
    shown = summary.tensors if all_tensors else summary.tensors[:_SHOWN]
    output.lines(_masses("tensor", shown))
    if len(shown) < len(summary.tensors):
        output.line(dim(f"  … and {plural(len(summary.tensors) - len(shown), 'more tensor')} (--tensors lists them)"))


@command("list", example="mgit fisher list")
@json_option
@pass_session
def fisher_list(session: Session, as_json: bool) -> None:
    """List the estimates that this clone keeps, the newest first, and the branches that have their weights."""
    from modelgit.repo.patches.fisher import list_estimates
    from modelgit.repo.statistics import refs_by_weights

    found = list_estimates(session.repository)
    refs = refs_by_weights(session.repository)
    if as_json:
        documents = [{**_document(item), "refs": refs.get(item.estimate.weights, [])} for item in found]
        session.output.json("mgit.fisher-list/1", {"estimates": documents})
        return
    rows: list[list[Part]] = [
        [
            yellow(item.id.short),
            item.estimate.task,
            item.estimate.model,
            item.estimate.estimator,
            plural(item.estimate.examples, "example"),
            f"{len(item.estimate.grams)} Gram" if item.estimate.grams else "",
            blue(", ".join(refs.get(item.estimate.weights, ["-"]))),
            dim(f"from {item.origin}" if item.origin else "made here"),
        ]
        for item in found
    ]
    session.output.lines(columns(rows))


@command("remove", example="mgit fisher remove 5e0a77c1")
@click.argument("name", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Forget all of them, also when their list is damaged.")
@pass_session
def fisher_remove(session: Session, name: str | None, everything: bool) -> None:
    """Forget an estimate; `mgit gc` frees its bytes.  ID may be shortened; `latest` is the newest one."""
    from modelgit.repo.statistics import find_kept, forget, forget_all

    if (name is None) is not everything:
        raise UsageError("name one estimate, or say --all", hint="`mgit fisher list` shows them")
    if name is None:
        forget_all(session.repository)
        session.output.say("Forgot all Fisher estimates")
        return
    kept = find_kept(session.repository, name)
    forget(session.repository, kept)
    session.output.say("Forgot Fisher estimate ", yellow(kept.id.short))


def _document(stored: StoredFisher) -> dict[str, object]:
    """The record without its lists of tensors, which are as long as the model's; `grams` says how many there are."""
    plain = plain_data(stored.estimate)
    return {
        "id": stored.id,
        "origin": stored.origin,
        **{name: value for name, value in plain.items() if name not in _LISTS},
        "grams": len(stored.estimate.grams),
    }


def _heading(stored: StoredFisher) -> list[Part]:
    estimate = stored.estimate
    count = sum(entry.spec.elements for entry in estimate.diagonal)
    how = f"{estimate.estimator}, {plural(estimate.examples, 'example')} of task {estimate.task}"
    if estimate.grams:
        how += f", with Gram matrices of {plural(len(estimate.grams), 'linear layer')}"
    return ["fisher ", yellow(stored.id.short), f"  {plural(count, 'value')} of ", blue(estimate.model), f", {how}"]


def _source(stored: StoredFisher) -> str:
    return f"received from {stored.origin}" if stored.origin else "kept from an earlier run"


def _settled(stored: StoredFisher) -> list[str]:
    """What is known about whether more examples would have changed the ranking."""
    estimate = stored.estimate
    if estimate.criterion is None:
        return []
    asked = share(estimate.criterion, 1)
    if estimate.overlap is None:
        return [f"too few examples to say whether the ranking has settled (asked for: two halves agree by {asked})"]
    early = f", stopped before {estimate.requested}" if estimate.examples < estimate.requested else ""
    verdict = "ranking settled" if estimate.settled else "ranking not settled"
    seen = f"the top 0.5 % by two halves overlap by {share(estimate.overlap, 1)} ({asked} asked for)"
    return [f"{verdict} after {plural(estimate.examples, 'example')}{early}: {seen}"]


def _summary(stored: StoredFisher, summary: FisherSummary) -> list[str]:
    exact = sum(entry.spec.elements for entry in stored.estimate.diagonal if entry.name not in stored.estimate.scales)
    how = (
        "float32"
        if exact == summary.elements
        else "one byte a weight" + (f", {plural(exact, 'weight')} in float32" if exact else "")
    )
    lines = [
        f"trace {summary.trace:.4g}: body {share(summary.body_trace, summary.trace)}, "
        f"head {share(summary.head_trace, summary.trace)}",
        f"zeros {amount(summary.zeros)} ({share(summary.zeros, summary.elements)}): no output depends on these weights",
        f"effective number of weights {amount(round(summary.effective))} of {amount(summary.elements)}",
    ]
    carried = ", ".join(f"{share(float(part), 1)} carry {share(mass, 1)}" for part, mass in summary.top.items())
    lines.append(f"of the body's weights the top {carried} of its trace")
    lines.append(f"stored in {size(summary.stored_bytes)} ({how})")
    return lines


def _masses(what: str, masses: tuple[Mass, ...]) -> list[list[Part]]:
    rows: list[list[Part]] = [[dim(what), dim("of trace"), dim("weights"), dim("zeros"), dim("effective"), ""]]
    whole = 1.0
    rows += [
        [
            mass.name,
            share(mass.share, whole),
            amount(mass.elements),
            share(mass.zeros, mass.elements),
            amount(round(mass.effective)),
            dim("head") if mass.head else "",
        ]
        for mass in masses
    ]
    return columns(rows, right=[1, 2, 3, 4], indent=2)


for _command in (fisher_make, fisher_show, fisher_list, fisher_remove):
    fisher.add_command(_command)
