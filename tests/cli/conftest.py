"""Runs command lines in this process, as the console script would: the exit code, what was printed, what was said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from modelgit.cli.main import main


class Ran(NamedTuple):
    """One command's outcome."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        """Both streams, data first."""
        return self.out + self.err


@dataclasses.dataclass
class Runner:
    """`run("status", "--json")` in `directory`."""

    directory: Path
    values: dict[str, str]
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, code: int | None = 0, cwd: Path | None = None) -> Ran:
        """Run a command and check its exit code (None: any)."""
        self.capture.readouterr()
        found = main(["-C", str(cwd or self.directory), *arguments], values=self.values)
        out, err = self.capture.readouterr()
        if code is not None:
            assert found == code, f"mgit {' '.join(arguments)} ended with {found}\n{out}\n{err}"
        return Ran(found, out, err)


@pytest.fixture
def mgit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A runner in an empty directory, with a home of its own and a known author."""
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    # click asks the process, not the captured environment, whether a pager is wanted.
    monkeypatch.setenv("COLUMNS", "100")
    values = {"HOME": str(home), "MGIT_AUTHOR": "Ada <ada@example.org>", "PATH": "/usr/bin:/bin"}
    yield Runner(work, values, capsys)


_IDS = re.compile(r"\b(?:b3:)?(?:[0-9a-f]{64}|[0-9a-f]{12})\b")


@pytest.fixture
def mask_ids() -> object:
    """Replaces ids by `[id]`."""
    return lambda text: _IDS.sub("[id]", text)
