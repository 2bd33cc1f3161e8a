"""Command lines from end to end: help, suggestions, exit codes, errors, global options."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import modelgit
from modelgit.cli._commands import COMMANDS
from modelgit.cli._git_words import GIT_OPTIONS, GIT_WORDS
from modelgit.cli._lazy import Entry, LazyGroup
from modelgit.cli.main import main
from modelgit.cli.main import mgit as top
from modelgit.errors import BugError, MgitError


def _walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += _walk(child, f"{path} {name}".strip())
    return found


ALL = [item for item in _walk(top, "") if item[0]]


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_every_command_explains_itself_with_an_example(path: str, command: Any) -> None:
    assert command.help and len(command.help.split()) > 3
    assert command.example.startswith(("mgit ", 'eval "$(mgit')) and path in command.example
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"mgit {path} {option.opts}"


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_every_help_page_renders(mgit: Any, path: str, command: Any) -> None:
    page = mgit(*path.split(), "--help").out
    assert page.startswith(f"Usage: mgit {path}")
    assert "Example:" in page and "Common options:" in page
    assert all(len(line) <= 110 for line in page.splitlines())


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_no_two_parameters_share_a_name(path: str, command: Any) -> None:
    names = [parameter.name for parameter in command.params]
    flags = [flag for parameter in command.params if isinstance(parameter, click.Option) for flag in parameter.opts]
    assert len(names) == len(set(names)) and len(flags) == len(set(flags))


def test_the_first_page_lists_every_command_under_a_heading(mgit: Any) -> None:
    page = mgit("--help").out
    for name, entry in COMMANDS.items():
        assert f"\n  {name} " in page
        assert f"\n{entry.section}:\n" in page
    assert mgit().out == page


@pytest.mark.parametrize(("typed", "meant"), [("swtich", "switch"), ("comit", "commit"), ("brnch", "branch")])
def test_did_you_mean(mgit: Any, typed: str, meant: str) -> None:
    assert mgit(typed, "main", code=2) == (2, "", f"error: no command `{typed}`; did you mean `{meant}`?\n")


def test_no_suggestion_where_none_is_near(mgit: Any) -> None:
    ran = mgit("quux", code=2)
    assert ran.err == "error: no command `quux`\nhint: `mgit --help` lists the commands\n"


def test_an_option_without_its_value_says_where_to_look(mgit: Any) -> None:
    assert mgit("gc", "--prune", code=2).err == (
        "error: option '--prune' requires an argument\nhint: `mgit gc --help` shows how it is used\n"
    )


@pytest.mark.parametrize("word", sorted(GIT_WORDS))
def test_words_of_git_are_answered_with_ours(mgit: Any, word: str) -> None:
    ran = mgit(word, "x", code=2)
    message, hint = ran.err.splitlines()
    assert message == f"error: no command `{word}`" and hint == f"hint: {GIT_WORDS[word]}"
    named = re.findall(r"`mgit ([a-z]+)", hint)
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in GIT_OPTIONS for option in GIT_OPTIONS[name]])
def test_options_of_git_are_answered_with_ours(mgit: Any, name: str, option: str) -> None:
    message, hint = mgit(name, option, code=2).err.splitlines()
    assert message == f"error: no such option '{option}'" and hint == f"hint: {GIT_OPTIONS[name][option]}"
    assert set(re.findall(r"`mgit ([a-z]+)", hint)) <= set(COMMANDS)


def test_diff_of_a_path_or_of_three_dots_says_what_it_takes(mgit: Any) -> None:
    mgit("init")
    (mgit.directory / "ckpt").mkdir()
    assert "--no-index" in mgit("diff", "ckpt", code=3).err
    assert "`mgit diff A B`" in mgit("diff", "a...b", code=2).err


def test_words_of_git_in_a_family(mgit: Any) -> None:
    assert mgit("config", "user.name", "Ada", code=2).err.endswith("`mgit config set --user user.name VALUE`\n")
    assert mgit("remote", "show", "origin", code=2).err.endswith("`mgit remote` lists remotes and their URLs\n")


def test_settings_that_are_ignored_are_mentioned(mgit: Any) -> None:
    mgit("init")
    mgit.values["MGIT_STORAGE__THREADZ"] = "3"
    ran = mgit("config", "list")
    assert ran.err.startswith("warning: ") and "storage.threadz" in ran.err
    mgit.values["MGIT_STORAGE__THREADS"] = "3"
    assert mgit("config", "get", "storage.threads").out == "3\n"


@pytest.mark.parametrize(
    ("family", "default"), [("remote", "list"), ("mask", "list"), ("op", "log"), ("config", "list")]
)
def test_a_family_alone_lists(mgit: Any, family: str, default: str) -> None:
    mgit("init")
    assert mgit(family) == mgit(family, default)
    assert mgit(family, "-q", code=2).err.splitlines()[0] == "error: missing command"


def test_did_you_mean_in_a_family(mgit: Any) -> None:
    assert mgit("config", "lst", code=2).err == "error: no command `config lst`; did you mean `list`?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--jsn"], "no such option"),
        (["untrack"], "missing argument 'PATH...'"),
        (["log", "-n", "many"], "invalid value for '-n'"),
        (["commit", "--gate", "off", "-m", "x"], "invalid value for '--gate'"),
        (["--color", "pink", "status"], "invalid value for '--color'"),
        (["-C", "nowhere", "status"], "no directory nowhere"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(mgit: Any, arguments: list[str], message: str) -> None:
    ran = mgit(*arguments, code=2)
    first, *rest = ran.err.splitlines()
    assert first.startswith(f"error: {message}") and ran.out == ""
    assert all(line.startswith(("hint: `mgit", "hint: `mkdir")) for line in rest)


def test_version(mgit: Any) -> None:
    assert mgit("--version").out == f"mgit {modelgit.__version__}\n"


def test_outside_of_a_repository(mgit: Any) -> None:
    assert mgit("status", code=3).err == (
        "error: not inside an mgit repository (looked from here up to /)\n"
        "hint: `mgit init` makes one here, `mgit clone URL` copies one\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(mgit: Any, shell: str) -> None:
    script = mgit("completion", shell).out
    assert "_MGIT_COMPLETE" in script and "mgit" in script


def test_global_options_before_and_after_the_command(mgit: Any) -> None:
    (mgit.directory / "sub").mkdir()
    mgit("-C", "sub", "init")
    mgit("status", "-C", "sub")
    assert (mgit.directory / "sub" / ".mgit" / "format").is_file()
    assert mgit("-q", "-C", "sub", "track", code=0).err == ""
    assert "\x1b[" in mgit("--color", "always", "-C", "sub", "status").out
    assert "\x1b[" not in mgit("status", "--color", "never", "-C", "sub").out


class _Failing:
    """A command that raises what a test wants."""

    error: BaseException


@click.command("fail")
def fail() -> None:
    """Raise."""
    raise _Failing.error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[_Failing]:
    monkeypatch.setattr(top, "entries", {**COMMANDS, "fail": Entry(f"{__name__}:fail", "Fail.", "Test")})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return _Failing


def _all_errors(root: type[MgitError]) -> list[type[MgitError]]:
    return [root, *(found for child in root.__subclasses__() for found in _all_errors(child))]


@pytest.mark.parametrize("kind", [kind for kind in _all_errors(MgitError) if kind.__module__ == "modelgit.errors"])
def test_every_declared_error_has_its_exit_code(mgit: Any, failing: type[_Failing], kind: type[MgitError]) -> None:
    failing.error = kind("models/bot is unwell", hint="`mgit cure`")
    ran = mgit("fail", code=kind.exit_code)
    expected = "error: bug: models/bot is unwell" if kind.exit_code == 70 else "error: models/bot is unwell"
    assert ran.err.splitlines() == [expected, "hint: `mgit cure`"]
    assert kind.exit_code in {1, 2, 3, 4, 5, 6, 7, 70}


def test_an_undeclared_error_is_a_bug_and_debug_shows_where(mgit: Any, failing: type[_Failing]) -> None:
    failing.error = ZeroDivisionError("division by zero")
    ran = mgit("fail", code=70)
    assert ran.err.startswith("error: bug: ZeroDivisionError: division by zero\nhint: the same command with `--debug`")
    assert "Traceback" not in ran.err
    assert "raise _Failing.error\n" in mgit("--debug", "fail", code=70).err
    mgit.values["MGIT_DEBUG"] = "1"
    assert "Traceback" in mgit("fail", code=70).err
    mgit.values["MGIT_DEBUG"] = "0"
    assert "Traceback" not in mgit("fail", code=70).err


def test_a_declared_bug_says_so(mgit: Any, failing: type[_Failing]) -> None:
    failing.error = BugError("the root has no operation")
    assert mgit("fail", code=70).err.startswith("error: bug: the root has no operation\nhint: the same command")


def test_what_the_system_refuses_names_the_file(mgit: Any, failing: type[_Failing]) -> None:
    failing.error = PermissionError(13, "Permission denied", "models/bot/x\x1b[2J")
    assert mgit("fail", code=3).err == "error: models/bot/x\\x1b[2J: Permission denied\n"


def test_interruption(mgit: Any, failing: type[_Failing]) -> None:
    failing.error = KeyboardInterrupt()
    ran = mgit("fail", code=130)
    assert len(ran.err.splitlines()) == 1 and ran.err.startswith("error: interrupted")


def test_a_closed_pipe_is_silent(mgit: Any, failing: type[_Failing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelgit.cli._errors.abandon", lambda _: None)
    failing.error = BrokenPipeError(32, "Broken pipe")
    assert mgit("fail", code=141) == (141, "", "")


def test_executables_on_the_path_become_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    program = tools / "mgit-hello"
    program.write_text('#!/bin/sh\necho "hello $*"\nexit 7\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert main(["-C", str(tmp_path), "hello", "--all", "-x", "y"], values={"HOME": str(tmp_path)}) == 7
    assert capfd.readouterr().out == "hello --all -x y\n"


def test_names_with_slashes_are_no_external_commands(mgit: Any) -> None:
    group = LazyGroup("mgit", entries={})
    context = click.Context(group)
    for name in ("../evil", "/bin/sh", "", "-x", "a b", "UPPER"):
        assert group.get_command(context, name) is None


def test_completion_offers_commands_and_branches(mgit: Any) -> None:
    from click.shell_completion import ShellComplete

    from modelgit.cli._output import Output
    from modelgit.cli._session import Session
    from modelgit.environment import Environment

    (mgit.directory / "a.txt").write_text("a")
    mgit("init")
    mgit("track", "a.txt")
    mgit("commit", "-m", "first")
    mgit("branch", "refunds")
    session = Session(Environment.capture(mgit.values, cwd=mgit.directory), Output())
    complete = ShellComplete(top, {"obj": session}, "mgit", "_MGIT_COMPLETE")
    assert [item.value for item in complete.get_completions([], "sw")] == ["switch"]
    assert [item.value for item in complete.get_completions(["switch"], "re")] == ["refunds"]
    assert "--graph" in [item.value for item in complete.get_completions(["log"], "--g")]


def test_json_documents_carry_a_versioned_schema(mgit: Any) -> None:
    (mgit.directory / "a.txt").write_text("a")
    mgit("init")
    mgit("track", "a.txt")
    commands = [["status"], ["commit", "-m", "x"], ["log"], ["show"], ["branch"], ["tag"], ["op", "log"]]
    commands += [["config", "list"], ["config", "get", "track.paths"], ["fsck"], ["gc"], ["track"], ["trust", "--list"]]
    for arguments in commands:
        document = json.loads(mgit(*arguments, "--json").out)
        name, _, version = document["schema"].partition("/")
        assert name.startswith("mgit.") and version == ("2" if arguments[0] == "trust" else "1"), arguments


def test_an_interruption_while_modules_load_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.cli import start

    class Loading:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "modelgit.cli.main", Loading())
    with pytest.raises(SystemExit) as ended:
        start.run()
    assert ended.value.code == 130
