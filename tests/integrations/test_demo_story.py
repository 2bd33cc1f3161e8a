"""The demo played from end to end: a tiny model and invented sentences in seconds, the real ones when asked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from modelgit.cli._output import Output  # noqa: E402
from modelgit.cli.cmd_demo import TerminalStage  # noqa: E402
from modelgit.cli.main import main  # noqa: E402
from modelgit.environment import Environment  # noqa: E402
from modelgit.errors import CheckFailed  # noqa: E402
from modelgit.integrations.demo.small import write_checkpoint, write_data  # noqa: E402
from modelgit.integrations.demo.story import Recipe, Suites, Training, play  # noqa: E402
from modelgit.integrations.demo.texts import Row, TaskTexts, mislabel  # noqa: E402
from modelgit.repo.history.log import log  # noqa: E402
from modelgit.repo.repository import Repository  # noqa: E402

SUITE = """\
[eval.{name}]
task = "{name}"
accuracy = {{ min = 0.5 }}
negative_flips = {{ max = {flips} }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def environment(folder: Path) -> Environment:
    return Environment(
        home=folder,
        config_home=folder / "config",
        cache_home=folder / "cache",
        cwd=folder,
        author="Ada <ada@example.org>",
    )


def rows(path: Path) -> tuple[Row, ...]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return tuple(Row(line["text"], line["label"]) for line in lines)


@pytest.fixture(scope="module")
def texts(folder: Path) -> tuple[TaskTexts, TaskTexts]:
    """Sentences about three topics in two tones stand in for questions and reviews."""
    data = folder / "sentences"
    write_data(data)
    topics = ("refund", "delivery", "account")
    train = rows(data / "topic.train.jsonl")
    wrong = mislabel(train[120:], topics, share=0.6, seed=1)
    questions = TaskTexts("questions", topics, 16, train[:120], rows(data / "topic.test.jsonl"), wrong)
    tones = rows(data / "tone.train.jsonl"), rows(data / "tone.test.jsonl")
    return questions, TaskTexts("reviews", ("kind", "rude"), 16, *tones)


@pytest.fixture(scope="module")
def published(folder: Path) -> Path:
    """A random encoder without heads."""
    place = folder / "published"
    write_checkpoint(place)
    tensors = load_file(place / "model.safetensors")
    body = {name: values for name, values in tensors.items() if not name.startswith("heads.")}
    save_file(body, place / "model.safetensors", metadata={"format": "pt"})
    return place


def recipe() -> Recipe:
    return Recipe(
        suites=Suites(SUITE.format(name="questions", flips=0.05), SUITE.format(name="reviews", flips=1.0)),
        density="10%",
        relied_on="0.04",
        fisher_examples=48,
        questions=Training(1, 1e-3, 32),
        hasty=Training(6, 1e-2, 32),
        reviews=Training(1, 1e-3, 32),
    )


@pytest.fixture(scope="module")
def stage(environment: Environment) -> TerminalStage:
    return TerminalStage(Output(no_color=True), environment)


class Played(NamedTuple):
    """Where the story was played, and what was shown."""

    place: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def played(folder, environment, texts, published, stage) -> Played:
    place = folder / "played"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        play(place, published, *texts, recipe(), stage=stage, environment=environment)
    return Played(place, out.getvalue(), err.getvalue())


@pytest.fixture
def repo(played, environment) -> Iterator[Repository]:
    with Repository.open(played.place / "work", environment=environment) as repo:
        yield repo


def test_both_branches_are_patches_under_a_mask(repo) -> None:
    for branch in ("questions", "reviews"):
        patch = repo.patch_of(repo.resolve("questions~1" if branch == "questions" else branch))
        assert len(patch.masks) == 1
        assert patch.exact
        assert {change.name for change in patch.tensors} >= {f"heads.{branch}.weight"}


def test_the_gate_refuses_the_hasty_patch_and_nothing_of_it_stays(played, repo) -> None:
    assert "commit refused: 1 gate failed; nothing was recorded" in played.err
    assert "right to wrong" in played.err
    assert not any("new batch" in entry.commit.message for entry in log(repo))
    status = repo.status()
    assert not status.models
    assert not status.files


def test_the_merge_weighs_by_fisher_information_and_has_both_suites(repo) -> None:
    tip = repo.commit_at(repo.head())
    assert tip.parents == (repo.resolve("questions"), repo.resolve("reviews"))
    assert {verdict.suite for verdict in tip.verdicts} == {"builtin", "questions", "reviews"}
    assert tip.recipe.strategy == "fisher"
    norms = [float(value) for name, value in tip.recipe.statistics.items() if "norm" in name]
    assert len(norms) == 2
    assert all(norm > 0 for norm in norms)
    assert set(repo.settings.eval) == {"questions", "reviews"}


def test_the_clone_is_the_original_byte_for_byte(played, repo) -> None:
    recorded = [entry.path for entry in repo.manifest_of(repo.head()).files]
    assert {"mgit.toml", "models/minilm/model.safetensors", "models/minilm/heads.safetensors"} <= set(recorded)
    for path in recorded:
        assert (played.place / "clone" / path).read_bytes() == (played.place / "work" / path).read_bytes()


def test_the_closing_table_shows_what_was_measured(played, repo) -> None:
    remote = sum(path.stat().st_size for path in (played.place / "remote.mgit").rglob("*") if path.is_file())
    assert re.search(rf"the remote, 5 commits +{remote:,} ", played.out)
    for branch in ("questions", "reviews"):
        patch = repo.patch_of(repo.resolve("questions~1" if branch == "questions" else branch))
        changed = sum(change.values_changed for change in patch.tensors)
        line = next(line for line in played.out.splitlines() if line.startswith(f"  {branch}: train"))
        assert f"{changed:,}" in line
        assert f"{patch.bytes_added:,}" in line
        assert line.endswith(f"{patch.bytes_added / changed:.2f}")


def test_it_stops_where_a_command_ends_otherwise(tmp_path, stage) -> None:
    """Going on after a gate let the wrong patch in, or a script failed, would tell of what did not happen."""
    with pytest.raises(CheckFailed, match="`mgit status` ended with 3 and not with 1"):
        stage.mgit(tmp_path, "status", code=1)
    with pytest.raises(CheckFailed, match=r"`python missing\.py` ended with 2 and not with 0"):
        stage.python(tmp_path, "missing.py")


def test_a_folder_in_use_is_left_alone(tmp_path, capsys) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note").write_text("mine")
    assert main(["-C", str(tmp_path), "demo", "taken"], values={"HOME": str(tmp_path)}) == 3
    assert "taken exists already and is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["note"]


@pytest.fixture
def all_threads(monkeypatch) -> Iterator[None]:
    """What training gives depends on the number of threads: as many as a user has, though other tests run beside it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.real
@pytest.mark.timeout(2400)  # four minutes of training on two idle processors, a multiple of that on busy ones
def test_the_real_story(tmp_path, capfd, all_threads) -> None:
    assert main(["demo", str(tmp_path / "demo")], values=os.environ) == 0
    shown = capfd.readouterr()
    assert "commit refused: 1 gate failed" in shown.err
    assert "would have let it through" in shown.out
    patch = next(line for line in shown.out.splitlines() if line.startswith("  questions: train under"))
    share = float(re.search(r"([\d.]+) %", patch).group(1))
    assert share < 1
