"""The action, its script and the example workflow: parsed, and run as far as that goes without GitHub."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelgit.cli.main import main

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "check"
EXAMPLE = ROOT / ".github" / "examples" / "model-check.yml"
SCRIPT = ACTION / "check.sh"
PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
OURS = "OWNER/modelgit/.github/actions/check@COMMIT"


def can_confine() -> bool:
    """Whether this machine lets us take the network away; the script refuses to go on where it cannot."""
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and subprocess.run([unshare, "--map-current-user", "--net", "true"], check=False).returncode == 0
    )


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the action is for runners with Linux")
needs_confinement = pytest.mark.skipif(not can_confine(), reason="no name spaces here")


def load(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def steps(document: dict[Any, Any]) -> list[dict[str, Any]]:
    if "runs" in document:
        return list(document["runs"]["steps"])
    return [step for job in document["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", [ACTION / "action.yml", EXAMPLE], ids=lambda path: path.name)
def test_actions_are_pinned_and_nothing_foreign_is_pasted_into_commands(path: Path) -> None:
    for step in steps(load(path)):
        if "uses" in step:
            assert PINNED.fullmatch(step["uses"]) or (path == EXAMPLE and step["uses"] == OURS)
        else:
            assert "${{" not in step["run"]
            assert step["shell"] == "bash"
    # The versions are those that our own pipeline uses.
    own = re.findall(r"uses: (\S+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    known = {name.split("@")[0]: name for name in own}
    for step in steps(load(path)):
        name = step.get("uses", "").split("@")[0]
        assert known.get(name, step.get("uses")) == step.get("uses")


def test_every_variable_of_the_script_comes_from_an_input() -> None:
    document = load(ACTION / "action.yml")
    given = {name for step in steps(document) for name in step.get("env", {})}
    used = set(re.findall(r"\bCHECK_[A-Z_]+", SCRIPT.read_text())) | {"CHECK_EXTRAS"}
    assert given == used
    inputs = set(document["inputs"])
    text = (ACTION / "action.yml").read_text()
    assert inputs == set(re.findall(r"inputs\.([a-z-]+)", text))
    for step in steps(load(EXAMPLE)):
        if step.get("uses") == OURS:
            assert set(step["with"]) <= inputs
            assert all(isinstance(value, str | int) for value in step["with"].values())


def test_the_example_is_safe_for_forks() -> None:
    document = load(EXAMPLE)
    triggers = document[True]  # YAML 1.1 reads `on` as a truth value
    assert set(triggers) == {"pull_request"}
    assert document["permissions"] == {"contents": "read"}
    assert "secrets" not in EXAMPLE.read_text()
    jobs = document["jobs"]
    assert all("permissions" not in job and job["timeout-minutes"] <= 60 for job in jobs.values())
    for step in steps(document):
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    ours = {name: next(s["with"] for s in job["steps"] if s["uses"] == OURS) for name, job in jobs.items()}
    assert "suites" not in ours["check"] and "trust" not in ours["check"]
    assert ours["evaluate"]["suites"] == "all"
    assert "label.name == 'evaluate'" in jobs["evaluate"]["if"]
    # What is trusted comes from the base, what is checked from the head.
    for job in jobs.values():
        places = {s["with"]["path"]: s["with"]["ref"] for s in job["steps"] if "path" in s.get("with", {})}
        assert "base.sha" in places["protected"] and "head.sha" in places["proposal"]


def test_pre_commit_hooks_name_commands_that_exist() -> None:
    from modelgit.cli._commands import COMMANDS

    found = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["id"] for hook in found] == ["mgit-lint", "mgit-check"]
    for hook in found:
        program, command, *_ = hook["entry"].split()
        assert program == "mgit" and command in COMMANDS
        assert hook["language"] == "python" and hook["pass_filenames"] is False
        assert {"id", "name", "entry", "language"} <= set(hook)
    (pattern,) = [hook["files"] for hook in found if "files" in hook]
    assert all(re.search(pattern, path) for path in ("mgit.toml", "evals/smoke.toml", "evals/data/x.jsonl"))
    assert not re.search(pattern, "other/mgit.toml")


@needs_linux
def test_the_script_is_well_formed() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def program_in(place: Path) -> Path:
    """`bin/mgit` in `place`."""
    program = place / "bin" / "mgit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m modelgit "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return place


@pytest.fixture
def place(tmp_path: Path, files: Any) -> Path:
    """`weights`, an mgit remote with main; `proposal`, one of somebody else with a change; `bin/mgit`."""
    values = {"HOME": str(tmp_path), "MGIT_AUTHOR": "Ada <ada@example.org>", "PATH": "/usr/bin:/bin"}
    bot = tmp_path / "bot"
    bot.mkdir()
    arrays = {"embed.weight": np.random.default_rng(1).standard_normal((30, 8)).astype("<f4")}

    def mgit(*arguments: str) -> None:
        assert main(["-q", "-C", str(bot), *arguments], values=values) == 0

    def commit(message: str) -> None:
        (bot / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        mgit("commit", "-m", message)

    mgit("init")
    (bot / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    mgit("track", "bot.safetensors")
    commit("base")
    for name in ("weights", "proposal"):
        mgit("remote", "add", name, str(tmp_path / name))
        mgit("push", name, "main")
    arrays["embed.weight"] = arrays["embed.weight"] + np.float32(1e-3)
    commit("better")
    mgit("push", "proposal", "main")
    mgit("switch", "-c", "bad")
    arrays["embed.weight"][3, 3] = np.nan
    (bot / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    mgit("commit", "-m", "worse", "--gate", "warn")
    mgit("push", "proposal", "bad")
    return program_in(tmp_path)


def step(place: Path, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{place / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(place),
        "CHECK_REMOTE": "weights",
        "CHECK_PROPOSAL": "proposal",
        "CHECK_DIRECTORY": str(place / "work"),
        "GITHUB_OUTPUT": str(place / "output"),
        "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
        "SECRET": "do not tell",
        **variables,
    }
    command = ["bash", str(SCRIPT), name]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@needs_confinement
def test_a_proposal_is_cloned_and_checked(place: Path) -> None:
    # Kept by git, which forgets empty directories.
    for name in ("weights", "proposal"):
        for folder, directories, found in os.walk(place / name, topdown=False):
            if not directories and not found:
                Path(folder).rmdir()
    done = step(place, "clone")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (place / "output").exists()
    done = step(place, "run", CHECK_REVISION="bad")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (place / "output").read_text() == "code=1\n"
    reports = place / "work" / "reports"
    assert (place / "summary.md").read_text() == (reports / "check.md").read_text()
    assert (reports / "check.md").read_text().startswith("## ✗ mgit check: proposal/bad")
    assert "<failure" in (reports / "check.xml").read_text()
    assert (reports / "check.html").read_text().startswith("<!doctype html>")
    assert json.loads((reports / "check.sarif").read_text())["runs"][0]["results"]
    # Everything that is printed stands between guards, but for the annotations.
    assert "::error " in done.stdout
    inside = False
    for line in done.stdout.splitlines():
        if re.fullmatch(r"::stop-commands::[0-9a-f]{32}|::[0-9a-f]{32}::", line):
            assert inside != line.startswith("::stop")
            inside = not inside
        elif not inside and line:
            assert re.match("::(error|warning|notice) ", line)
    assert not inside


@needs_confinement
def test_the_check_sees_neither_network_nor_secrets_and_has_an_end(tmp_path: Path) -> None:
    place = program_in(tmp_path)
    program = place / "bin" / "mgit"
    probe = "import os, socket; print(sorted(os.environ)); print(socket.if_nameindex())"
    program.write_text(f'#!/bin/sh\n"{sys.executable}" -c "{probe}"\nulimit -v\nsleep 60\n')
    (place / "work" / "reports").mkdir(parents=True)
    done = step(place, "run", CHECK_MINUTES="0.02", CHECK_MEMORY_GIB="3")
    assert done.returncode == 124
    names, interfaces, memory = (place / "work" / "reports" / "log.txt").read_text().splitlines()
    assert not {"SECRET", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"} & set(re.findall(r"\w+", names))
    assert interfaces in ("[(1, 'lo')]", "[]")
    assert int(memory) == 3 << 20
