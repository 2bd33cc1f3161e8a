"""`mgit merge-file`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural, size
from modelgit.cli._merges import parse_strategies
from modelgit.cli._options import command, pass_session
from modelgit.cli._output import bold, dim
from modelgit.cli._session import Session
from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.repo.merges.merge_file import MergedFiles

__all__ = ["merge_file"]


@command("merge-file", example="mgit merge-file tone facts --base org -o merged --strategy ties")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--base", metavar="MODEL", help="The model that the others were made from.")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="What to write: OUT.safetensors, or a directory OUT."
)
@click.option("--config", metavar="FILE", help="Do what a mergekit configuration (YAML) says; it names the models.")
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    metavar="NAME|PATTERN=NAME",
    help="How values are combined (average), or those of tensors that match PATTERN; options follow a space, as for "
    "`mgit merge`.",
)
@click.option(
    "--fisher", "fishers", multiple=True, metavar="FILE", help="Fisher diagonals of a MODEL, one FILE each, in order."
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "float16", "bfloat16"]),
    help="Store floats as this instead of what the first MODEL has.",
)
@click.option(
    "--shard-size", type=click.IntRange(1), default=5000, show_default=True, metavar="MB", help="Largest file."
)
@click.option("--force", is_flag=True, help="Replace OUT.")
@pass_session
def merge_file(
    session: Session,
    models: tuple[str, ...],
    base: str | None,
    config: str | None,
    output: str,
    strategies: tuple[str, ...],
    fishers: tuple[str, ...],
    dtype: str | None,
    shard_size: int,
    force: bool,
) -> None:
    """Merge models that are in no repository.

    A MODEL is a safetensors file, a Hugging Face directory, or `hf:org/name[@REVISION]`, which is downloaded first.
    The strategy sees all values of a tensor, unless it is the same on all sides; the recipe goes into OUT's model card.
    """
    from modelgit.repo.merges.merge_file import DTYPES_OUT, merge_files

    if config is not None:
        if models or base or strategies or fishers or dtype:
            raise UsageError("--config says everything by itself", hint=f"`mgit merge-file --config {config} -o OUT`")
        from modelgit.repo.merges.config import merge_by_config

        done = merge_by_config(
            session.environment,
            session.path(config),
            session.path(output),
            shown=config,
            shard_bytes=shard_size * 1_000_000,
            overwrite=force,
            tell=session.output.say,
            progress=session.progress,
        )
        _say(session, output, done)
        return
    if not models:
        raise UsageError("there is nothing to merge", hint="`mgit merge-file A B --base C -o OUT`")
    chosen = parse_strategies(strategies)
    if len(models) == 1 and base is None:
        raise UsageError("one MODEL alone is merged with nothing", hint="name another one, or `--base C`")
    done = merge_files(
        session.environment,
        models,
        session.path(output),
        base=base,
        strategy=chosen.name,
        options=chosen.options,
        rules=chosen.rules,
        fishers=fishers,
        dtype=DTYPES_OUT[dtype] if dtype else "",
        shard_bytes=shard_size * 1_000_000,
        overwrite=force,
        tell=session.output.say,
        progress=session.progress,
    )
    _say(session, output, done)


def _say(session: Session, output: str, done: MergedFiles) -> None:
    for sentence in done.notes:
        session.output.say(dim("note: "), sentence)
    words = [plural(done.tensors, "tensor"), size(done.size_bytes)]
    if done.copied:
        words.append(f"{done.copied} of them copied")
    if done.files > 1:
        words.append(plural(done.files, "file"))
    session.output.say("Wrote ", bold(output), f": {', '.join(words)}")
