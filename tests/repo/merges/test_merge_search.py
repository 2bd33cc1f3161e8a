"""A search over strategies: the best that passes the gate makes the merge."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from modelgit.errors import GateRefused, NothingToDo, UsageError  # noqa: E402
from modelgit.integrations.demo.small import SETTINGS, write_checkpoint, write_data  # noqa: E402
from modelgit.repo import Repository  # noqa: E402
from modelgit.repo.merges.search import Score, default_candidates, halve, search, shares_of  # noqa: E402

SUITES = """
[eval.topic]
task = "topic"
accuracy = { LIMIT }

[eval.tone]
task = "tone"
accuracy = { min = 0.0 }
"""
TRIED = ("average weights=1,0", "average weights=0,1", "average", "task-arithmetic", "task-arithmetic scale=0.5")


@pytest.fixture
def pair(repo: Repository) -> Repository:
    """A tiny encoder with two heads, and a branch for each, trained on its task."""
    from safetensors.numpy import load_file, save_file

    torch.set_num_threads(1)
    model = repo.worktree / "models/bot"
    model.mkdir(parents=True)
    write_checkpoint(model)
    (repo.worktree / "data").mkdir()
    write_data(repo.worktree / "data", train=60, test=120)
    tasks = SETTINGS.partition("# The gate")[0]
    (repo.worktree / "mgit.toml").write_text(tasks)
    repo.forget_settings()
    repo.commit("base")
    file = model / "model.safetensors"
    for number, branch in enumerate(("topic", "tone")):
        repo.switch(branch, create=True, start="main") if number else repo.switch(branch, create=True)
        state = load_file(file)
        rng = np.random.default_rng(number)
        for name, array in state.items():
            if name.startswith(f"heads.{branch}") or "layer" in name:
                state[name] = (array + 0.02 * rng.standard_normal(array.shape)).astype(np.float32)
        save_file(state, file)
        repo.commit(f"train {branch}")
    repo.switch("topic")
    return repo


def suites(repo: Repository, limit: str = "max_drop = 1.0") -> None:
    project = repo.worktree / "mgit.toml"
    project.write_text(project.read_text().partition("\n[eval")[0] + "\n" + SUITES.replace("LIMIT", limit))
    repo.forget_settings()
    repo.commit("suites")


def test_a_search_finds_what_trying_everything_finds(pair: Repository) -> None:
    suites(pair)
    before = pair.head()
    full = search(pair, "tone", candidates=TRIED, exhaustive=True)
    assert full.evaluated == full.exhaustive == len(TRIED) * 240
    assert [score.mean for score in full.scores] == sorted((score.mean for score in full.scores), reverse=True)
    assert full.chosen == full.scores[0].candidate
    assert full.merged.commit.commit.recipe.strategy == full.chosen.split()[0]
    assert len(full.notes) == 2 and "are the data that the gate reports on" in full.notes[0]
    pair.switch("again", create=True, start=str(before))
    halved = search(pair, "tone", candidates=TRIED)
    assert halved.evaluated < full.evaluated
    by_name = {score.candidate: score.mean for score in full.scores}
    assert by_name[halved.chosen] >= full.scores[0].mean - 0.05
    finalists = [score for score in halved.scores if score.examples == 240]
    assert {score.candidate: score.mean for score in finalists}.items() <= by_name.items()


def test_a_candidate_that_the_gate_refuses_is_passed_over(pair: Repository) -> None:
    suites(pair)
    open_gate = search(pair, "tone", candidates=TRIED, exhaustive=True)
    pair.switch("strict", create=True, start="topic~1")
    topic = {score.candidate: score.by_suite["topic"] for score in open_gate.scores}
    # Only what keeps the topics of ours passes.
    ours = topic["average weights=1.0,0.0"]
    suites(pair, limit=f"min = {ours!r}")
    kept = [name for name, value in topic.items() if value >= ours]
    done = search(pair, "tone", candidates=TRIED, exhaustive=True)
    assert done.chosen in kept
    assert all(name not in kept for name in done.refused)
    losing = [name for name in topic if name not in kept]
    if losing:
        pair.switch("refused", create=True, start=str(pair.parents_of(pair.head())[0]))
        before = pair.head()
        with pytest.raises(GateRefused):
            search(pair, "tone", candidates=losing[:1])
        assert pair.head() == before


def test_other_data_may_choose(pair: Repository) -> None:
    suites(pair)
    files = {"topic": "data/topic.train.jsonl", "tone": "data/tone.train.jsonl"}
    done = search(pair, "tone", candidates=TRIED[:2], data=files)
    assert done.notes == ()
    assert done.scores[0].examples == 120
    pair.switch("other", create=True, start="topic~1")
    with pytest.raises(UsageError, match="no suite `x`"):
        search(pair, "tone", candidates=TRIED, data={"x": "y"})


def test_what_cannot_be_searched_is_said(pair: Repository) -> None:
    with pytest.raises(UsageError, match="labelled data"):
        search(pair, "tone", candidates=TRIED)
    suites(pair)
    with pytest.raises(NothingToDo, match="has main already"):
        search(pair, "main")
    with pytest.raises(UsageError, match="no merge strategy"):
        search(pair, "tone", candidates=["nothing"])


def test_the_default_is_a_wide_search_that_counts_a_third_at_most() -> None:
    for fisher in (True, False):
        assert len(default_candidates(fisher=fisher)) >= 60
        assert len(set(default_candidates(fisher=fisher))) == len(default_candidates(fisher=fisher))
    for examples in (250, 400, 1000, 4000):
        left, cost, before = len(default_candidates()), 0.0, 0.0
        for share in shares_of(left, examples):
            cost, before = cost + left * (share - before), share
            left //= 2
        # Both neighbours of the best at last, of which at least the first round was seen.
        assert cost + 2 * (1 - shares_of(len(default_candidates()), examples)[0]) <= len(default_candidates()) / 3


def test_the_neighbours_of_the_best_are_looked_at_again() -> None:
    names = ["ties density=0.1", "average", *(f"fisher-task scale={scale}" for scale in (1.0, 1.5, 2.0, 2.5))]
    whole = {"fisher-task scale=1.5": 0.9, "fisher-task scale=2.0": 0.8, "average": 0.7}
    early = whole | {"fisher-task scale=1.5": 0.1}
    asked: list[tuple[str, float]] = []

    def score(name: str, share: float) -> Score:
        asked.append((name, share))
        return Score(name, (whole if share == 1 else early).get(name, 0.3), {}, round(100 * share))

    order, counted = halve(names, [0.5, 1.0], score)
    assert order[0].candidate == "fisher-task scale=1.5"
    # Three go on, and both neighbours of scale 2.0, which the first round liked best, fell out.
    assert [name for name, share in asked if share == 1] == [
        "fisher-task scale=2.0", "average", "ties density=0.1", "fisher-task scale=1.5", "fisher-task scale=2.5",
    ]  # fmt: skip
    assert counted == 5 * 100 + 1 * 50


def test_candidates_are_scored_as_their_suites_run(pair: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.models.base import TaskModel
    from modelgit.repo.gates import sides as eval_sides

    (pair.worktree / "evals").mkdir()
    (pair.worktree / "evals/wide.toml").write_text(
        'task = "topic"\n[run]\ndtype = "float64"\n[[test]]\nname = "flips"\nkind = "nfr"\n'
        'path = "data/topic.test.jsonl"\nmax = 1.0\n'
    )
    suites(pair)
    seen: set[torch.dtype] = set()
    plain = eval_sides.predict

    def predict(model: TaskModel, *arguments: object, **options: object) -> object:
        seen.add(next(model.module.parameters()).dtype)
        return plain(model, *arguments, **options)

    monkeypatch.setattr(eval_sides, "predict", predict)
    search(pair, "tone", candidates=["average"])
    assert seen == {torch.float32, torch.float64}
