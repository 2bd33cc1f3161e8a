"""Following a regression as it is typed: blame, bisect."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest


@pytest.fixture
def notes(mgit: Any) -> Any:
    """A repository with six commits of a small file."""
    mgit("init")
    (mgit.directory / "notes.txt").write_text("0\n")
    mgit("track", "notes.txt")
    for number in range(6):
        (mgit.directory / "notes.txt").write_text(f"{number}\n")
        mgit("commit", "-m", f"change {number}")
    return mgit


def test_a_command_finds_the_first_bad_commit(notes: Any) -> None:
    commits = json.loads(notes("log", "--json").out)["commits"]
    started = notes("bisect", "start", "main", commits[-1]["id"])
    assert "Asking" in started.out and "5 commits" not in started.err
    script = "import sys; sys.exit(int(open('notes.txt').read()) >= 4)"
    found = notes("bisect", "run", sys.executable, "-c", script)
    assert f"{commits[1]['id'].removeprefix('b3:')[:12]} is the first bad commit" in found.out
    assert "change 4" in found.out
    assert "is the first bad commit" in notes("bisect", "run", "true").out, "it is over, and says so again"
    assert json.loads(notes("bisect", "log", "--json").out)["bisection"]["branch"] == "main"
    assert "main" in notes("bisect", "reset").err
    assert (notes.directory / "notes.txt").read_text() == "5\n"


def test_what_a_command_did_not_answer_is_no_answer(notes: Any) -> None:
    assert "no bisection is under way" in notes("bisect", "run", "true", code=3).err
    assert "Waiting for a bad commit" in notes("bisect", "start").err
    assert "before a bad and a good commit are named" in notes("bisect", "run", "true", code=2).err
    assert "Waiting for a good one" in notes("bisect", "bad").err
    notes("bisect", "good", "HEAD~5")
    before = notes("bisect", "log").out
    for code in (126, 127, 200):
        refused = notes("bisect", "run", sys.executable, "-c", f"import sys; sys.exit({code})", code=3)
        assert f"ended with {code}" in refused.err
    assert "cannot run no-such-program" in notes("bisect", "run", "no-such-program", code=2).err
    assert notes("bisect", "log").out == before
    skipped = notes("bisect", "run", sys.executable, "-c", "import sys; sys.exit(125)", code=1)
    assert "The first bad commit is one of these 5" in skipped.out


def test_blame_names_commits_for_tensors(mgit: Any, files: Any) -> None:
    mgit("init")
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base")
    listed = json.loads(mgit("blame", "--json").out)["tensors"]
    assert {line["name"] for line in listed} == {f"layers.{n}.weight" for n in range(3)}
    assert "0:24" in mgit("blame", "layers.0.weight").out
    rows = json.loads(mgit("blame", "layers.0.weight", "--rows", "2:5", "--json").out)["rows"]
    assert [(row["start"], row["stop"]) for row in rows] == [(2, 5)]
    assert "--rows says which rows of one tensor" in mgit("blame", "--rows", "2:5", code=2).err


@pytest.fixture
def demo(mgit: Any) -> Any:
    """In the small demo: main, and a branch that was trained on one of two tasks."""
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    mgit("demo", "--small", "d")
    mgit.directory = mgit.directory / "d"
    return mgit


def test_flips_and_the_commit_that_made_one(demo: Any) -> None:
    found = json.loads(demo("flips", "main..topic", "--all", "--json").out)["data"]
    assert [item["data"] for item in found] == ["data/tone.test.jsonl", "data/topic.test.jsonl"]
    for item in found:
        kinds = [example["kind"] for example in item["examples"]]
        assert (kinds.count("negative"), kinds.count("positive")) == (item["negative"], item["positive"])
        for example in item["examples"]:
            assert example["before"] != example["after"]
            assert (example["before"] == example["gold"]) == (example["kind"] == "negative")
            assert (example["after"] == example["gold"]) == (example["kind"] == "positive")
    back = json.loads(demo("flips", "topic..main", "--data", "data/topic.test.jsonl", "--json").out)["data"]
    assert back[0]["negative"] == found[1]["positive"] > 0
    measured = back[0]["measures"]
    kept = measured["accuracy_before"] * back[0]["labelled"] - back[0]["negative"]
    assert measured["trust_compatibility"] == pytest.approx(kept / (kept + back[0]["negative"]))
    low, high = measured["negative_interval_95"]
    assert low < measured["negative_rate"] < high and 0 <= measured["mcnemar_p"] <= 1
    gained = next(example for example in found[1]["examples"] if example["kind"] == "positive")
    shown = demo("flips", "topic", "--suite", "topic", "--positive", "-n", "1").out
    assert f"{found[1]['negative']} negative flip" in shown and "more (-n" in shown
    assert "McNemar p = " in shown and "BTC " in shown

    topic = json.loads(demo("log", "topic", "--json").out)["commits"][0]["id"]
    arguments = ("blame", "--example", gained["example"], "--data", "data/topic.test.jsonl")
    blamed = json.loads(demo(*arguments, "topic", "--json").out)
    assert blamed["since"] == topic and blamed["now"]["right"] and not blamed["before"]["right"]
    assert f"{gained['before']} → {gained['after']}" in demo(*arguments, "topic").out
    assert "wrong in all of the history" in demo(*arguments, "main").out
    assert "no example `nothing`" in demo("blame", "--example", "nothing", code=2).err
    assert "2 examples are called" in demo("blame", "--example", gained["example"], code=2).err
    assert "no suite has the data `x`" in demo("flips", "main..topic", "--data", "x", code=2).err
