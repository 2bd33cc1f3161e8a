"""The README's commands, continuous integration and the pinned versions agree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / ".github" / "constraints.txt").read_text(encoding="utf-8")


def command(name: str) -> str:
    found = re.search(rf"<!-- command: {name} -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert found is not None
    (line,) = found[1].splitlines()
    return line


def pinned() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[A-Za-z0-9_.-]+", text)[0]) for text in requirements}


@pytest.mark.skipif(sys.platform == "win32", reason="continuous integration's script is a bash script")
def test_continuous_integration_runs_the_readme_s_command() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    shown = subprocess.run([bash, ".ci/run", "--show"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == command("tests") + "\n"
    assert "run: bash .ci/run" in WORKFLOW


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_the_readme_s_commands_set_everything_up(name: str) -> None:
    line = command(name)
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c .github/constraints.txt ")
    assert "sudo" not in line and "://" not in line
    (extra,) = re.findall(r"'\.\[(\w+)\]'", line)
    assert extra in PROJECT["optional-dependencies"]


def test_everything_that_is_installed_is_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = requirement_names([*PROJECT["dependencies"], *extras["demo"], *extras["test"], *extras["lint"]])
    assert wanted - set(pinned()) == set()


def test_pinned_versions_lie_in_the_package_s_own_ranges() -> None:
    versions = pinned()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["demo"], *extras["test"], *extras["lint"]]:
        name, least = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", text).groups()
        assert numbers(versions[normal(name)]) >= numbers(least), text


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_constraints_hold_versions_and_nothing_else() -> None:
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*", line)] == []
    assert not re.search(r"nvidia|cuda|cu1[0-9]", "\n".join(lines))


def test_actions_are_pinned_and_may_only_read() -> None:
    uses = re.findall(r"uses: (\S+)", WORKFLOW)
    assert uses
    assert [action for action in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []
    assert re.search(r"^permissions:\n  contents: read\n", WORKFLOW, re.MULTILINE)


def test_every_supported_python_is_tested() -> None:
    declared = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    assert set(re.findall(r'"([0-9.]+)"', matrix)) == declared


def test_both_names_of_the_program_are_installed() -> None:
    assert PROJECT["scripts"]["mgit"] == PROJECT["scripts"]["modelgit"]
    done = subprocess.run(
        [sys.executable, "-m", "modelgit", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == f"mgit {PROJECT['version']}\n"
