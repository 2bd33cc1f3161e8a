"""`mgit hooks install` where git keeps the repository, too."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

BAD_SUITE = '[[test]]\nname = "a"\nkind = "no such kind"\n'


@pytest.fixture
def top(mgit: Any) -> Any:
    """A repository of both kinds."""
    subprocess.run(["git", "init", "-q", str(mgit.directory)], check=True)
    mgit("init")
    mgit.hook = mgit.directory / ".git" / "hooks" / "pre-commit"
    return mgit


def test_a_dry_run_shows_and_writes_nothing(top: Any) -> None:
    shown = top("hooks", "install", "--pre-push", "--base", "up/it's", "--dry-run").out
    assert "would make " in shown and "# mgit eval lint " in shown
    assert "# mgit check --base 'up/it'\"'\"'s' --no-suites" in shown
    assert not top.hook.exists()


def test_a_commit_of_git_is_stopped_by_a_suite_that_is_wrong(top: Any) -> None:
    assert "Made " in top("hooks", "install").err
    assert "as they should be" in top("hooks", "install").err
    (top.directory / "evals").mkdir()
    (top.directory / "evals" / "bad.toml").write_text(BAD_SUITE)
    names = {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(top.directory), "commit", "--allow-empty", "-m", "one"]
    environment = {**os.environ, **names, "HOME": top.values["HOME"]}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "no such kind" in done.stdout + done.stderr
    assert "Removed " in top("hooks", "install", "--uninstall").err
    assert not top.hook.exists()
    assert "Nothing to do" in top("hooks", "install", "--uninstall").err


def test_what_is_not_changed_is_refused_with_what_to_type(top: Any) -> None:
    top.hook.parent.mkdir(exist_ok=True)
    top.hook.write_text("#!/usr/bin/python3\n")
    ran = top("hooks", "install", code=2)
    assert "is no shell script" in ran.err and "hint: call `mgit eval lint` in it" in ran.err
    assert "--uninstall" in top("hooks", "install", "--uninstall", "--pre-push", code=2).err
