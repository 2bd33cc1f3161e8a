"""`mgit undo`."""

from __future__ import annotations

from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session

__all__ = ["undo"]


@command("undo", example="mgit undo && mgit redo")
@pass_session
def undo(session: Session) -> None:
    """Take back the last operation: a commit, merge, switch, pull, deleted branch.  Again goes one further back.

    What a commit recorded stays in the work tree as changes; of a lossy patch (`mgit commit --density`) the dense
    weights come back, as long as they are kept; what a switch or merge brought is taken out again.
    """
    from modelgit.repo.tracking.dense_weights import kept_dense
    from modelgit.repo.tracking.undo import undo as take_back

    undone = take_back(session.repository, progress=session.progress)
    session.output.say(f"Undid {undone.description}")
    if undone.description.startswith("push: "):
        session.output.say("note: the remote keeps what was sent; only what is known here of its branches went back")
    if undone.view.head is not None and kept_dense(session.repository, undone):
        session.output.say("The dense weights that its patch left out are back in the work tree, bit for bit.")
    session.output.say("hint: `mgit redo` brings it back")
