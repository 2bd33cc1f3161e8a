"""`mgit commit --density`: what it says, what it prints for programs, and how its requests are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def tuned(mgit, files) -> Path:
    """A committed model and a dense change of it in the work tree, without any task."""
    weights = mgit.directory / "bot.safetensors"
    arrays = files.floats(rows=60, columns=50)
    weights.write_bytes(files.of_arrays(arrays))
    mgit("init")
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base")
    move = np.random.default_rng(2).standard_normal((60, 50)).astype("<f4")
    weights.write_bytes(files.of_arrays({name: array + 0.002 * move for name, array in arrays.items()}))
    return weights


def test_a_patch_says_what_it_kept_and_undo_brings_the_rest_back(mgit, tuned: Path) -> None:
    dense = tuned.read_bytes()
    ran = mgit("commit", "--density", "2%", "--importance", "magnitude", "-m", "sparse")
    assert "lossy" in ran.all
    assert "of 9,000 changed values" in ran.all
    assert "by magnitude, seed 0" in ran.all
    assert "not measured: no task of mgit.toml computes with bot.safetensors" in ran.all
    assert "The work tree now holds the patched model" in ran.all
    assert ".mgit/rescue/dense-" in ran.all
    assert "nothing to commit" in mgit("status").all
    assert tuned.read_bytes() != dense
    assert "Importance: magnitude" in mgit("log", "-n", "1").all
    assert "bit for bit" in mgit("undo").all
    assert tuned.read_bytes() == dense
    assert "again commit" in mgit("redo").all
    assert tuned.read_bytes() != dense
    assert "nothing to commit" in mgit("status").all


def test_programs_read_the_same(mgit, tuned: Path) -> None:
    found = json.loads(
        mgit("commit", "--density", "0.02", "--importance", "uniform", "--seed", "4", "-m", "x", "--json").out
    )
    assert found["schema"] == "mgit.commit/1"
    assert found["patch"]["exact"] is False
    reduced = found["reduced"]
    assert (reduced["importance"], reduced["seed"], reduced["density"]) == ("uniform", 4, 0.02)
    assert reduced["kept"]["changed"] == 9000
    assert reduced["kept"]["expected"] == pytest.approx(180)
    assert reduced["measured"] is None
    assert "no task" in reduced["note"]
    assert (Path(reduced["rescued"]) / "bot.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--density", "2%"], "no task of mgit.toml computes with bot.safetensors"),
        (["--density", "2"], "not a density"),
        (["--density", "much"], "not a density"),
        (["--density", "2%", "--max-kl", "0.1"], "how much is kept"),
        (["--max-kl", "0.1", "--importance", "magnitude"], "cannot be measured"),
        (["--max-kl", "-1", "--importance", "magnitude"], "leaves nothing out"),
        (["--density", "2%", "--mask", "latest"], "`--mask`"),
        (["--density", "2%", "--adapter", "x"], "`--adapter`"),
        (["--density", "2%", "--task", "other"], "no task `other`"),
        (["--seed", "3"], "`--seed` goes with"),
        (["--density", "2%", "--branch", "side", "--importance", "magnitude"], "`--from`"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused_with_a_way_out(
    mgit, tuned: Path, arguments: list, said: str
) -> None:
    dense = tuned.read_bytes()
    ran = mgit("commit", "-m", "x", *arguments, code=2)
    assert said in ran.err
    assert tuned.read_bytes() == dense
    assert "hint:" in ran.err or "--seed" in said
    assert not (mgit.directory / ".mgit/rescue").exists()


def test_what_data_are_for_is_said_with_what_works_without(mgit, tuned: Path) -> None:
    ran = mgit("commit", "-m", "x", "--density", "2%", code=2)
    assert "[task.NAME]" in ran.err
    assert "--importance magnitude" in ran.err
