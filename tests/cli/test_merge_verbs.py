"""The verbs of merging as they are typed: search, replay, dry runs, picks, reverts, softening, many branches."""

from __future__ import annotations

import json
from typing import Any

import pytest

import modelgit

pytest.importorskip("torch")
pytest.importorskip("tokenizers")


@pytest.fixture
def demo(mgit: Any) -> Any:
    """In the small demo: main, and two branches that were trained on a task each."""
    mgit("demo", "--small", "d")
    mgit.directory = mgit.directory / "d"
    return mgit


def test_a_search_merges_and_its_merge_can_be_made_again(demo: Any) -> None:
    demo("merge", "topic")
    tried = demo("merge", "tone", "--dry-run")
    assert "nothing was kept" in tried.all and "[dry run " in tried.all and "detached" not in tried.all
    found = demo("merge", "tone", "--search", "--candidate", "average", "--candidate", "ties density=0.5")
    assert "2 candidates" in found.all and "are the data that the gate reports on" in found.all
    assert "every byte is the same" in demo("merge", "--replay", "HEAD").out
    assert "already" in demo("merge", "tone").all.lower()
    refused = demo("merge", "--candidate", "average", code=2)
    assert "go with --search" in refused.err


def test_tensors_that_move_apart_are_named_and_the_table_of_a_search_is_json(demo: Any) -> None:
    demo("merge", "topic")
    found = json.loads(demo("merge", "tone", "--plan", "--json", "--sign-limit", "0").out)
    assert found["sign_limit"] == 0 and all(item["soft_conflict"] for item in found["overlaps"] if item["opposed"])
    assert all(item["share"] == round(item["opposed"] / item["values"], 6) for item in found["overlaps"])
    assert "SIGNS" in demo("merge", "tone", "--plan", "--sign-limit", "0").out
    assert "that both changed move apart" in demo("merge", "tone", "--dry-run", "--sign-limit", "0").all
    stopped = demo("merge", "tone", "--block-signs", "--sign-limit", "0", code=1)
    assert "the sides move apart" in stopped.all and "--with combine" in stopped.err
    name = json.loads(demo("resolve", "--json").out)["conflicts"][0]["item"]
    assert "in two ranges" in demo("resolve", name, "--rows", "0:=ours", "--rows", "1:=theirs", code=2).err
    assert f"Resolved {name}: rows 0:=theirs" in demo("resolve", name, "--rows", "0:=theirs").all
    demo("merge", "--abort")
    assert "belongs to a merge that starts" in demo("merge", "--abort", "--block-signs", code=2).err
    refused = demo("merge", "tone", "--search", "--search-suite", "smok", code=2)
    assert "no suite `smok`" in refused.err
    found = json.loads(demo("merge", "tone", "--search", "--candidate", "average", "--json").out)
    assert found["schema"] == "mgit.merge-search/1"
    assert found["chosen"] == "average" and found["evaluated"] == found["exhaustive"] == 240
    assert found["commit"] == json.loads(demo("log", "--json").out)["commits"][0]["id"]


def test_changes_are_picked_and_taken_back(demo: Any) -> None:
    before = demo("status", "--json").out
    assert "(exact)" in demo("cherry-pick", "tone").all
    assert "has all of it" in demo("cherry-pick", "tone", code=None).err
    refused = demo("revert", "HEAD", code=1).err  # it would take back what the branch learnt
    assert "gates failed" in refused and "error: revert of " in refused and '("' in refused
    demo("revert", "HEAD", "--gate", "warn")
    assert "Revert" in demo("log", "--oneline").out
    demo("undo")
    demo("undo")
    assert demo("status", "--json").out == before
    demo("switch", "tone")
    assert "up to date" in demo("rebase", "main").all
    assert "no cherry-pick is under way" in demo("cherry-pick", "--continue", code=None).err
    assert "passes the gate as it is" in demo("soften", code=None).err


def test_a_refused_rebase_names_the_commit_that_it_compares_with(demo: Any) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    demo("switch", "main")
    demo("switch", "-c", "broken")
    file = demo.directory / "models/bot/model.safetensors"
    state = load_file(file)
    state[min(state)] = np.full_like(state[min(state)], np.nan)
    save_file(state, file)
    demo("commit", "--gate", "warn", "-m", "broken")
    onto = json.loads(demo("show", "topic", "--json").out)["id"].removeprefix("b3:")[:12]
    assert f"eval builtin, baseline {onto}" in demo("rebase", "topic", code=1).err


def test_several_branches_are_merged_at_once(demo: Any) -> None:
    said = demo("merge", "topic", "tone", "--strategy", "task-arithmetic")
    assert "every byte is the same" in demo("merge", "--replay", "HEAD").out
    assert "combined from 3 sides" in said.all
    with modelgit.open(demo.directory) as repo:
        assert len(repo.parents_of(repo.resolve("HEAD"))) == 3
