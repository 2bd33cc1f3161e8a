"""The gate of a merge: suites that only the other side brings bite, and code that it brings does not run."""

from __future__ import annotations

import pytest

from modelgit.errors import GateRefused, UsageError
from modelgit.repo import Repository
from modelgit.repo.merges.merge import merge
from modelgit.repo.tasks import task_examples
from modelgit.repo.tracking.switch import restore
from modelgit.repo.trust import allow_entry, trust
from modelgit.repo.upkeep.fsck import fsck

SUITE = """
[task.probe]
model = "bot.safetensors"
{how}
test = "probe.jsonl"
labels = ["no", "yes"]

[eval.probe]
task = "probe"
accuracy = {{ min = 0.5 }}
"""


def _bring_suite(bot: Repository, files, how: str) -> None:
    """A branch `strict` with one more suite, and another change on main."""
    bot.switch("strict", create=True)
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text() + SUITE.format(how=how))
    bot.forget_settings()
    bot.commit("a stricter gate", gate="warn")
    bot.switch("main")
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(7)))
    bot.commit("other weights")


def test_a_merge_must_pass_the_suites_of_the_other_side(bot: Repository, files) -> None:
    _bring_suite(bot, files, 'adapter = "bert-classifier"')
    before = bot.head()
    with pytest.raises(GateRefused) as refused:
        merge(bot, "strict", strategy="average")
    records = {record.suite: record for record in refused.value.records}  # type: ignore[attr-defined]
    assert records["probe"].decision == "error"  # there is no data: never a pass
    assert bot.head() == before
    assert bot.status().is_clean
    merge(bot, "strict", strategy="average", gate="warn")
    assert {verdict.suite: verdict.decision for verdict in bot.commit_at(bot.head()).verdicts}["probe"] == "error"


def test_code_that_a_merge_brings_does_not_run(bot: Repository, files) -> None:
    config = bot.worktree / "mgit.toml"
    for name in ("good", "evil"):
        (bot.worktree / f"{name}.py").write_text(
            f"from pathlib import Path\nPath({str(bot.worktree / name)!r}).touch()\ndef build(state, files): ...\n"
        )
    config.write_text(config.read_text() + '[task.mine]\nmodel = "bot.safetensors"\nentry = "good:build"\n')
    bot.forget_settings()
    bot.commit("my own code")
    _bring_suite(bot, files, 'entry = "evil:build"')
    trust(bot)
    allow_entry(bot, "good:build")
    with pytest.raises(UsageError, match="entry `evil:build` is code, and this repository is not trusted"):
        allow_entry(bot, "evil:build")
    (bot.worktree / "probe.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    with pytest.raises(GateRefused):
        merge(bot, "strict", strategy="average")
    assert not (bot.worktree / "evil").exists()


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside.jsonl", "data/../../outside.jsonl"])
def test_data_outside_of_the_repository_is_not_read(bot: Repository, path: str) -> None:
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text() + SUITE.format(how='adapter = "bert-classifier"').replace("probe.jsonl", path))
    bot.forget_settings()
    with pytest.raises(UsageError, match=r"\[task|cannot be read|outside|data file|test"):
        task_examples(bot, bot.settings.task["probe"], path)
    with pytest.raises(GateRefused) as refused:
        bot.commit("a suite on other people's files")
    records = {record.suite: record for record in refused.value.records}  # type: ignore[attr-defined]
    assert records["probe"].decision == "error"
    assert "cannot be read" in records["probe"].results[0].detail


def test_a_broken_mgit_toml_can_be_restored_and_checked(bot: Repository) -> None:
    config = bot.worktree / "mgit.toml"
    good = config.read_bytes()
    config.write_text("[track\n")
    bot.forget_settings()
    with pytest.raises(UsageError, match=r"mgit\.toml"):
        bot.status()
    assert fsck(bot).is_sound
    assert restore(bot, ["mgit.toml"]) == ["mgit.toml"]
    assert config.read_bytes() == good
    assert bot.status().is_clean


def test_the_values_of_a_recorded_commit_are_read_once(bot: Repository, files, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.evals import builtin
    from modelgit.repo.gates.evaluate import evaluate

    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(5)))
    bot.commit("other weights")
    first = evaluate(bot, "HEAD")
    seen: list[str] = []
    real = builtin.count_values

    def counting(reader, entry, **more):
        seen.append(entry.name)
        return real(reader, entry, **more)

    monkeypatch.setattr(builtin, "count_values", counting)
    again = evaluate(bot, "HEAD")
    assert again[0].results == first[0].results and again[0].baseline == first[0].baseline and not seen
    evaluate(bot, "HEAD~1")  # other manifests are another question
    assert len(seen) == 3
