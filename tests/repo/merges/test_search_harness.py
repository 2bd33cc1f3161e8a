"""A search scored by tasks of the lm-evaluation-harness, with a stand-in for the package."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")

from modelgit.errors import MissingExtraError, UsageError
from modelgit.evals.child import HarnessRequest
from modelgit.evals.harness import run_harness
from modelgit.evals.kinds import harness
from modelgit.evals.outcomes import parse_outcome
from modelgit.repo import Repository
from modelgit.repo.merges.search import search
from modelgit.repo.trust import trust

TASK = '[task.lm]\nmodel = "models/lm"\nkind = "causal-lm"\n'
SUITE = """task = "lm"
[[test]]
name = "quiz"
kind = "lm-eval"
tasks = ["easy", "hard"]
metrics = { "easy.acc" = { min = 0.0 } }
"""
TRIED = ("average weights=1,0", "average weights=0,1", "average", "task-arithmetic scale=0.4", "average weights=1,3")
SIZES = {"easy": 60, "hard": 90}


class StandIn:
    """`lm_eval` as far as it is called: document n of a task is right where the weights' mean is above a bound."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[int]]] = []
        self.folders: list[Path] = []
        self.metric = "acc"

    def simple_evaluate(
        self,
        *,
        model: Any,
        tasks: list[str],
        samples: dict[str, list[int]] | None = None,
        limit: int | None,
        **_: object,
    ) -> dict[str, Any]:
        mean = float(next(iter(model.weights.values())).mean())
        chosen = samples or {task: list(range(limit or SIZES[task])) for task in tasks}
        assert sorted(chosen) == sorted(tasks) and all(numbers == sorted(numbers) for numbers in chosen.values())
        self.asked.append(chosen)
        found: dict[str, list[dict[str, Any]]] = {}
        for task, numbers in chosen.items():
            low = 0.5 if task == "hard" else 0.0
            right = [mean > low + ((at * 37) % SIZES[task]) / SIZES[task] / 2 for at in numbers]
            found[task] = [{"doc_id": at, self.metric: float(one)} for at, one in zip(numbers, right, strict=True)]
        means = {t: {f"{self.metric},none": float(np.mean([s[self.metric] for s in v]))} for t, v in found.items()}
        return {"results": means, "samples": found}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    from safetensors.numpy import load_file

    made = StandIn()

    class Model:
        def __init__(self, *, pretrained: str, **_: object) -> None:
            made.folders.append(Path(pretrained))
            assert {folder for folder in made.folders if folder.exists()} == {Path(pretrained)}, "one at a time"
            self.weights = load_file(Path(pretrained) / "model.safetensors")

    class Manager:
        all_tasks = list(SIZES)

        def __init__(self, **_: object) -> None:
            pass

    for name, names in {
        "lm_eval": {"simple_evaluate": made.simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": Model},
        "lm_eval.tasks": {"TaskManager": Manager},
    }.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)

    def asked(run: object, request: HarnessRequest, *, what: str, **_: object) -> tuple[Any, dict[str, str]]:
        return parse_outcome(msgspec.json.encode(run_harness(request)), what=what), {}

    monkeypatch.setattr(harness, "asked_python", asked)  # the process of its own that the package runs in
    monkeypatch.setattr(harness, "_version", lambda: "0")
    return made


@pytest.fixture
def pair(repo: Repository, files: Any) -> Repository:
    """A model of which theirs is the better one, and an evals/quiz.toml."""
    folder = repo.worktree / "models/lm"
    folder.mkdir(parents=True)
    (repo.worktree / "mgit.toml").write_text(TASK)
    (repo.worktree / "evals").mkdir()
    (repo.worktree / "evals/quiz.toml").write_text(SUITE)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')

    def commit(mean: float, message: str) -> None:
        values = np.linspace(mean - 0.1, mean + 0.1, 64, dtype=np.float32)
        (folder / "model.safetensors").write_bytes(files.of_arrays({"wte.weight": values}))
        repo.track("models/lm")
        repo.forget_settings()
        repo.commit(message, gate="warn")

    commit(0.3, "base")
    repo.switch("side", create=True)
    commit(0.9, "theirs")
    repo.switch("main")
    commit(0.5, "ours")
    return repo


def test_a_search_takes_what_the_tasks_find_best(pair: Repository, package: StandIn) -> None:
    package.asked.clear()
    before = pair.head()
    done = search(pair, "side", candidates=TRIED)
    assert done.chosen == "average weights=0.0,1.0" == done.scores[0].candidate
    assert done.scores[0].by_suite == {"quiz": done.scores[0].mean}
    # The mean of both tasks, whatever their lengths: of the easy one all are right, of the hard one four in five.
    assert done.scores[0].mean == pytest.approx((1 + 0.8) / 2, abs=0.02)
    assert done.exhaustive == len(TRIED) * 150
    assert done.evaluated == sum(score.examples for score in done.scores) < done.exhaustive
    assert any("the documents that chose are those that the gate reports on" in note for note in done.notes)
    assert package.folders and not any(folder.exists() for folder in package.folders)
    # All candidates saw the same documents, and none of them twice.
    rounds = [chosen for chosen in package.asked if len(chosen["easy"]) < 60]
    # Five, the better two of them, and the neighbours of the best, which the first round had dropped.
    assert len(rounds) == len(TRIED) + 2 + 2
    assert all(chosen == rounds[0] for chosen in rounds[: len(TRIED)])
    assert not {*rounds[-1]["hard"]} & {*rounds[0]["hard"]} and len(rounds[-1]["hard"]) + len(rounds[0]["hard"]) == 90
    # What was asked before is known: a search that was interrupted goes on where it was.
    pair.switch("again", create=True, start=str(before))
    package.asked.clear()
    again = search(pair, "side", candidates=TRIED)
    assert again.scores == done.scores and package.asked == []


def test_which_suites_score(pair: Repository, package: StandIn) -> None:
    other = SUITE.replace("quiz", "first").replace('["easy", "hard"]', '["easy"]') + SUITE.partition("\n")[2]
    (pair.worktree / "evals/other.toml").write_text(other)
    pair.commit("another suite", gate="warn")
    for wrong, words in (
        ({"suites": ["quizz"]}, "did you mean `quiz`"),
        ({"data": {"quiz": "x.jsonl"}}, "no labelled data that others could stand for"),
        ({"suites": ["quiz"], "data": {"other": "x.jsonl"}}, "does not score"),
    ):
        with pytest.raises(UsageError, match=words):
            search(pair, "side", candidates=TRIED, **wrong)
    done = search(pair, "side", candidates=TRIED[:2], suites=["other"], exhaustive=True)
    assert set(done.scores[0].by_suite) == {"other/first", "other/quiz"}
    assert done.scores[0].examples == 60 + 150


def test_what_cannot_score_is_said_before_anything_is_merged(
    pair: Repository, package: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = pair.worktree / "evals/quiz.toml"

    def refused(text: str, error: type[Exception], words: str) -> None:
        suite.write_text(text)
        pair.commit("suite", gate="warn")
        with pytest.raises(error, match=words):
            search(pair, "side", candidates=TRIED)

    refused(SUITE + 'metric = "f1"\n', UsageError, "no `f1` of single documents; its metrics are easy.acc, hard.acc")
    (pair.worktree / "evals/tasks").mkdir()
    (pair.worktree / "evals/tasks/easy.yaml").write_text("task: easy\n")
    refused(SUITE + 'include_path = "evals/tasks"\n', UsageError, "is not trusted here")
    trust(pair)
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="lm-evaluation-harness"):
        search(pair, "side", candidates=TRIED)
