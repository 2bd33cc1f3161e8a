"""`du`, `show --storage`, `repack` and `prune` as a user meets them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

RULE = '[retention."runs/*"]\nlast = 1\n'


@pytest.fixture
def run(mgit: Any, files: Any) -> Any:
    """A branch `runs/a` of four checkpoints, from a commit on main."""
    model = mgit.directory / "bot.safetensors"
    mgit("init")
    arrays = files.floats(1, rows=60, columns=50)
    model.write_bytes(files.of_arrays(arrays))
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base")
    mgit("switch", "-c", "runs/a")
    for step in range(4):
        noise = np.random.default_rng(step)
        arrays = {name: (a + 0.01 * noise.standard_normal(a.shape)).astype("<f4") for name, a in arrays.items()}
        model.write_bytes(files.of_arrays(arrays))
        mgit("commit", "-m", f"step {step}")
    return mgit


def test_du_adds_up(run: Any) -> None:
    packs = sum(path.stat().st_size for path in (run.directory / ".mgit" / "packs").iterdir())
    for by in ("kind", "tensor", "file", "commit", "pack"):
        document = json.loads(run("du", "--by", by, "--json").out)
        assert document["schema"] == "mgit.du/1"
        assert sum(row["bytes"] for row in document["rows"]) == document["total"] == packs
    for by in ("kind", "tensor", "file", "commit", "pack", "ref"):
        assert "of packs" in run("du", "--by", by).out
    assert "more rows" in run("du", "--by", "tensor", "-n", "2").out
    assert "everything else" in run("du", "main", "--by", "tensor").out
    run("du", "nothing-of-that-name", code=3)


def test_show_says_how_and_why(run: Any) -> None:
    shown = run("show", "--storage").out
    assert "layers.0.weight" in shown and "passes" in shown and "bits a word" in shown
    document = json.loads(run("show", "--storage", "--json").out)
    assert document["schema"] == "mgit.storage/1"
    assert all(item["estimates"] and item["reason"] for item in document["tensors"])


def test_repack_says_what_it_would_save_and_saves_that(run: Any) -> None:
    would = json.loads(run("repack", "--dry-run", "--prune=now", "--json").out)
    did = json.loads(run("repack", "--prune=now", "--json").out)
    assert would["dry_run"] and not did["dry_run"]
    assert (would["bytes_after"], would["recoded"]) == (did["bytes_after"], did["recoded"])
    assert run("repack").err.startswith("Nothing to gain")
    run("fsck")
    run("repack", "--effort", "loud", code=2)


def test_prune_lists_what_goes_and_the_log_marks_it(run: Any) -> None:
    assert "[retention]" in run("prune", code=2).err
    config = run.directory / ".mgit" / "config.toml"
    config.write_text(RULE)
    listed = run("prune", "--dry-run")
    assert listed.out.count("prune") >= 3 and "current commit" in listed.out
    assert listed.err.startswith("Would prune the weights of 3 commits")
    assert run("prune").err.startswith("Pruned the weights of 3 commits")
    assert run("log", "--oneline").out.count("weights pruned") == 3
    assert "pruned by retention on 20" in run("show", "HEAD~1").out
    refused = run("switch", "--detach", "HEAD~2", code=4)
    assert "pruned by retention `runs/*`" in refused.err
    run("show", "HEAD~2", "--storage", code=4)
    assert "the weights of 3 commits were pruned" in run("fsck").err
    assert run("prune").err.startswith("Nothing to prune")
    assert json.loads(run("prune", "--json").out)["pruned"] == 0
    run("switch", "main")
    run("switch", "runs/a")
