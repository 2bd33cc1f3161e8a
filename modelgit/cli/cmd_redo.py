"""`mgit redo`."""

from __future__ import annotations

from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session

__all__ = ["redo"]


@command("redo", example="mgit undo && mgit redo")
@pass_session
def redo(session: Session) -> None:
    """Do again what `mgit undo` took back last."""
    from modelgit.repo.tracking.undo import redo as do_again

    redone = do_again(session.repository, progress=session.progress)
    session.output.say(f"Did again {redone.description}")
