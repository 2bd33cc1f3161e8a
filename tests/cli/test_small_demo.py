"""`mgit demo --small`: what it makes, and that what it invites to try works."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_the_small_demo_merges_two_trained_branches_through_the_gate(mgit: Any) -> None:
    pytest.importorskip("tokenizers")
    import torch

    torch.set_num_threads(1)
    said = mgit("demo", "--small", "toy").err
    toy = mgit.directory / "toy"
    assert "mgit merge topic" in said and said.count("trained under mask") == 2
    assert mgit("status", cwd=toy).out == "On branch main\nnothing to commit\n"
    assert mgit("branch", cwd=toy).out == "* main\n  tone\n  topic\n"
    for branch in ("topic", "tone"):
        [commit] = json.loads(mgit("log", branch, "-n", "1", "--json", cwd=toy).out)["commits"]
        assert len(commit["patch"]["masks"]) == 1 and commit["verdict"] == "pass"
    assert "(fast-forward)" in mgit("merge", "topic", cwd=toy).err
    merged = mgit("merge", "tone", cwd=toy).err
    assert "fisher; " in merged and "FAIL" not in merged
    accuracy = {
        record["suite"]: next(check["value"] for check in record["results"] if check["name"] == "accuracy")
        for record in json.loads(mgit("eval", "--suite", "topic", "--suite", "tone", "--json", cwd=toy).out)[
            "evaluations"
        ]
    }
    # Guessing gives 0.33 and 0.5: the merged model has learnt both tasks.
    assert accuracy["topic"] > 0.8 and accuracy["tone"] > 0.75
    assert mgit("demo", "--small", "toy", code=3).err.startswith("error: toy exists already and is not empty\n")
