"""The console script as a process: streams that are closed or full, and arguments that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell redirections")


def shell(command: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    script = command.replace("mgit", f"'{sys.executable}' -m modelgit")
    values = {"HOME": str(directory), "PATH": os.environ.get("PATH", ""), "MGIT_AUTHOR": "Ada <ada@example.org>"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        cwd=directory,
        env={**values, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    assert shell("mgit init", tmp_path).returncode == 0
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("mgit op log >&-", 0),
        ("mgit op log 2>&-", 0),
        ("mgit op log <&- >&- 2>&-", 0),
        ("mgit nonsense 2>&-", 2),
        ("mgit op log | head -0", 141),
        ("mgit config list | true", 141),
    ],
)
def test_closed_streams_change_nothing_but_the_output(directory: Path, command: str, code: int) -> None:
    ran = shell(command, directory)
    assert (ran.returncode, ran.stderr if code in (0, 141) else "") == (code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("command", ["mgit status", "mgit --help", "mgit op log --json", "mgit completion bash"])
def test_output_onto_a_full_disk_is_one_sentence(directory: Path, command: str) -> None:
    ran = shell(f"{command} > /dev/full", directory)
    assert ran.returncode == 3
    assert ran.stderr.splitlines()[0].startswith("error: ") and "Exception" not in ran.stderr


@pytest.mark.parametrize("command", [r"mgit commit --allow-empty -m $'a\xff'", r"mgit config set user.name $'a\xff'"])
def test_arguments_that_are_no_text_are_refused(directory: Path, command: str) -> None:
    (directory / "notes").write_text("one")
    assert shell("mgit track notes && mgit commit -q -m one", directory).returncode == 0
    ran = shell(command, directory)
    assert ran.returncode == 2, ran.stderr
    message, hint = ran.stderr.splitlines()
    assert message.startswith("error: not text in UTF-8: ") and hint.startswith("hint: ")
