"""Cheap commands load nothing heavy, and `--help` loads no command at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "torch", "rich", "tomlkit", "transformers")
_SCRIPT = """
import json, sys
from modelgit.cli.main import main
code = main(sys.argv[1:], values={"HOME": ".", "MGIT_AUTHOR": "Ada <ada@example.org>"})
sys.stdout.flush()
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def _loaded(directory: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], cwd=directory, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    return list(found["modules"])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("imports")
    (directory / "notes.txt").write_text("hello")
    for arguments in (["init"], ["track", "notes.txt"], ["commit", "-m", "first"]):
        _loaded(directory, *arguments)
    return directory


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["log"],
        ["log", "--graph", "--oneline"],
        ["show"],
        ["branch", "-v"],
        ["tag"],
        ["op", "log"],
        ["config", "list"],
        ["switch", "main"],
        ["tag", "-f", "v1"],
    ],
    ids=" ".join,
)
def test_metadata_commands_load_neither_numpy_nor_torch_nor_rich(repository: Path, arguments: list[str]) -> None:
    loaded = _loaded(repository, *arguments)
    assert [name for name in HEAVY if name in loaded] == []


def test_a_log_without_notes_loads_nothing_that_reads_them(repository: Path) -> None:
    loaded = _loaded(repository, "log")
    assert [name for name in loaded if name.startswith(("modelgit.signing", "modelgit.repo.notes"))] == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []], ids=" ".join)
def test_help_loads_no_command_and_no_library(tmp_path: Path, arguments: list[str]) -> None:
    loaded = _loaded(tmp_path, *arguments)
    assert [
        name for name in loaded if name.startswith(("modelgit.cli.cmd_", "modelgit.repo.", "modelgit.store."))
    ] == []
    assert [name for name in (*HEAVY, "msgspec", "blake3") if name in loaded] == []
