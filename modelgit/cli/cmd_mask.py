"""`mgit mask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._density import parse_share
from modelgit.cli._format import plural
from modelgit.cli._options import SEED, command, group, json_option, pass_session
from modelgit.cli._output import Part, blue, columns, dim, plain_data, yellow
from modelgit.cli._session import Session
from modelgit.cli.cmd_mask_verify import mask_verify
from modelgit.errors import UsageError
from modelgit.reporting.wording import amount, share

if TYPE_CHECKING:
    from modelgit.objects import Mask
    from modelgit.repo.patches.masks import StoredMask

__all__ = ["mask"]

_LISTED = 10


@group("mask", default="list", example="mgit mask create --density 0.5% --task intents")
def mask() -> None:
    """Choose which weights a training run may change (FISH: the most important few by Fisher information)."""


def _density(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    return None if text is None else parse_share(text, hint="`mgit mask create --density 0.5%`")


def _difference(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, str] | None:
    """`A..B`; a side that is left out is the current commit."""
    if text is None:
        return None
    old, dots, new = text.partition("..")
    if not dots or new.startswith("."):
        raise UsageError(f"not a difference: {text[:80]!a}", hint="`--from-diff A..B` is what changed from A to B")
    return old or "HEAD", new or "HEAD"


@command("create", example="mgit mask create --density 0.5% --task intents")
@click.option("--density", metavar="SHARE", callback=_density, help="The share to train: 0.5% or 0.005.")
@click.option("--task", metavar="NAME", help="The task of mgit.toml (the only one).")
@click.option(
    "--score",
    type=click.Choice(["fisher", "magnitude", "gradient", "random", "bias"]),
    default="fisher",
    show_default=True,
    help="What makes a weight important.",
)
@click.option(
    "--from-diff",
    metavar="A..B",
    callback=_difference,
    help="Choose among what B changed against A, to train again from A: by F·Δ² (with magnitude: |Δ|).",
)
@click.option(
    "--at",
    "revision",
    shell_complete=complete_revision,
    metavar="REV",
    help="Take the score at REV (HEAD; with --from-diff, F at A).",
)
@click.option(
    "--budget",
    type=click.Choice(["global", "layer", "tensor"]),
    default="global",
    show_default=True,
    help="Compare weights of the whole model, or take the share of each layer or tensor.",
)
@click.option("--head", multiple=True, metavar="PREFIX", help="Tensors that train whole (the task's head).")
@click.option("--no-head", is_flag=True, help="No head: rank its weights like all others.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Choose only from tensors that match (head aside).")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Train no tensor that matches.")
@click.option("--name", metavar="NAME", help="Call it NAME in this clone.")
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="N",
    help="How many examples a pass over the task's data looks at.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Of what is drawn.")
@json_option
@pass_session
def mask_create(
    session: Session,
    density: float | None,
    task: str | None,
    score: str,
    from_diff: tuple[str, str] | None,
    revision: str | None,
    budget: str,
    head: tuple[str, ...],
    no_head: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    name: str | None,
    examples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Make a mask of the most important weights of a task's model; its head is taken whole, and counted.

    fisher: Fisher information, no labels needed.  gradient: the mean gradient of the loss.  magnitude: the weights
    themselves.  random: chance.  bias: every bias, without a density.  Train under the mask, then commit with
    `--mask ID`: values outside of it must not have changed.
    """
    if head and no_head:
        raise UsageError("`--head` and `--no-head` exclude each other", hint="leave one of them out")
    made = session.repository.create_mask(
        density=density,
        task=task,
        revision=revision,
        score=score,
        from_diff=from_diff,
        budget=budget,
        examples=examples,
        seed=seed,
        head=() if no_head else head or None,
        include=include,
        exclude=exclude,
        name=name,
        progress=session.progress,
    )
    output = session.output
    if as_json:
        how = {"cached_fisher": made.cached_fisher, "fisher": made.fisher}
        output.json("mgit.mask/1", {"masks": [_document(made.mask)], **how})
        return
    output.say("mask ", yellow(made.mask.id.short), *_named(made.mask), f"  {_words(made.mask.record)}")
    output.say(dim(f"  {made.mask.record.origin}"))
    if made.fisher:
        output.say(dim(f"  {made.fisher}"))
    if made.mask.record.count < made.allowed:
        output.say(dim(f"  all that changed: the density allows {made.allowed:,} values"))
    output.say(f"hint: train under it, then `mgit commit --mask {made.mask.label} -m …`")


@command("list", example="mgit mask list")
@json_option
@pass_session
def mask_list(session: Session, as_json: bool) -> None:
    """List masks: those that this clone keeps, the newest first, then those of commits from elsewhere."""
    from modelgit.repo.patches.masks import commits_under

    found = session.repository.masks()
    under = commits_under(session.repository)
    if as_json:
        documents = [{**_document(item), "commits": plain_data(under.get(item.id, ()))} for item in found]
        session.output.json("mgit.mask/1", {"masks": documents})
        return
    rows: list[list[Part]] = [
        [
            yellow(item.id.short),
            blue(", ".join(item.names)),
            amount(item.record.count),
            share(item.record.count, item.record.total or item.record.elements),
            item.record.model,
            plural(len(under.get(item.id, ())), "commit"),
            dim(item.record.origin),
        ]
        for item in found
    ]
    if not any(item.names for item in found):
        rows = [[row[0], *row[2:]] for row in rows]
    session.output.lines(columns(rows, right=[len(rows[0]) - 5, len(rows[0]) - 4] if rows else []))


