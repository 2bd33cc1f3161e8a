"""How a command ends: every error becomes one sentence, one hint and an exit code, here and nowhere else."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, TextIO

import click

from modelgit.cli._git_words import GIT_OPTIONS
from modelgit.errors import MgitError

if TYPE_CHECKING:
    from modelgit.cli._output import Output

__all__ = ["BROKEN_PIPE", "BUG", "INTERRUPTED", "USAGE", "Quit", "abandon", "report"]

USAGE = 2
BUG = 70
INTERRUPTED = 130
BROKEN_PIPE = 141
_OS_ERROR = 3


class Quit(Exception):
    """End the command with an exit code; what there was to say has been said."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def report(error: BaseException, output: Output, *, debug: bool) -> int:
    """Write `error` to stderr in the house style and return the exit code.

    Raises nothing; `debug` adds the traceback of anything but a wrong command line.
    """
    if isinstance(error, Quit):
        return error.exit_code
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        abandon(sys.stdout)
        return BROKEN_PIPE
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        output.error("interrupted; nothing half-done was recorded")
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        message, hint = _usage(error)
        output.error(message, hint)
        return USAGE
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, MgitError):
        if error.exit_code == BUG:
            output.error(f"bug: {error.message}", error.hint or _bug_hint(debug=debug))
        else:
            output.error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        named = error.filename if isinstance(error.filename, str) else None
        output.error(f"{named}: {error.strerror}" if named else error.strerror, None)
        return _OS_ERROR
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        # An argument or a variable with bytes that are no text: Python keeps them as surrogates.
        output.error(
            f"not text in UTF-8: {error.object[:80]!a}",
            "type it in UTF-8; `export LC_ALL=C.UTF-8` if the locale is not",
        )
        return USAGE
    if isinstance(error, MemoryError):
        output.error("there is not enough memory for what was asked", None)
        return _OS_ERROR
    output.error(f"bug: {type(error).__name__}: {error}", _bug_hint(debug=debug))
    return BUG


def _bug_hint(*, debug: bool) -> str:
    if debug:
        return "please report it with the traceback above"
    return "the same command with `--debug` shows the traceback; please report it"


def _usage(error: click.ClickException) -> tuple[str, str | None]:
    """Click's message in the house style: a sentence that starts small and ends without a full stop."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        known = GIT_OPTIONS.get(str(error.ctx.info_name), {}).get(error.option_name)
        if known is not None:
            return f"no such option '{error.option_name}'", known
    message = error.format_message().strip()
    first_line = " ".join(message.split())
    sentence = first_line[:1].lower() + first_line[1:]
    hint = getattr(error, "hint", None)
    if hint is None and isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"`{error.ctx.command_path} --help` shows how it is used"
    return sentence.rstrip("."), hint


def abandon(stream: TextIO) -> None:
    """Let the interpreter's last flush of a closed pipe or onto a full disk go nowhere, without a message."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
