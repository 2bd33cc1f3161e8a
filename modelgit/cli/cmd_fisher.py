"""`mgit fisher`."""

from __future__ import annotations

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data, yellow
from modelgit.cli._session import Session
from modelgit.errors import UsageError

__all__ = ["fisher"]


@command("fisher", example="mgit fisher main --task intents --examples 512")
@click.argument("revision", required=False, shell_complete=complete_revision, metavar="[REV]")
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
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of what is drawn.")
@click.option("--list", "only_list", is_flag=True, help="List the estimates that are kept.")
@json_option
@pass_session
def fisher(
    session: Session,
    revision: str | None,
    task: str | None,
    estimator: str,
    examples: int,
    seed: int,
    only_list: bool,
    as_json: bool,
) -> None:
    """Estimate the diagonal Fisher information of a task's model at REV (the current commit), on its training data.

    Masks, merges and `mgit diff --fisher` use it.  It is kept by weights and data: the second time it costs nothing.
    """
    from modelgit.repo.fisher import estimate_fisher, list_estimates

    repo, output = session.repository, session.output
    if only_list:
        if revision is not None or task is not None:
            raise UsageError("--list takes neither REV nor --task", hint="`mgit fisher --list`")
        found = list_estimates(repo)
        if as_json:
            items = [{"id": item.id, **_without_tensors(plain_data(item.estimate))} for item in found]
            output.json("mgit.fisher/1", {"estimates": items})
            return
        rows: list[list[Part]] = [
            [
                yellow(item.id.short),
                item.estimate.task,
                item.estimate.model,
                item.estimate.estimator,
                plural(item.estimate.examples, "example"),
                dim(f"tree {item.estimate.of.short}"),
            ]
            for item in found
        ]
        output.lines(columns(rows))
        return
    made = estimate_fisher(
        repo,
        task=task,
        revision=revision or "HEAD",
        estimator=estimator,
        examples=examples,
        seed=seed,
        progress=session.progress,
    )
    if as_json:
        document = {"id": made.id, "cached": made.cached, **_without_tensors(plain_data(made.estimate))}
        output.json("mgit.fisher/1", document)
        return
    estimate = made.estimate
    count = sum(entry.spec.elements for entry in estimate.diagonal)
    how = f"{estimate.estimator}, {plural(estimate.examples, 'example')} of task {estimate.task}"
    output.say("fisher ", yellow(made.id.short), f"  {plural(count, 'value')} of {estimate.model}, {how}")
    if made.cached:
        output.say("  kept from an earlier run")


def _without_tensors(document: dict[str, object]) -> dict[str, object]:
    """The record without its list of tensors, which is as long as the model's."""
    return {name: value for name, value in document.items() if name != "diagonal"}
