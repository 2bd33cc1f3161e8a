"""Hooks in real git repositories: added beside what is there, run by git, taken out without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelgit.errors import MgitError, RepositoryError, UsageError
from modelgit.integrations.git_hooks import BEGIN, apply_changes, plan_install, plan_uninstall
from modelgit.repo.repository import Repository

COMMANDS = {"pre-commit": ["config", "list"]}
USERS = '#!/usr/bin/env bash\necho "theirs ran"\nexit 0\n'


def git(directory: Path, *arguments: str, code: int = 0) -> str:
    settings = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    environment = {**os.environ, "HOME": str(directory), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", *settings, "-C", str(directory), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A git repository at a path that a shell would take apart."""
    directory = tmp_path / "it's a $(repo)"
    directory.mkdir()
    git(directory, "init")
    return directory


def mgit(root: Path) -> None:
    """An mgit repository in `root`."""
    root.mkdir(exist_ok=True)
    Repository.init(root).close()


def install(root: Path, commands: dict[str, list[str]] = COMMANDS) -> None:
    apply_changes(plan_install(root, commands, python=sys.executable))


def hook(top: Path, name: str = "pre-commit") -> Path:
    return top / ".git" / "hooks" / name


def write_hook(top: Path, text: str, mode: int = 0o755) -> Path:
    path = hook(top)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_git_runs_the_hook_and_stops_when_it_fails(top: Path) -> None:
    root = top / "sub dir"
    mgit(root)
    # What lies beside is not taken for a module of ours.
    (top / "modelgit").mkdir()
    (top / "modelgit" / "__init__.py").write_text("raise SystemExit(7)")
    install(root)
    assert "track.paths" in git(top, "commit", "--allow-empty", "-m", "one")
    (root / "mgit.toml").write_text("[nonsense]\nx = 1\n")
    assert "nonsense" in git(top, "commit", "--allow-empty", "-m", "two", code=1)
    apply_changes(plan_uninstall(root))
    git(top, "commit", "--allow-empty", "-m", "two")
    assert not hook(top).exists()
    assert plan_uninstall(root) == []


@pytest.mark.parametrize("users", [USERS, "#!/bin/sh\n", "#!/bin/bash -e\necho theirs ran\n# no end of line"])
def test_a_users_hook_stays_and_comes_back_as_it_was(top: Path, users: str) -> None:
    mgit(top)
    path = write_hook(top, users, 0o750)
    install(top)
    assert path.stat().st_mode & 0o777 == 0o750
    said = git(top, "commit", "--allow-empty", "-m", "one")
    assert "track.paths" in said
    assert ("theirs ran" in said) == ("theirs" in users)
    assert plan_install(top, COMMANDS, python=sys.executable) == []
    install(top, {"pre-commit": ["status"], "pre-push": ["status"]})
    assert path.read_text().count(BEGIN) == 1
    assert "status" in path.read_text()
    apply_changes(plan_uninstall(top))
    assert path.read_text() == users
    assert not hook(top, "pre-push").exists()


def test_a_hook_of_ours_leaves_standard_input_to_others(top: Path) -> None:
    mgit(top)
    (top / "other.git").mkdir()
    git(top / "other.git", "init", "--bare")
    path = hook(top, "pre-push")
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\nwhile read a b c d; do echo pushed $a; done\n")
    path.chmod(0o755)
    install(top, {"pre-push": ["status"]})
    git(top, "commit", "--allow-empty", "-m", "one")
    assert "pushed refs/heads/main" in git(top, "push", "./other.git", "main")


def test_a_program_that_is_gone_stops_with_a_sentence(top: Path) -> None:
    mgit(top)
    apply_changes(plan_install(top, COMMANDS, python=str(top / "gone")))
    assert "mgit hooks install" in git(top, "commit", "--allow-empty", "-m", "one", code=1)


def refused(top: Path, kind: type[MgitError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        plan_install(top, COMMANDS, python=sys.executable)
    assert caught.value.hint
    return caught.value.message


def test_what_is_no_shell_script_is_refused(top: Path) -> None:
    path = write_hook(top, "#!/usr/bin/python3\nprint()\n")
    assert "no shell script" in refused(top)
    path.write_bytes(b"\x7fELF\xff\x00")
    assert "no shell script" in refused(top)
    path.rename(top / "kept elsewhere")
    path.symlink_to(top / "kept elsewhere")
    assert "is a link" in refused(top)
    assert plan_uninstall(top) == []


def test_hooks_that_are_kept_elsewhere_are_refused(top: Path) -> None:
    git(top, "config", "core.hooksPath", ".husky")
    assert ".husky" in refused(top)
    assert not (top / ".husky").exists()


def test_marks_that_were_tampered_with_are_refused(top: Path) -> None:
    path = write_hook(top, f"#!/bin/sh\n{BEGIN}\nexit 3\n")
    assert "lost a mark" in refused(top)
    with pytest.raises(UsageError):
        plan_uninstall(top)
    assert "exit 3" in path.read_text()


def test_outside_of_git_there_are_no_hooks(tmp_path: Path) -> None:
    assert "no git repository" in refused(tmp_path, RepositoryError)


def test_a_hook_that_changed_meanwhile_is_left_alone(top: Path) -> None:
    path = write_hook(top, USERS)
    changes = plan_install(top, COMMANDS, python=sys.executable)
    path.write_text(USERS + "# more\n")
    with pytest.raises(RepositoryError, match="changed meanwhile"):
        apply_changes(changes)
    assert path.read_text() == USERS + "# more\n"
