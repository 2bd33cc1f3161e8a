"""`mgit`: the entry point, which captures the process's surroundings once and turns every ending into an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import NoReturn

import click

import modelgit
from modelgit.cli._commands import COMMANDS
from modelgit.cli._errors import abandon, report
from modelgit.cli._git_words import GIT_WORDS
from modelgit.cli._lazy import LazyGroup
from modelgit.cli._output import Output
from modelgit.cli._session import Session
from modelgit.environment import Environment

__all__ = ["main", "mgit", "run"]

_COMPLETION_VARIABLE = "_MGIT_COMPLETE"


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.obj.output.line(f"mgit {modelgit.__version__}")
        context.exit()


@click.group(
    "mgit",
    cls=LazyGroup,
    entries=COMMANDS,
    foreign=GIT_WORDS,
    example="mgit init && mgit track models/bot && mgit commit -m 'Base model'",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.pass_context
def mgit(context: click.Context) -> None:
    """Version control for model weights.

    `mgit COMMAND --help` explains a command.  An executable `mgit-NAME` on PATH is run as `mgit NAME`.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str], *, values: Mapping[str, str], environment: Environment | None = None) -> int:
    """Run one command line and return its exit code.

    `values` are the process's environment variables; `environment` replaces what would be captured from them.
    """
    output = Output(no_color=bool(values.get("NO_COLOR")), terminal=values.get("TERM", ""))
    debug = values.get("MGIT_DEBUG", "") not in ("", "0")
    session = None
    try:
        session = Session(environment or Environment.capture(values), output, debug=debug)
        try:
            with _interrupting(session), mgit.make_context("mgit", list(arguments), obj=session) as context:
                mgit.invoke(context)
        finally:
            session.close()
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the border: no ending without a sentence and a code)
        return report(error, output, debug=session.debug if session else debug)
    return 0


def run() -> NoReturn:
    """The console script."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A terminal that lacks a character gets its code: no output is worth a crash.
            reconfigure(errors="backslashreplace")
    # Read by torch's thread pool when it is loaded: workers that wait sleep in place of spinning.  On a machine that
    # does anything else at the same time a Fisher pass is otherwise several times slower (measured: six).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Numpy's own threads would compete with ours: tensors are shared out, not matrix products.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    instruction = os.environ.get(_COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        session = Session(Environment.capture(os.environ), Output())
        sys.exit(shell_complete(mgit, {"obj": session}, "mgit", _COMPLETION_VARIABLE, instruction))
    code = main(sys.argv[1:], values=os.environ)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk was reported; the interpreter's own last attempt would add a traceback
            abandon(stream)
    sys.exit(code)


def _open_missing_streams() -> None:
    """Where a stream was closed by the caller (`>&-`), what goes there goes nowhere."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextlib.contextmanager
def _interrupting(session: Session) -> Iterator[None]:
    """Make Ctrl-C reach worker threads through their progress object as well as the main thread as an exception."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        session.cancel()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # whoever started this thread handles signals
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
