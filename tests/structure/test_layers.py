"""The layers of the architecture, as import-linter checks them."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def linter() -> str | None:
    beside = Path(sys.executable).with_name("lint-imports")
    return str(beside) if beside.exists() else shutil.which("lint-imports")


@pytest.mark.skipif(linter() is None, reason="import-linter is not installed")
def test_imports_point_down(tmp_path: Path) -> None:
    command = [str(linter()), "--config", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    placed = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    present = {path.name for path in (ROOT / "modelgit").iterdir() if (path / "__init__.py").exists()}
    present |= {path.stem for path in (ROOT / "modelgit").glob("*.py") if not path.stem.startswith("__")}
    assert present <= placed
