"""The acceptance story: a base, two branches trained under FISH masks, a refusal, a merge, a push and a clone.

Everything is done by commands that a user would type, and every figure that is shown was measured in the run.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from modelgit.environment import Environment
from modelgit.errors import CheckFailed
from modelgit.integrations.demo.files import SCRIPT, add_suite, data_path, settings_text
from modelgit.integrations.demo.texts import TaskTexts, write_rows
from modelgit.progress import SILENT, Progress

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Recipe", "Stage", "Suites", "Training", "play"]

WORK, REMOTE, CLONE = "work", "remote.mgit", "clone"
SCRIPT_NAME = "train.py"
_SETTINGS = "mgit.toml"


class Stage(Protocol):
    """Where the story is played: it shows what is said and typed, and runs the commands."""

    def heading(self, text: str) -> None:
        """A new chapter."""

    def say(self, text: str) -> None:
        """A short line of narration."""

    def block(self, title: str, text: str) -> None:
        """A file, or a part of one."""

    def table(self, rows: list[list[str]], *, right: tuple[int, ...]) -> None:
        """Rows of cells, the columns in `right` aligned to the right."""

    def mgit(self, directory: Path, *arguments: str, code: int = 0) -> None:
        """Show and run `mgit ARGUMENTS` in `directory`.  Raises CheckFailed when it ends with another code."""

    def python(self, directory: Path, *arguments: str) -> None:
        """Show and run `python ARGUMENTS` in `directory`.  Raises CheckFailed when it fails."""


class Training(NamedTuple):
    """A run of the training script."""

    epochs: int
    rate: float
    batch: int

    @property
    def arguments(self) -> tuple[str, ...]:
        """As the script takes them."""
        return (str(self.epochs), f"{self.rate:g}", str(self.batch))


class Suites(NamedTuple):
    """The tables that the branches add to mgit.toml."""

    questions: str
    reviews: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the branches are trained; `density` and `merge` as they are typed.

    `relied_on` is the limit on negative flips once people use the answers: lower than that of the first training.
    """

    suites: Suites
    density: str = "0.5%"
    fisher_examples: int = 128
    merge: str = "fisher weights=1,1.5"
    relied_on: str = "0.025"
    questions: Training
    hasty: Training
    reviews: Training


def play(
    place: Path,
    published: Path,
    questions: TaskTexts,
    reviews: TaskTexts,
    recipe: Recipe,
    *,
    stage: Stage,
    environment: Environment,
    progress: Progress = SILENT,
) -> None:
    """Play the story in `place`, an empty or missing directory: work tree, remote and clone stay there.

    `published` is the directory of the encoder (see `write_base`); `questions.later` is the batch with wrong labels.
    Raises CheckFailed when a command does not end as the story tells.
    """
    started = time.monotonic()
    place.mkdir(parents=True, exist_ok=True)
    work = place / WORK
    _base(place, published, (questions, reviews), stage, progress)
    _branch(work, "questions", recipe.suites.questions, recipe.questions, recipe, stage)
    _rely(work, recipe, stage)
    _refusal(work, questions, recipe, stage, environment)
    stage.mgit(work, "switch", "main")
    _branch(work, "reviews", recipe.suites.reviews, recipe.reviews, recipe, stage)
    _merge(work, recipe, stage)
    _share(place, stage, environment)
    _closing_table(place, stage, environment)
    stage.say(
        f"Played in {time.monotonic() - started:.0f} s.  All of it is in {place}; `mgit log` in {WORK} is a start."
    )


def _base(place: Path, published: Path, tasks: tuple[TaskTexts, ...], stage: Stage, progress: Progress) -> None:
    from modelgit.integrations.demo.checkpoint import MODEL, write_base

    work = place / WORK
    stage.heading("A base: a published encoder, and a head for each of two tasks")
    stage.mgit(place, "init", WORK)
    for task in tasks:
        write_rows(work / data_path(task.name, "train"), task.train)
        write_rows(work / data_path(task.name, "test"), task.test)
        stage.say(f"{task.name}: {len(task.train):,} texts to train on, {len(task.test):,} to test on")
    (work / _SETTINGS).write_text(settings_text(tasks), encoding="utf-8", newline="\n")
    write_base(work, published, tasks, progress=progress)
    stage.say("the heads were fitted on the encoder's features as they are; the encoder is untouched")
    stage.mgit(work, "track", MODEL)
    stage.mgit(work, "track", "data")
    stage.mgit(work, "commit", "-m", "Published encoder with two fitted heads")
    (work / SCRIPT_NAME).write_text(SCRIPT, encoding="utf-8", newline="\n")
    stage.block(SCRIPT_NAME, SCRIPT)


def _branch(work: Path, task: str, suite: str, training: Training, recipe: Recipe, stage: Stage) -> None:
    """Train a task on a branch of its own under a FISH mask, look at the change, and commit it."""
    examples = str(recipe.fisher_examples)
    stage.heading(f"A branch for {task}: train {recipe.density} of the weights, chosen by Fisher information")
    stage.mgit(work, "switch", "-c", task)
    settings = work / _SETTINGS
    settings.write_text(add_suite(settings.read_text(encoding="utf-8"), task, suite), encoding="utf-8", newline="\n")
    stage.block(_SETTINGS, suite)
    stage.mgit(work, "mask", "create", "--density", recipe.density, "--task", task, "--examples", examples)
    stage.python(work, SCRIPT_NAME, task, data_path(task, "train"), *training.arguments, "latest")
    stage.mgit(work, "diff", "--fisher", "--task", task, "--examples", examples)
    stage.mgit(work, "commit", "--mask", "latest", "-m", f"{task}: train under a FISH mask")


