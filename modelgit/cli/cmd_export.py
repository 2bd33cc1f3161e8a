"""`mgit export`."""

from __future__ import annotations

import click

from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session
from modelgit.cli.cmd_import import say_written

__all__ = ["export"]


@command("export", example="mgit export main~2:models/bot -o bot.safetensors")
@click.argument("source", metavar="REV[:MODEL]")
@click.option("-o", "--output", required=True, metavar="OUT", help="What to write: OUT.safetensors, or OUT.pt.")
@click.option("--under", default="", metavar="NAME", help="Only tensors NAME.*, without that prefix (`state_dict`).")
@click.option("--untie", is_flag=True, help="Write tensors that share memory out in full, one by one.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@pass_session
def export(session: Session, source: str, output: str, under: str, untie: bool, force: bool) -> None:
    """Write the tensors of a commit's model to one file: safetensors, or a PyTorch checkpoint.

    Reads from the store, shards and formats notwithstanding, and touches nothing else.  MODEL is the path of a tracked
    model; it may be left out where there is only one.
    """
    from modelgit.repo.convert import export_model

    revision, _, model = source.partition(":")
    written = export_model(
        session.repository,
        revision or "HEAD",
        session.path(output),
        model=model or None,
        under=under,
        untie=untie,
        overwrite=force,
        progress=session.progress,
    )
    say_written(session, output, written)
