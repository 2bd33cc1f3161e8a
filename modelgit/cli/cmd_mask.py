"""`mgit mask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import plural
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_mask_verify import mask_verify
from modelgit.errors import UsageError
from modelgit.reporting.wording import amount, share

if TYPE_CHECKING:
    from modelgit.objects import Mask, MaskId

__all__ = ["mask"]


@group("mask", default="list", example="mgit mask create --density 0.5% --task intents")
def mask() -> None:
    """Choose which weights a training run may change (FISH: the most important few by Fisher information)."""


def _density(_: click.Context, __: click.Parameter, text: str) -> float:
    """`0.5%` or `0.005`."""
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UsageError(f"not a density: {text[:40]!r}", hint="`mgit mask create --density 0.5%`")
    return value


@command("create", example="mgit mask create --density 0.5% --task intents")
@click.option("--density", required=True, metavar="SHARE", callback=_density, help="The share to train: 0.5% or 0.005.")
@click.option("--task", metavar="NAME", help="The task of mgit.toml (the only one).")
@click.option(
    "--at", "revision", default="HEAD", shell_complete=complete_revision, metavar="REV", help="At REV (HEAD)."
)
@click.option(
    "--score",
    type=click.Choice(["fisher", "magnitude", "random", "bias"]),
    default="fisher",
    show_default=True,
    help="What makes a weight important.",
)
@click.option(
    "--budget",
    type=click.Choice(["global", "layer"]),
    default="global",
    show_default=True,
    help="Compare weights of the whole model, or take the share of each layer.",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="N",
    help="How many examples a Fisher pass looks at.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of what is drawn.")
@json_option
@pass_session
def mask_create(
    session: Session,
    density: float,
    task: str | None,
    revision: str,
    score: str,
    budget: str,
    examples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Make a mask of the most important weights of a task's model; its head is taken whole.

    Train under it, then commit with `--mask ID`: values outside of it must not have changed.
    """
    from modelgit.repo.masks import create_mask

    made = create_mask(
        session.repository,
        density=density,
        task=task,
        revision=revision,
        score=score,
        budget=budget,
        examples=examples,
        seed=seed,
        progress=session.progress,
    )
    output = session.output
    if as_json:
        output.json("mgit.mask/1", {"masks": [_document(made.id, made.mask)], "cached_fisher": made.cached_fisher})
        return
    output.say("mask ", yellow(made.id.short), f"  {_words(made.mask)} of {made.mask.model}")
    output.say(dim(f"  {made.mask.origin}"))
    output.say(f"hint: train under it, then `mgit commit --mask {made.id.short} -m …`")


@command("list", example="mgit mask list")
@json_option
@pass_session
def mask_list(session: Session, as_json: bool) -> None:
    """List the masks that this clone keeps, the newest first."""
    from modelgit.repo.masks import list_masks

    found = list_masks(session.repository)
    if as_json:
        session.output.json("mgit.mask/1", {"masks": [_document(mask_id, item) for mask_id, item in found]})
        return
    rows: list[list[Part]] = [
        [yellow(mask_id.short), _words(item), item.model, dim(item.origin)] for mask_id, item in found
    ]
    session.output.lines(columns(rows))


@command("show", example="mgit mask show latest")
@click.argument("name", metavar="ID")
@json_option
@pass_session
def mask_show(session: Session, name: str, as_json: bool) -> None:
    """Show how many values of each tensor a mask holds.  ID may be shortened; `latest` is the newest mask."""
    from modelgit.repo.masks import find_mask

    mask_id, found = find_mask(session.repository, name)
    output = session.output
    if as_json:
        output.json("mgit.mask/1", {"masks": [{**_document(mask_id, found), "regions": plain_data(found.regions)}]})
        return
    output.line("mask ", yellow(mask_id.short), f"  {_words(found)}")
    output.line(f"  of {found.model}: {found.origin}")
    rows: list[list[Part]] = [
        [region.name, amount(region.count), share(region.count, region.spec.elements)] for region in found.regions
    ]
    output.lines(columns(rows, right=[1, 2], indent=2))


@command("remove", example="mgit mask remove 5e0a77c1")
@click.argument("name", metavar="ID")
@pass_session
def mask_remove(session: Session, name: str) -> None:
    """Forget a mask; commits that were made under it keep it."""
    from modelgit.repo.masks import remove_mask

    removed = remove_mask(session.repository, name)
    session.output.say("Forgot mask ", yellow(removed.short))


def _words(found: Mask) -> str:
    return f"{plural(found.count, 'value')} in {plural(len(found.regions), 'tensor')}"


def _document(mask_id: MaskId, found: Mask) -> dict[str, object]:
    return {
        "id": mask_id,
        "model": found.model,
        "origin": found.origin,
        "count": found.count,
        "elements": found.elements,
        "tensors": len(found.regions),
    }


for _command in (mask_create, mask_list, mask_show, mask_verify, mask_remove):
    mask.add_command(_command)
