"""Fisher estimates as kept objects: coded, found again, resumed, inspected, named where they are used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from modelgit.cli._demo import SETTINGS, write_checkpoint, write_data  # noqa: E402
from modelgit.errors import IntegrityError, UsageError  # noqa: E402
from modelgit.objects import CommitId, KeptEstimate  # noqa: E402
from modelgit.repo import Repository, fisher_passes  # noqa: E402
from modelgit.repo.fisher import diagonal_of, estimate_fisher, list_estimates, shown_fisher, stored_fisher  # noqa: E402
from modelgit.repo.fisher_summary import summarise  # noqa: E402
from modelgit.repo.fsck import fsck  # noqa: E402
from modelgit.repo.gc import collect  # noqa: E402
from modelgit.repo.merge import merge  # noqa: E402
from modelgit.repo.statistics import find_kept, forget, kept_estimates  # noqa: E402

TASKS = SETTINGS.partition("# The gate")[0]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def change(repo: Repository, scale: float, heads: str) -> CommitId:
    """Move some weights and one head, as training would."""
    from safetensors.numpy import load_file, save_file

    file = repo.worktree / "models/bot/model.safetensors"
    state = load_file(file)
    random = np.random.default_rng(int(scale * 1000))
    for name, array in state.items():
        if name.startswith(f"heads.{heads}") or "layer.1" in name:
            state[name] = (array + scale * random.standard_normal(array.shape)).astype(np.float32)
    save_file(state, file)
    return repo.commit(f"train {heads}").id


def set_up(repo: Repository) -> Repository:
    """A tiny BERT with two heads and data for both, and a branch for each."""
    model = repo.worktree / "models/bot"
    model.mkdir(parents=True)
    write_checkpoint(model)
    (repo.worktree / "data").mkdir()
    write_data(repo.worktree / "data", train=40, test=10)
    (repo.worktree / "mgit.toml").write_text(TASKS)
    repo.forget_settings()
    repo.commit("base")
    for number, branch in enumerate(("topic", "tone")):
        repo.switch(branch, create=True, start="main") if number else repo.switch(branch, create=True)
        change(repo, 0.01 * (number + 1), branch)
        repo.switch("main")
    return repo


@pytest.fixture
def tasks(repo: Repository) -> Repository:
    return set_up(repo)


def test_an_estimate_is_coded_kept_and_found_again(tasks: Repository) -> None:
    exact = estimate_fisher(tasks, task="topic", revision="topic", exact_storage=True)
    assert not exact.cached and not exact.estimate.scales
    assert estimate_fisher(tasks, task="topic", revision="topic").id == exact.id  # exact is good for both
    forget(tasks, find_kept(tasks, "latest"))
    coded = estimate_fisher(tasks, task="topic", revision="topic")
    assert not coded.cached and len(coded.estimate.scales) > 30
    again = estimate_fisher(tasks, task="topic", revision="topic")
    assert again.cached and again.id == coded.id and again.words.startswith("Fisher kept from an earlier pass over 40")
    assert not estimate_fisher(tasks, task="topic", revision="topic", seed=1, examples=20).cached
    # Asked for exactly, codes will not do.
    assert estimate_fisher(tasks, task="topic", revision="topic", exact_storage=True).id == exact.id
    left, right = diagonal_of(tasks, exact.estimate), diagonal_of(tasks, coded.estimate)
    assert sorted(left) == sorted(right) and left.keys() == right.keys()
    for name in left:
        total = float(left[name].sum(dtype=np.float64))
        assert float(right[name].sum(dtype=np.float64)) == pytest.approx(total, rel=1e-3)
        assert np.array_equal(left[name] == 0, right[name] == 0)
        near = left[name] > left[name].max() * 1e-8
        assert np.allclose(left[name][near], right[name][near], rtol=0.05, atol=0)
    assert exact.estimate.head == ("heads.topic.bias", "heads.topic.weight") and exact.estimate.weights


def test_the_list_survives_gc_and_undo_and_forgets_what_is_removed(tasks: Repository) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic")
    operations = len(list(tasks.operations.history(tasks.roots.read().root.operation)))
    estimate_fisher(tasks, task="tone", revision="tone")
    # Keeping an estimate is nothing that `undo` could take back.
    assert len(list(tasks.operations.history(tasks.roots.read().root.operation))) == operations
    collect(tasks, prune_now=True)
    assert [item.estimate.task for item in list_estimates(tasks)] == ["tone", "topic"]
    assert estimate_fisher(tasks, task="topic", revision="topic").cached
    assert not fsck(tasks).findings
    forget(tasks, find_kept(tasks, made.id.hex[:8]))
    before = tasks.store.has(made.id)
    collect(tasks, prune_now=True)
    assert before and [item.estimate.task for item in list_estimates(tasks)] == ["tone"]
    with pytest.raises(UsageError, match="no Fisher estimate"):
        stored_fisher(tasks, made.id.hex[:8])


def test_a_damaged_list_is_one_sentence_and_a_finding(tasks: Repository) -> None:
    estimate_fisher(tasks, task="topic", revision="topic")
    [file] = (tasks.paths.directory / "statistics").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"the list of kept estimates .* does not match its id"):
        kept_estimates(tasks)
    with pytest.raises(IntegrityError):
        collect(tasks)
    assert [finding.subject for finding in fsck(tasks).findings] == ["statistics"]


class Killed(BaseException):
    """The process ends here."""


def test_an_interrupted_pass_goes_on_and_ends_as_if_nothing_had_been(
    tasks: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelgit.fisher import estimate

    monkeypatch.setattr(estimate, "BLOCK", 8)
    monkeypatch.setattr(fisher_passes, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(fisher_passes, "_BUSY", 0)
    whole = estimate_fisher(tasks, task="topic", revision="topic", examples=40, exact_storage=True)
    forget(tasks, find_kept(tasks, "latest"))
    seen = []
    block = estimate.Accumulator._block

    def killed(self, positions):  # type: ignore[no-untyped-def]
        seen.append(len(positions))
        if len(seen) == 4:
            raise Killed
        block(self, positions)

    monkeypatch.setattr(estimate.Accumulator, "_block", killed)
    with pytest.raises(Killed):
        estimate_fisher(tasks, task="topic", revision="topic", examples=40, exact_storage=True)
    [saved] = tasks.paths.passes.iterdir()
    collect(tasks)
    monkeypatch.setattr(estimate.Accumulator, "_block", block)
    again = estimate_fisher(tasks, task="topic", revision="topic", examples=40, exact_storage=True)
    assert again.resumed == 24 and again.estimate == whole.estimate
    assert not saved.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_state_is_ignored(tasks: Repository, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    from modelgit.fisher import estimate

    monkeypatch.setattr(estimate, "BLOCK", 8)
    monkeypatch.setattr(fisher_passes, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(fisher_passes, "_BUSY", 0)
    monkeypatch.setattr(Path, "unlink", lambda *_args, **_options: None)  # the state stays as if we had been killed
    estimate_fisher(tasks, task="topic", revision="topic", examples=24, exact_storage=True)
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "BLOCK", 8)
    [saved] = [path for path in tasks.paths.passes.iterdir() if not path.name.startswith("tmp-")]
    forget(tasks, find_kept(tasks, "latest"))
    data = bytearray(saved.read_bytes())
    if damage == "cut":
        saved.write_bytes(data[:-100])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        saved.write_bytes(data)
    elif damage == "empty":
        saved.write_bytes(b"")
    else:  # of more examples than are asked for now
        assert estimate_fisher(tasks, task="topic", revision="topic", examples=16).resumed == 0
        return
    assert estimate_fisher(tasks, task="topic", revision="topic", examples=40).resumed == 0


def test_more_examples_go_on_from_fewer(tasks: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.fisher import estimate

    monkeypatch.setattr(estimate, "BLOCK", 8)
    whole = estimate_fisher(tasks, task="topic", revision="topic", examples=40)
    assert whole.estimate.criterion == 0.8 and whole.estimate.overlap is not None
    assert estimate_fisher(tasks, task="topic", revision="topic", settle=None).estimate.settled is None
    early = estimate_fisher(tasks, task="topic", revision="topic", settle=0.01)
    assert early.estimate.settled and early.estimate.examples == 32 and early.estimate.requested == 512


def test_the_summary_adds_up(tasks: Repository) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic")
    summary = summarise(tasks, made.estimate)
    values = np.concatenate([array.reshape(-1) for array in diagonal_of(tasks, made.estimate).values()]).astype(float)
    assert summary.elements == values.size and summary.zeros == int((values == 0).sum())
    assert summary.trace == pytest.approx(values.sum()) == pytest.approx(summary.body_trace + summary.head_trace)
    assert summary.effective == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert sum(layer.share for layer in summary.layers) == pytest.approx(1)
    assert sum(tensor.share for tensor in summary.tensors) == pytest.approx(1)
    body = np.sort(
        np.concatenate(
            [array.reshape(-1) for name, array in diagonal_of(tasks, made.estimate).items() if "heads" not in name]
        )
    )[::-1].astype(float)
    for part, mass in summary.top.items():
        count = round(float(part) * body.size)
        assert mass == pytest.approx(body[:count].sum() / body.sum(), rel=0.02)
    assert {mass.name for mass in summary.layers if mass.head} == {"heads.topic"}


def test_shown_is_the_newest_of_a_revision_or_an_id(tasks: Repository) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic")
    newer = estimate_fisher(tasks, task="topic", revision="topic", examples=9)
    assert shown_fisher(tasks, "topic").id == newer.id == shown_fisher(tasks, "latest").id
    assert shown_fisher(tasks, made.id.hex[:10]).id == made.id
    with pytest.raises(UsageError, match="no Fisher estimate is kept of the weights at tone"):
        shown_fisher(tasks, "tone")
    with pytest.raises(UsageError, match="no Fisher estimate `nothing`"):
        shown_fisher(tasks, "nothing")


def test_a_merge_says_where_its_fisher_came_from(tasks: Repository) -> None:
    kept = estimate_fisher(tasks, task="topic", revision="topic")
    tasks.switch("topic")
    result = tasks.merge("tone")
    assert result.notes[:2] == (
        "ours: Fisher kept from an earlier pass over 40 examples of task topic (exact)",
        "theirs: Fisher estimated now on 40 examples of task tone (exact)",
    )
    recipe = tasks.commit_at(result.commit.id).recipe
    assert result.strategy == recipe.strategy == "fisher"
    assert [(item.side, item.how) for item in recipe.fishers] == [("ours", "kept"), ("theirs", "made")]
    assert recipe.fishers[0].estimate == kept.id


def test_a_merge_without_any_fisher_is_an_average_and_says_so(tasks: Repository) -> None:
    tasks.switch("topic")
    (tasks.worktree / "mgit.toml").write_text('[track]\npaths = ["models/bot", "data"]\n')
    tasks.forget_settings()
    tasks.commit("no tasks any more")
    rules = {"*.bias": "fisher weights=1,3", "*.x": "ours"}
    result = merge(tasks, "tone", options={"weights": "2,1"}, rules=rules)
    recipe = tasks.commit_at(result.commit.id).recipe
    assert result.strategy == recipe.strategy == "average"
    assert recipe.options == {"weights": "2.0,1.0"}
    assert recipe.rules == {"*.bias": "average weights=1.0,3.0", "*.x": "ours"}
    assert [item.how for item in recipe.fishers] == ["none", "none"]
    assert result.notes[-1] == "no side has a Fisher estimate: the values were averaged instead, and the recipe says so"
    assert "no task of mgit.toml computes with it" in result.notes[0]


def test_keys_replace_and_order(tasks: Repository) -> None:
    first = estimate_fisher(tasks, task="topic", revision="topic")
    [kept] = kept_estimates(tasks)
    assert isinstance(kept, KeptEstimate) and kept.weights == first.estimate.weights and kept.origin == ""
    assert json.loads(json.dumps(kept.key)).startswith(first.estimate.weights)
