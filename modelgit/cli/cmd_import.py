"""`mgit import`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural, size
from modelgit.cli._options import command, pass_session
from modelgit.cli._output import bold
from modelgit.cli._session import Session

if TYPE_CHECKING:
    from modelgit.repo.convert import Written

__all__ = ["import_", "say_written"]

_LISTED = 4


@command("import", example="mgit import pytorch_model.bin -o model.safetensors")
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT", help="What to write: OUT.safetensors, or OUT.pt.")
@click.option("--under", default="", metavar="NAME", help="Only tensors NAME.*, without that prefix (`state_dict`).")
@click.option("--untie", is_flag=True, help="Write tensors that share memory out in full, one by one.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@pass_session
def import_(session: Session, file: str, output: str, under: str, untie: bool, force: bool) -> None:
    """Convert the tensors of FILE, a checkpoint of any format, to safetensors or to a PyTorch checkpoint.

    No pickle is unpickled, and nothing is executed.  Works anywhere, in a repository or not; what is written is
    recorded when its path is tracked, and tensors that are recorded already take no space again.
    """
    from modelgit.repo.convert import import_file

    written = import_file(
        session.path(file),
        session.path(output),
        shown=file,
        under=under,
        untie=untie,
        overwrite=force,
        progress=session.progress,
    )
    say_written(session, output, written)


def say_written(session: Session, output: str, written: Written) -> None:
    """One line about the file, and one about ties."""
    dtypes = sorted(written.elements, key=lambda kind: -written.elements[kind])
    words = [plural(written.tensors, "tensor"), ", ".join(dtypes), size(written.size_bytes)]
    session.output.say("Wrote ", bold(output), f": {', '.join(words)}")
    if written.tied:
        names = [f"{name} is {kept}" for name, kept in written.tied.items()]
        more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        session.output.say(f"  tied      {', '.join(names[:_LISTED])}{more}  (stored once; --untie stores each)")
