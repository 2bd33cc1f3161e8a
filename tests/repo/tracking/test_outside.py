"""`commit --from`: a checkpoint is recorded where it lies, with or without the work tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CheckpointFormatError, GateRefused, NothingToDo, RepositoryError, UsageError
from modelgit.repo import Repository
from modelgit.repo.contents import model_files
from modelgit.repo.tracking.switch import restore, switch
from modelgit.repo.tracking.undo import undo
from modelgit.repo.upkeep.fsck import fsck
from tests.conftest import Files

MODEL = "bot.safetensors"


@pytest.fixture
def tuned(tmp_path: Path, bot: Repository, files: Files) -> Path:
    """A checkpoint outside of the work tree, three values different."""
    weights = files.floats()
    weights["layers.1.weight"][2, :3] += np.float32(0.5)
    target = tmp_path / "run" / MODEL
    target.parent.mkdir()
    target.write_bytes(files.of_arrays(weights))
    return target


@pytest.fixture
def sharded(repo: Repository, files: Files, tmp_path: Path) -> Repository:
    """A repository with one commit of a model directory of two shards, and the next state in `run` (three shards)."""
    folder = repo.worktree / "models" / "bot"
    folder.parent.mkdir()
    tensors = {name: ("F32", array.shape, array.tobytes()) for name, array in files.floats(layers=6).items()}
    files.sharded(folder, tensors, 2)
    repo.track("models/bot")
    repo.commit("base")
    changed = files.floats(layers=6)
    changed["layers.4.weight"][0, 0] += np.float32(1)
    files.sharded(tmp_path / "run", {n: ("F32", a.shape, a.tobytes()) for n, a in changed.items()}, 3)
    return repo


def test_without_the_work_tree(bot: Repository, tuned: Path, files: Files) -> None:
    before = files.digests(bot.worktree)
    parent = bot.head()
    result = bot.commit("tuned", source=str(tuned), worktree=False)
    assert files.digests(bot.worktree) == before
    assert result.encodings == {"sparse": 1}
    assert [change.name for change in result.patch.tensors] == ["layers.1.weight"]
    assert result.patch.tensors[0].values_changed == 3
    assert bot.head() == result.id and result.commit.parents == (parent,)
    state = bot.status()
    assert state.left_at == parent and not state.is_clean
    assert restore(bot, ["."]) == [MODEL]
    assert (bot.worktree / MODEL).read_bytes() == tuned.read_bytes()
    assert bot.status().is_clean and bot.status().left_at is None
    assert not (bot.paths.rescue.exists() and list(bot.paths.rescue.iterdir()))  # it was recorded: nothing to rescue
    assert fsck(bot).is_sound


def test_a_plain_commit_does_not_take_the_new_state_back(bot: Repository, tuned: Path) -> None:
    bot.commit("tuned", source=str(tuned), worktree=False)
    with pytest.raises(RepositoryError, match=rf"{MODEL} is still as it was at"):
        bot.commit("oops")
    (bot.worktree / "evals").mkdir()
    (bot.worktree / "evals" / "notes.txt").write_text("fine")
    with pytest.raises(RepositoryError, match="is still as it was"):
        bot.commit("oops")
    assert bot.commit("notes", only=["evals"]).patch.files[0].path == "evals/notes.txt"


def test_with_the_work_tree(bot: Repository, tuned: Path) -> None:
    result = bot.commit("tuned", source=str(tuned))
    assert (bot.worktree / MODEL).read_bytes() == tuned.read_bytes()
    assert (bot.worktree / MODEL).stat().st_ino != tuned.stat().st_ino
    assert bot.status().is_clean and bot.head() == result.id
    assert not bot.journal.pending


def test_unrecorded_changes_are_not_overwritten(bot: Repository, tuned: Path, files: Files) -> None:
    mine = files.of_arrays(files.floats(9))
    (bot.worktree / MODEL).write_bytes(mine)
    head = bot.head()
    with pytest.raises(RepositoryError, match="has changes that the new state would overwrite"):
        bot.commit("tuned", source=str(tuned))
    assert bot.head() == head and (bot.worktree / MODEL).read_bytes() == mine
    bot.commit("tuned", source=str(tuned), worktree=False)
    assert (bot.worktree / MODEL).read_bytes() == mine
    assert bot.status().left_at is None  # nothing of it is as it was


def test_a_directory_replaces_a_model_whole(sharded: Repository, tmp_path: Path) -> None:
    result = sharded.commit("resharded", source=str(tmp_path / "run"))
    names = [entry.path for entry in result.manifest.files if entry.path.startswith("models/")]
    assert names == sorted(f"models/bot/{path.name}" for path in (tmp_path / "run").iterdir())
    assert [change.name for change in result.patch.tensors] == ["layers.4.weight"]
    assert len(result.manifest.models[0].weights) == 3
    here = {path.name: path.read_bytes() for path in (sharded.worktree / "models" / "bot").iterdir()}
    assert here == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert sharded.status().is_clean


def test_the_whole_repository_is_a_model(repo: Repository, files: Files, tmp_path: Path) -> None:
    """Of a checkpoint at the root the tensors are recorded; settings lie beside it and stay when it is replaced."""
    tensors = files.floats(layers=6)
    files.sharded(tmp_path / "first", {n: ("F32", a.shape, a.tobytes()) for n, a in tensors.items()}, 2)
    for path in (tmp_path / "first").iterdir():
        (repo.worktree / path.name).write_bytes(path.read_bytes())
    repo.track(".")
    [model] = repo.commit("base").manifest.models
    assert (model.path, len(model.weights)) == (".", 2)
    tensors["layers.4.weight"][0, 0] += np.float32(1)
    files.sharded(tmp_path / "run", {n: ("F32", a.shape, a.tobytes()) for n, a in tensors.items()}, 3)
    result = repo.commit("resharded", source=str(tmp_path / "run"))
    assert [change.name for change in result.patch.tensors] == ["layers.4.weight"]
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert {entry.path for entry in result.manifest.files} == there | {"mgit.toml"}
    assert model_files(repo, result.manifest, ".").keys() == {name for name in there if name.endswith(".json")}
    assert repo.status().is_clean


def test_files_that_went_are_removed_by_restore(sharded: Repository, tmp_path: Path) -> None:
    sharded.commit("resharded", source=str(tmp_path / "run"), worktree=False)
    assert sharded.status().left_at is not None
    restore(sharded, ["."])
    assert sharded.status().is_clean
    here = {path.name for path in (sharded.worktree / "models" / "bot").iterdir()}
    assert here == {path.name for path in (tmp_path / "run").iterdir()}


def test_many_commits_without_the_work_tree(bot: Repository, tuned: Path, files: Files) -> None:
    first = bot.head()
    for step in range(4):
        weights = files.floats()
        weights["layers.0.weight"][0, step] += np.float32(1)
        tuned.write_bytes(files.of_arrays(weights))
        bot.commit(f"step {step}", source=str(tuned), worktree=False)
    assert bot.status().left_at == first
    restore(bot, [MODEL])
    second = bot.head()
    bot.commit("tuned", source=str(save(tuned, files, 7)), worktree=False)
    assert bot.status().left_at == second
    undo(bot)
    assert bot.status().is_clean


def save(path: Path, files: Files, seed: int) -> Path:
    path.write_bytes(files.of_arrays(files.floats(seed)))
    return path


def test_another_branch(bot: Repository, tuned: Path, files: Files) -> None:
    head = bot.head()
    bot.publish(lambda view: type(view)(refs={**view.refs, "heads/runs/a": head}, branch="main"), "branch")
    before = files.digests(bot.worktree)
    result = bot.commit("step", source=str(tuned), worktree=False, branch="runs/a")
    assert result.branch == "runs/a"
    assert bot.head() == head and bot.view().branch == "main"
    assert bot.view().refs["heads/runs/a"] == result.id
    assert files.digests(bot.worktree) == before and bot.status().is_clean
    switch(bot, "runs/a")
    assert (bot.worktree / MODEL).read_bytes() == tuned.read_bytes()
    with pytest.raises(RepositoryError, match="no branch `runs/b`"):
        bot.commit("step", source=str(tuned), worktree=False, branch="runs/b")
    with pytest.raises(UsageError, match="another branch"):
        bot.commit("step", source=str(tuned), branch="main")


def test_the_first_commit(repo: Repository, tmp_path: Path, files: Files) -> None:
    (repo.worktree / "mgit.toml").write_text('[track]\npaths = ["models/bot"]\n')
    repo.forget_settings()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(files.of_arrays(files.floats()))
    (folder / "config.json").write_text("{}")
    result = repo.commit("base", source=str(folder), worktree=False)
    paths = [entry.path for entry in result.manifest.files]
    assert paths == ["mgit.toml", "models/bot/config.json", "models/bot/model.safetensors"]
    assert result.manifest.models[0].weights == ("models/bot/model.safetensors",)
    assert len(repo.load()) == 3
    restore(repo, ["."])
    assert (repo.worktree / "models" / "bot" / "config.json").read_text() == "{}"
    assert repo.status().is_clean


def test_the_gate_judges_it(bot: Repository, tuned: Path, files: Files) -> None:
    weights = files.floats()
    weights["layers.0.weight"][0, 0] = np.nan
    tuned.write_bytes(files.of_arrays(weights))
    head = bot.head()
    with pytest.raises(GateRefused):
        bot.commit("broken", source=str(tuned), worktree=False)
    assert bot.head() == head and bot.status().is_clean
    assert not list((bot.paths.directory / "incoming").glob("*"))


def test_nothing_new(bot: Repository, tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes((bot.worktree / MODEL).read_bytes())
    with pytest.raises(NothingToDo):
        bot.commit("again", source=str(tmp_path / MODEL), worktree=False)


def test_other_models_stay_as_they_were_committed(bot: Repository, tuned: Path, files: Files) -> None:
    (bot.worktree / "other.safetensors").write_bytes(files.of_arrays(files.floats(3)))
    bot.track("other.safetensors")
    with pytest.raises(UsageError, match=r"which model is .*\? 2 paths are tracked"):
        bot.commit("tuned", source=str(tuned), worktree=False)
    result = bot.commit("tuned", source=str(tuned), as_path=MODEL, worktree=False)
    assert [entry.path for entry in result.manifest.files] == [MODEL, "mgit.toml"]
    assert {file.path for file in bot.status().files} == {"mgit.toml", "other.safetensors"}


@pytest.mark.parametrize(
    ("source", "as_path", "error", "words"),
    [
        ("nowhere", None, UsageError, "there is nothing at nowhere"),
        ("empty", None, UsageError, "is a file, and empty a directory without a file of that name"),
        ("link", None, CheckpointFormatError, "is a symbolic link"),
        ("run/bot.safetensors", "else.safetensors", UsageError, "else.safetensors is not tracked"),
    ],
)
def test_what_cannot_be_recorded(
    bot: Repository, tuned: Path, tmp_path: Path, source: str, as_path: str | None, error: type[Exception], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / MODEL).symlink_to(tuned)
    bot.environment = type(bot.environment)(**{**vars(bot.environment), "cwd": tmp_path})
    if source == "link":
        bot.commit("as a directory", only=["mgit.toml"], allow_empty=True)
    with pytest.raises(error, match=words):
        bot.commit("tuned", source=source, as_path=as_path, worktree=False)


def test_a_file_for_a_directory_needs_its_name(sharded: Repository, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="models/bot is a directory"):
        sharded.commit("config", source=str(tmp_path / "run" / "config.json"), worktree=False)
    (tmp_path / "run" / "config.json").write_text('{"changed": true}')
    result = sharded.commit("config", source=str(tmp_path / "run" / "config.json"), as_path="models/bot/config.json")
    assert [change.path for change in result.patch.files] == ["models/bot/config.json"]
    assert len(result.manifest.models[0].weights) == 2
    assert sharded.status().is_clean


def test_options_that_make_no_sense(bot: Repository, tuned: Path) -> None:
    for options in ({"as_path": MODEL}, {"worktree": False}, {"branch": "main"}):
        with pytest.raises(UsageError, match="go with `--from`"):
            bot.commit("x", **options)
    with pytest.raises(UsageError, match="nothing else"):
        bot.commit("x", source=str(tuned), only=[MODEL])


def test_a_checkpoint_that_is_being_written_is_refused(
    bot: Repository, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelgit.formats.detect import FileReader

    original: Callable[[FileReader], bool] = FileReader.is_unchanged

    def touched(self: FileReader) -> bool:
        os.utime(tuned, ns=(1, 1))
        return original(self)

    monkeypatch.setattr(FileReader, "is_unchanged", touched)
    head = bot.head()
    with pytest.raises(RepositoryError, match="changed while it was being committed"):
        bot.commit("tuned", source=str(tuned), worktree=False)
    assert bot.head() == head