def _rely(work: Path, recipe: Recipe, stage: Stage) -> None:
    stage.heading("From now on people rely on the answers: fewer of them may break")
    stage.mgit(work, "config", "set", "--shared", "eval.questions.negative_flips.max", recipe.relied_on)
    stage.mgit(work, "commit", "-m", "questions: a tighter limit on answers that break")


def _refusal(work: Path, questions: TaskTexts, recipe: Recipe, stage: Stage, environment: Environment) -> None:
    """A patch that accuracy alone would let through; whether it would is looked up, not assumed."""
    from modelgit.repo.repository import Repository

    stage.heading("A patch that the gate refuses")
    stage.say(f"A new batch of {len(questions.later):,} questions was labelled in haste, one in ten of them wrongly.")
    stage.say("Somebody trains all of the weights on it:")
    batch = "hasty.jsonl"
    write_rows(work / batch, questions.later)
    stage.python(work, SCRIPT_NAME, "questions", batch, *recipe.hasty.arguments)
    stage.mgit(work, "commit", "-m", "questions: train on the new batch", code=1)
    with Repository.open(work, environment=environment) as repo:
        verdict = repo.evaluate(suites=["questions"])[0]  # predictions are known by now
    found = {check.name: check for check in verdict.results}
    accuracy, flips = found["accuracy"], found["negative flips"]
    if accuracy.decision == "pass" and flips.decision == "fail":
        stage.say(f"Accuracy ({_rate(accuracy.baseline)} → {_rate(accuracy.value)}) would have let it through.")
    else:
        stage.say("Accuracy noticed it here, too.")
    stage.mgit(work, "restore", "models")


def _merge(work: Path, recipe: Recipe, stage: Stage) -> None:
    stage.heading("Merge both into main; values that both changed are weighted by their Fisher information")
    examples = str(recipe.fisher_examples)
    for task in ("questions", "reviews"):
        stage.mgit(work, "fisher", task, "--task", task, "--estimator", "rademacher", "--examples", examples)
    stage.mgit(work, "switch", "main")
    stage.mgit(work, "merge", "questions")
    stage.mgit(work, "merge", "reviews", "--strategy", recipe.merge)
    stage.say("The gate compared with what main was a moment ago; reviews against where they started:")
    stage.mgit(work, "eval", "--suite", "reviews", "--baseline", "main~3")
    stage.mgit(work, "log", "--graph", "--oneline")


def _share(place: Path, stage: Stage, environment: Environment) -> None:
    from modelgit.repo.repository import Repository

    stage.heading("Push, clone, compare")
    work, clone = place / WORK, place / CLONE
    stage.mgit(work, "remote", "add", "origin", f"../{REMOTE}")
    stage.mgit(work, "push", "origin", "main", "questions", "reviews")
    stage.mgit(place, "clone", REMOTE, CLONE)
    with Repository.open(work, environment=environment) as repo:
        paths = [entry.path for entry in repo.manifest_of(repo.head()).files]
    size = 0
    for path in paths:
        if _sha256(work / path) != _sha256(clone / path):
            raise CheckFailed(f"{path} in the clone differs from the original", hint=f"`mgit -C {clone} fsck`")
        size += (clone / path).stat().st_size
    stage.say(f"{len(paths)} files, {size:,} bytes: SHA-256 of each is the same in the work tree and in the clone.")
    stage.mgit(clone, "status")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Line(NamedTuple):
    """A commit in the closing table; bytes, and how many values changed where that was counted."""

    subject: str
    changed: int | None
    stored: int
    whole: int


def _closing_table(place: Path, stage: Stage, environment: Environment) -> None:
    from modelgit.repo.repository import Repository

    stage.heading("What it takes")
    with Repository.open(place / WORK, environment=environment) as repo:
        lines = list(_lines(repo))
    rows = [["commit", "values changed", "bytes", "whole copy", "part", "bytes a value"]]
    for line in lines:
        per_value = f"{line.stored / line.changed:.2f}" if line.changed else ""
        changed = f"{line.changed:,}" if line.changed else ""
        rows.append(
            [line.subject, changed, f"{line.stored:,}", f"{line.whole:,}", _part(line.stored, line.whole), per_value]
        )
    remote = sum(path.stat().st_size for path in (place / REMOTE).rglob("*") if path.is_file())
    whole = sum(line.whole for line in lines)
    rows.append([f"the remote, {len(lines)} commits", "", f"{remote:,}", f"{whole:,}", _part(remote, whole), ""])
    stage.table(rows, right=(1, 2, 3, 4, 5))


def _lines(repo: Repository) -> Iterator[_Line]:
    from modelgit.repo.history.log import log

    for entry in reversed(list(log(repo))):
        counts = [change.values_changed for change in entry.patch.tensors]
        known = [count for count in counts if count is not None]
        yield _Line(
            subject=entry.commit.subject,
            changed=sum(known) if len(known) == len(counts) else None,
            stored=entry.patch.bytes_added,
            whole=sum(file.size for file in repo.manifest_of(entry.id).files),
        )


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _part(size: int, whole: int) -> str:
    return f"{100 * size / whole:.2f} %" if whole else ""
