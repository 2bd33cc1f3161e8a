"""Commands as a user runs them: a private home, bytecode kept as an installed package has it, costs by `wait4`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

__all__ = ["Measured", "Shell", "medians", "store_bytes"]


class Measured(NamedTuple):
    """One command: CPU and wall seconds, and the largest process's peak resident MiB."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def medians(runs: Iterable[Measured]) -> Measured:
    """Each figure's median."""
    return Measured(*(median(values) for values in zip(*runs, strict=True)))


def store_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Shell:
    """Runs shell commands in `folder`, with a home directory of their own beside it.

    The package is started from its source tree here; bytecode goes to a folder beside the home, so that start-up
    costs what it costs when the package is installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        home = folder.parent / "home"
        home.mkdir(parents=True, exist_ok=True)
        people = {f"GIT_{who}_{what}": "b@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.environment = {
            **kept,
            **people,
            "HOME": str(home),
            "MGIT_AUTHOR": "b <b@example.org>",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode"),
            **(settings or {}),
        }

    @classmethod
    def fresh(cls, folder: Path, settings: Mapping[str, str] | None = None) -> Shell:
        """The same in a new, empty folder; what was there is removed."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return cls(folder, settings)

    def run(self, command: str, **settings: str) -> Measured:
        """Run a command to its end and account for it and its children.

        `settings` are more environment variables.  Raises RuntimeError when it fails.
        """
        with tempfile.TemporaryFile() as output:
            started = time.monotonic()
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env={**self.environment, **settings},
                stdout=output,
                stderr=output,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                output.seek(0)
                raise RuntimeError(f"{command}: exit {process.returncode}\n{output.read().decode()}")
        return Measured(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)