@command("show", example="mgit mask show latest --against tone")
@click.argument("name", metavar="ID")
@click.option("--against", metavar="ID", help="Compare it with another mask.")
@click.option("--tensors", is_flag=True, help="List every tensor in place of layers.")
@json_option
@pass_session
def mask_show(session: Session, name: str, against: str | None, tensors: bool, as_json: bool) -> None:
    """Show where in the model the values of a mask lie, and which commits were made under it.

    ID is a name, an id or the beginning of one; `latest` is the newest mask.
    """
    from modelgit.repo.patches.masks import commits_under, compare_masks, model_sizes
    from modelgit.reporting.mask_text import density_lines, layer_densities

    repo, output = session.repository, session.output
    found = repo.mask(name)
    other = None if against is None else repo.mask(against)
    overlap = None if other is None else compare_masks(repo, found.record, other.record)
    commits = commits_under(repo).get(found.id, ())
    layers = layer_densities(found.record, model_sizes(repo, found.record))
    if as_json:
        document = {
            **_document(found),
            "commits": plain_data(commits),
            "layers": plain_data([item._asdict() for item in layers]),
            "regions": plain_data(found.record.regions),
        }
        if other is not None and overlap is not None:
            document["against"] = {
                "id": other.id,
                "count": overlap.second,
                "shared": overlap.shared,
                "jaccard": overlap.jaccard,
            }
        output.json("mgit.mask/1", {"masks": [document]})
        return
    output.line("mask ", yellow(found.id.short), *_named(found), f"  {_words(found.record)}")
    output.line(dim(f"  {found.record.origin}"))
    if tensors:
        rows: list[list[Part]] = [
            [region.name, f"{region.count:,}", share(region.count, region.spec.elements)]
            for region in found.record.regions
        ]
        output.lines(columns(rows, right=[1, 2], indent=2))
    else:
        output.lines([line] for line in density_lines(layers, output.width))
    if other is not None and overlap is not None:
        output.line(
            f"against {other.label} ({overlap.second:,} values): {overlap.shared:,} shared, "
            f"{share(overlap.shared, overlap.first)} of this one, Jaccard {overlap.jaccard:.3f}"
        )
    for commit in commits[:_LISTED]:
        output.line("commit ", yellow(commit.short), f"  {repo.commit_at(commit).subject}")
    if len(commits) > _LISTED:
        output.line(f"and {len(commits) - _LISTED} more commits under it")


@command("apply", example="mgit mask apply latest --from HEAD")
@click.argument("name", metavar="ID")
@click.option(
    "--from",
    "revision",
    default="HEAD",
    shell_complete=complete_revision,
    metavar="REV",
    help="Where the values come from (HEAD).",
)
@click.option("--dry-run", is_flag=True, help="Only count them.")
@json_option
@pass_session
def mask_apply(session: Session, name: str, revision: str, dry_run: bool, as_json: bool) -> None:
    """Put back what changed outside of a mask: values of the work tree get those of the last commit, bit for bit.

    The files as they were are kept in .mgit/rescue for 7 days; `mgit undo` puts them back.
    """
    from modelgit.repo.patches.mask_apply import apply_mask
    from modelgit.repo.patches.strayed import strayed_words

    done = apply_mask(session.repository, name, revision=revision, dry_run=dry_run, progress=session.progress)
    output = session.output
    if as_json:
        output.json(
            "mgit.mask-apply/1",
            {
                "mask": done.mask.id,
                "dry_run": dry_run,
                "count": done.total,
                "tensors": done.values,
                "files": done.files,
                "rescued": done.rescued,
            },
        )
        return
    if not done.values:
        output.say(f"nothing differs outside of mask {done.mask.label}")
        return
    words = strayed_words(done.values)
    output.say(f"Would put back {words}" if dry_run else f"Put back {words}")
    for path, kept in zip(done.files, done.rescued, strict=False):
        output.say(dim(f"  {path} as it was is in {kept}"))


@command("remove", example="mgit mask remove 5e0a77c1")
@click.argument("name", metavar="ID")
@pass_session
def mask_remove(session: Session, name: str) -> None:
    """Forget a mask and its name; commits that were made under it keep it."""
    from modelgit.repo.patches.masks import remove_mask

    removed = remove_mask(session.repository, name)
    session.output.say("Forgot mask ", yellow(removed.id.short), *_named(removed))


def _named(found: StoredMask) -> list[Part]:
    return [part for name in found.names for part in ("  ", blue(name))]


def _words(found: Mask) -> str:
    total = found.total or found.elements
    return (
        f"{found.count:,} of {total:,} values ({share(found.count, total)}) in "
        f"{plural(len(found.regions), 'tensor')} of {found.model}"
    )


def _document(found: StoredMask) -> dict[str, object]:
    return {
        "id": found.id,
        "names": found.names,
        "kept": found.kept,
        "model": found.record.model,
        "origin": found.record.origin,
        "count": found.record.count,
        "elements": found.record.elements,
        "total": found.record.total,
        "tensors": len(found.record.regions),
    }


for _command in (mask_create, mask_list, mask_show, mask_apply, mask_verify, mask_remove):
    mask.add_command(_command)
