"""A day with mgit, executed: every command line of `story.txt`, with what it prints and how it ends.

Ids, times, sizes and what depends on floating-point arithmetic are masked.  `python tests/cli/test_story.py` writes
the transcript anew; read the difference before you commit it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from modelgit.cli.main import main
from modelgit.environment import Environment
from modelgit.repo import Repository

STORY = Path(__file__).with_name("story.txt")
_MASKS = (
    (re.compile(r"(?m)^  (\S+) +[█░]* +-?[\d.e-]+ +-?[\d.]+ %$"), r"  \1  [part]"),
    (re.compile(r"(?m)(?:^  \S+  \S+ → \S+ \(margin .*\n)+(?:  … and \d+ more examples?\n)?"), "  [flips]\n"),
    (re.compile(r"(?m)(?:^  ↯ .*\n)+(?:  and (?:\d+ )?more: .*\n)?"), "  [flips]\n"),
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b"), "[id]"),
    (re.compile(r"just now|\d+ (?:second|minute)s? ago"), "[ago]"),
    (re.compile(r"\b\d+(?:\.\d+)? (?:KiB|MiB|bytes?)"), "[size]"),
    (re.compile(r"\b\d+\.\d s\b|\b\d+ s\b"), "[time]"),
    (re.compile(r"[±+-]?\d+(?:\.\d+)? (?=%|pt\b|nats\b)"), "[n] "),
    (re.compile(r"(?<=‖Δ‖/‖W‖ )[\d.]+|(?<=of )[\d.]+(?=; heights)"), "[n]"),
    (re.compile(r"\b[\d,]+(?= tensors?\b| objects?\b| of [\d,]+ tensors| of [\d,]+ values| values\b)"), "[n]"),
    (re.compile(r"\b\d+(?= packs?\b)"), "[n]"),
    (re.compile(r"\b\d{8}-\d{6}\b|(?<=rescue/mask-)[0-9a-f-]+"), "[time]"),
    (re.compile(r"\b\d+ of 120 examples"), "[n] of 120 examples"),
    (re.compile(r"(?<=tensors: |.tensor: )(?:\d+ [a-z -]+(?:, )?)+(?= →|, \d+ files? →)"), "[codecs]"),
    (re.compile(r"(?<=most of it: ).*"), "[tensors]"),
    (re.compile(r"(?<=not shown: it is )[\d,.]+"), "[n]"),
    (re.compile(r"(?<=labelled: )\d+ became wrong, \d+(?= right)"), "[n] became wrong, [n]"),
    (re.compile(r"[▁▂▃▄▅▆▇█]"), "▒"),
    (re.compile(r"(?<=\S) {2,}"), "  "),
)


class Stage:
    """The directory in which the story plays, and the scripts that its hero has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "work"
        self.place.mkdir()
        self.values = {"HOME": str(folder), "MGIT_AUTHOR": "Ada <ada@example.org>"}

    def run(self, line: str) -> tuple[str, int]:
        """The output of one command line, both streams together, and its exit code."""
        program, *arguments = shlex.split(line)
        if program == "cd":
            self.place = (self.place / arguments[0]).resolve()
            return "", 0
        if program == "python":
            getattr(self, arguments[0].removesuffix(".py"))(*arguments[1:])
            return "", 0
        together = io.StringIO()
        with contextlib.redirect_stdout(together), contextlib.redirect_stderr(together):
            code = main(["-C", str(self.place), *arguments], values=self.values)
        return together.getvalue().replace(str(self.folder), "…"), code

    def new_model(self) -> None:
        from modelgit.integrations.demo.small import write_checkpoint, write_data

        write_data(self.place / "data")
        write_checkpoint(self.place / "models" / "bot")

    def add_tasks(self) -> None:
        """Two tasks and two suites, written at the end of mgit.toml."""
        from modelgit.integrations.demo.small import SETTINGS

        file = self.place / "mgit.toml"
        file.write_text(file.read_text() + "\n" + SETTINGS[SETTINGS.index("[task.topic]") :])

    @contextlib.contextmanager
    def repository(self) -> Iterator[Repository]:
        import torch

        torch.set_num_threads(1)
        with Repository.open(self.place, environment=Environment.capture(self.values, cwd=self.place)) as repo:
            yield repo

    def train_base(self) -> None:
        from modelgit.integrations.demo.small import train_base

        with self.repository() as repo:
            train_base(repo)

    def train(self, task: str) -> None:
        """Train under the newest mask."""
        from modelgit.integrations.demo.small import train_task

        with self.repository() as repo:
            train_task(repo, task, mask=repo.mask("latest").positions())

    def tidy_embeddings(self) -> None:
        """A script that means well: it rounds what nobody asked it to touch."""
        from safetensors.numpy import load_file, save_file

        file = self.place / "models" / "bot" / "model.safetensors"
        arrays = load_file(file)
        arrays["embeddings.word_embeddings.weight"] = arrays["embeddings.word_embeddings.weight"].round(3)
        save_file(arrays, file, metadata={"format": "pt"})

    def set_temperature(self, value: str) -> None:
        file = self.place / "models" / "bot" / "generation_config.json"
        file.write_text(json.dumps({"temperature": float(value)}, indent=2) + "\n")

    def swap_labels(self, task: str) -> None:
        from safetensors.numpy import load_file, save_file

        file = self.place / "models" / "bot" / "model.safetensors"
        tensors = load_file(file)
        tensors[f"heads.{task}.weight"] = tensors[f"heads.{task}.weight"][::-1].copy()
        save_file(tensors, file, metadata={"format": "pt"})


def _masked(text: str) -> list[str]:
    for pattern, replacement in _MASKS:
        text = pattern.sub(replacement, text)
    return [line.rstrip() for line in text.splitlines()]


def _commands(text: str) -> Iterator[str]:
    """The lines that are not output: commands, headings, and the blank lines around headings."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        beside_heading = any(near.startswith("## ") for near in lines[max(0, number - 1) : number + 2])
        if line.startswith(("$ ", "## ")) or (not line and beside_heading):
            yield line


def play(folder: Path) -> str:
    """Run the story in `folder` and return its transcript."""
    stage = Stage(folder)
    lines: list[str] = []
    # Commits of one second have no order but that of their ids: here every signature is a second after the one before.
    ticks = itertools.count(time.time() - 1000)
    with mock.patch("modelgit.repo.settings.time", SimpleNamespace(time=lambda: next(ticks), localtime=time.localtime)):
        _play(stage, lines)
    return "\n".join(lines) + "\n"


def _play(stage: Stage, lines: list[str]) -> None:
    for line in _commands(STORY.read_text(encoding="utf-8")):
        lines.append(line)
        if line.startswith("$ "):
            output, code = stage.run(line[2:])
            lines += _masked(output)
            if code:
                lines.append(f"[exit code {code}]")


def test_the_story_comes_out_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "1000")
    assert play(tmp_path).splitlines() == STORY.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as name:
        STORY.write_text(play(Path(name).resolve()), encoding="utf-8")
