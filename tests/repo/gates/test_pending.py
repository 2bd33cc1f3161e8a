"""Commits whose suites run later: recorded as pending, told at a push, settled by a verdict from any machine."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from modelgit.errors import GateRefused
from modelgit.objects import EvalRecord
from modelgit.repo import Repository
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.sync import push
from modelgit.repo.gates.gate import recorded_verdicts
from modelgit.repo.gates.pending import due_suites
from modelgit.repo.history.log import log
from modelgit.repo.notes import attach_verdicts

SUITE = """
[task.probe]
model = "bot.safetensors"
adapter = "bert-classifier"
test = "probe.jsonl"
labels = ["no", "yes"]

[eval.probe]
task = "probe"
accuracy = { min = 0.5 }

[gate]
when = "push"
"""


@pytest.fixture
def later(bot: Repository, files) -> Repository:
    """A repository with a suite that cannot run here, and one more commit."""
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text() + SUITE)
    bot.forget_settings()
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(7)))
    bot.commit("other weights")
    return bot


def passed(repo: Repository) -> EvalRecord:
    pending = recorded_verdicts(repo, repo.resolve("HEAD"))[-1]
    return replace(pending, decision="pass", suite_id="1")


def test_a_commit_waits_for_its_suites_and_is_settled_by_a_note(later: Repository) -> None:
    head = later.resolve("HEAD")
    assert [(item.suite, item.decision) for item in recorded_verdicts(later, head)] == [
        ("builtin", "pass"), ("probe", "pending"),
    ]  # fmt: skip
    assert next(log(later)).verdict == "pending"
    add_remote(later, "origin", str(later.worktree.parent / "origin.mgit"))
    assert push(later).due == (("heads/main", ("probe",)),)
    attach_verdicts(later, head, [passed(later)])
    assert due_suites(later, head) == ()
    assert next(log(later)).verdict == "pass"
    sent = push(later)
    assert (sent.updates, sent.due, len(sent.notes)) == ((), (), 1)


def test_the_built_in_gate_does_not_wait(later: Repository, files) -> None:
    arrays = files.floats(8)
    arrays["layers.0.weight"][0, 0] = float("nan")
    (later.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    with pytest.raises(GateRefused):
        later.commit("not finite")


def test_a_suite_of_the_stage_push_is_due_without_a_verdict(bot: Repository) -> None:
    (bot.worktree / "evals").mkdir()
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text() + SUITE.partition("[eval.probe]")[0])
    test = 'name = "a"\nkind = "resources"\nmetrics.bytes = { max = 1e9 }\n'
    (bot.worktree / "evals/slow.toml").write_text(f'task = "probe"\n[run]\nstage = "push"\n[[test]]\n{test}')
    bot.forget_settings()
    commit = bot.commit("a suite for pushes").id
    assert [item.suite for item in recorded_verdicts(bot, commit)] == ["builtin"]
    assert due_suites(bot, commit) == ("slow",)
