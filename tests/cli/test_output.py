"""The one place that prints."""

from __future__ import annotations

import io
import json
import sys

import pytest

from modelgit.cli._output import Output, bold, columns, red, yellow
from modelgit.cli._progress import TerminalProgress
from modelgit.objects import CommitId


def test_data_goes_to_stdout_and_words_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.line("data")
    output.say("words")
    output.warn("careful")
    assert capsys.readouterr() == ("data\n", "words\nwarning: careful\n")


def test_quiet_keeps_data_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.quiet = True
    output.line("data")
    output.say("words")
    output.warn("careful")
    output.error("broken", "mend it")
    assert capsys.readouterr() == ("data\n", "warning: careful\nerror: broken\nhint: mend it\n")


def test_a_painted_part_is_escaped_before_it_is_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.color = "always"
    output.line("plain \x1b[31m", red("red \x1b]0;title\x07"))
    assert capsys.readouterr().out == "plain \\x1b[31m\x1b[31mred \\x1b]0;title\\x07\x1b[0m\n"


def test_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error("no branch \x1b[2J", "`x\x1b`")
    assert capsys.readouterr().err == "error: no branch \\x1b[2J\nhint: `x\\x1b`\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("choice", "no_color", "terminal", "tty", "colored"),
    [
        ("auto", False, "xterm", True, True),
        ("auto", False, "xterm", False, False),
        ("auto", True, "xterm", True, False),
        ("auto", False, "dumb", True, False),
        ("always", True, "dumb", False, True),
        ("never", False, "xterm", True, False),
    ],
)
def test_when_there_is_colour(choice: str, no_color: bool, terminal: str, tty: bool, colored: bool) -> None:
    output = Output(no_color=no_color, terminal=terminal)
    output.color = choice  # type: ignore[assignment]
    assert output.colored(_Terminal() if tty else io.StringIO()) is colored


def test_json_starts_with_its_schema_and_turns_ids_into_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().json("mgit.test/1", {"commit": CommitId(bytes(32)), "path": "\x1b[2J é"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"schema": "mgit.test/1", "commit": "b3:" + "0" * 64, "path": "\x1b[2J é"}
    assert text.startswith('{\n  "schema": "mgit.test/1"')
    assert text.isascii() and "\x1b" not in text


def test_columns_line_up_by_what_is_shown() -> None:
    output = Output()
    rows = columns([("a", yellow("1"), "x"), ("\x1b", "100", "long")], right=[1], indent=2)
    assert [output._render(row, io.StringIO()) for row in rows] == ["  a       1  x", "  \\x1b  100  long"]


def test_held_lines_come_out_in_order_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.hold()
    for number in range(200):
        output.line(str(number))
    assert capsys.readouterr().out == ""
    output.release()
    assert capsys.readouterr().out == "".join(f"{number}\n" for number in range(200))


def test_bold_is_not_bold_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    Output().line(bold("x"))
    assert capsys.readouterr().out == "x\n"


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_quick_task_shows_nothing_and_does_not_load_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    clock = _Clock()
    progress = TerminalProgress(Output(), terminal=True, clock=clock)
    progress.start("hash", 100)
    clock.now = 0.4
    progress.advance("hash", 50)
    progress.finish("hash")
    assert capsys.readouterr() == ("", "")
    assert "rich" not in sys.modules


def test_a_slow_task_shows_a_bar_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    progress = TerminalProgress(Output(), terminal=True, clock=clock)
    progress.start("hash [red]models", 100)
    clock.now = 0.6
    progress.advance("hash [red]models", 50)
    assert progress._bars is not None
    [task] = progress._bars.tasks
    assert (task.completed, task.total, task.fields["amount"]) == (50, 100, "50 bytes")
    progress.finish("hash [red]models")
    assert progress._bars is None
    assert capsys.readouterr().out == ""


def test_a_long_task_leaves_one_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = _Clock()
    progress = TerminalProgress(Output(), terminal=False, clock=clock)
    progress.start("Fisher", 512, unit="examples")
    clock.now = 38.0
    progress.advance("Fisher", 512)
    progress.finish("Fisher")
    assert capsys.readouterr() == ("", "Fisher: 512 examples, 38 s\n")


def test_cancelling_reaches_whoever_checks() -> None:
    progress = TerminalProgress(Output(), terminal=False)
    progress.check()
    progress.cancel()
    with pytest.raises(KeyboardInterrupt):
        progress.check()
