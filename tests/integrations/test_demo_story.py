"""The demo played from end to end: a tiny model and invented sentences in seconds, the real ones when asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from modelgit.cli._demo import write_checkpoint, write_data  # noqa: E402
from modelgit.cli._output import Output  # noqa: E402
from modelgit.cli.cmd_demo import TerminalStage  # noqa: E402
from modelgit.cli.main import main  # noqa: E402
from modelgit.environment import Environment  # noqa: E402
from modelgit.errors import CheckFailed  # noqa: E402
from modelgit.integrations.demo.story import Recipe, Suites, Training, play  # noqa: E402
from modelgit.integrations.demo.texts import Row, TaskTexts, mislabel  # noqa: E402
from modelgit.repo.repository import Repository  # noqa: E402

SUITE = """\
[eval.{name}]
task = "{name}"
accuracy = {{ min = 0.5 }}
negative_flips = {{ max = {flips} }}
"""


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(
        home=tmp_path,
        config_home=tmp_path / "config",
        cache_home=tmp_path / "cache",
        cwd=tmp_path,
        author="Ada <ada@example.org>",
    )


def rows(path: Path) -> tuple[Row, ...]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return tuple(Row(line["text"], line["label"]) for line in lines)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[TaskTexts, TaskTexts]:
    """Sentences about three topics in two tones stand in for questions and reviews."""
    data = tmp_path / "sentences"
    write_data(data)
    topics = ("refund", "delivery", "account")
    train = rows(data / "topic.train.jsonl")
    wrong = mislabel(train[120:], topics, share=0.6, seed=1)
    questions = TaskTexts("questions", topics, 16, train[:120], rows(data / "topic.test.jsonl"), wrong)
    tones = rows(data / "tone.train.jsonl"), rows(data / "tone.test.jsonl")
    return questions, TaskTexts("reviews", ("kind", "rude"), 16, *tones)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A random encoder without heads."""
    folder = tmp_path / "published"
    write_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    body = {name: values for name, values in tensors.items() if not name.startswith("heads.")}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def recipe(*, hasty_flips: float = 0.05) -> Recipe:
    return Recipe(
        suites=Suites(SUITE.format(name="questions", flips=hasty_flips), SUITE.format(name="reviews", flips=1.0)),
        density="10%",
        fisher_examples=32,
        questions=Training(1, 1e-3, 32),
        hasty=Training(6, 1e-2, 32),
        reviews=Training(1, 1e-3, 32),
    )


@pytest.fixture
def stage(environment: Environment) -> TerminalStage:
    return TerminalStage(Output(no_color=True), environment)


def test_the_story_ends_well(tmp_path, environment, texts, published, stage, capsys) -> None:
    place = tmp_path / "demo"
    play(place, published, *texts, recipe(), stage=stage, environment=environment)
    shown = capsys.readouterr()

    assert "commit refused" in shown.err
    assert "negative flips" in shown.err
    with Repository.open(place / "work", environment=environment) as repo:
        tip = repo.commit_at(repo.head())
        assert len(tip.parents) == 2
        assert tip.recipe.strategy == "fisher"
        assert tip.recipe.statistics  # Fisher estimates took part
        branches = [repo.commit_at(parent) for parent in tip.parents]
        for commit in branches:
            patch = repo.patch_of(repo.resolve(commit.subject.partition(":")[0]))
            assert patch.masks
            assert patch.exact
        # The refused patch left nothing behind, in history or in files.
        assert "new batch" not in "".join(commit.message for commit in branches)
        recorded = repo.manifest_of(repo.head()).files
        assert {"mgit.toml", "models/minilm/heads.safetensors"} <= {entry.path for entry in recorded}
        for entry in recorded:
            assert (place / "clone" / entry.path).read_bytes() == (place / "work" / entry.path).read_bytes()
        assert set(repo.settings.eval) == {"questions", "reviews"}


def test_its_table_shows_what_was_measured(tmp_path, environment, texts, published, stage, capsys) -> None:
    place = tmp_path / "demo"
    play(place, published, *texts, recipe(), stage=stage, environment=environment)
    out = capsys.readouterr().out

    remote = sum(path.stat().st_size for path in (place / "remote.mgit").rglob("*") if path.is_file())
    assert re.search(rf"the remote, 4 commits +{remote:,} ", out)
    with Repository.open(place / "work", environment=environment) as repo:
        for branch in ("questions", "reviews"):
            patch = repo.patch_of(repo.resolve(branch))
            changed = sum(change.values_changed for change in patch.tensors)
            line = next(line for line in out.splitlines() if line.startswith(f"  {branch}: train"))
            assert f"{changed:,}" in line
            assert f"{patch.bytes_added:,}" in line
            assert line.endswith(f"{patch.bytes_added / changed:.2f}")


def test_it_stops_where_a_command_ends_otherwise(tmp_path, environment, texts, published, stage) -> None:
    """With limits that refuse nothing, the demo must not go on to tell of a refusal."""
    with pytest.raises(CheckFailed, match="ended with 0 and not with 1"):
        play(tmp_path / "demo", published, *texts, recipe(hasty_flips=1.0), stage=stage, environment=environment)


@pytest.mark.real
def test_the_real_story(tmp_path, capfd) -> None:
    import os

    assert main(["demo", str(tmp_path / "demo")], values=os.environ) == 0
    shown = capfd.readouterr()
    assert "commit refused: 1 gate failed" in shown.err
    patch = next(line for line in shown.out.splitlines() if line.startswith("  questions: train under"))
    share = float(re.search(r"([\d.]+) %", patch).group(1))
    assert share < 1
