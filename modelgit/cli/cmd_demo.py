"""`mgit demo`."""

from __future__ import annotations

import os

import click

from modelgit.cli._options import command, pass_session
from modelgit.cli._session import Session
from modelgit.errors import RepositoryError

__all__ = ["demo"]

_TO_TRY = (
    ("mgit log", "the history"),
    (
        "mgit diff main topic --fisher --task topic",
        "where a branch changed the model, and what that does to its outputs",
    ),
    ("mgit merge topic", "take one branch"),
    ("mgit merge tone", "combine it with the other by Fisher information; the gate looks at both tasks"),
    ("mgit log --graph --oneline", "what you have now"),
    ("mgit undo", "as if you had not"),
)


@command("demo", example="mgit demo && cd mgit-demo && mgit merge topic")
@click.argument("target", default="mgit-demo", metavar="[DIRECTORY]")
@pass_session
def demo(session: Session, target: str) -> None:
    """Make a small repository in DIRECTORY (mgit-demo) to try things on: a BERT, two tasks, two trained branches.

    Nothing is downloaded; it takes some seconds on a CPU.
    """
    place = session.path(target)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RepositoryError(f"{target} exists already and is not empty", hint="`mgit demo OTHER_DIRECTORY`")
    from modelgit.cli._demo import make_demo

    output = session.output
    make_demo(place, environment=session.environment, progress=session.progress, tell=output.say).close()
    output.say(f"Made {os.path.relpath(place, session.environment.cwd)}.  Try there:")
    width = max(len(line) for line, _ in _TO_TRY)
    for line, what in _TO_TRY:
        output.say(f"  {line:<{width}}  {what}")
