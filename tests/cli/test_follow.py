"""Following a regression as it is typed: blame, bisect."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from modelgit.environment import Environment


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


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small demo: main, and a branch for each of two tasks, trained on it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    torch.set_num_threads(1)
    from modelgit.integrations.demo.small import make_demo

    folder = tmp_path_factory.mktemp("demo")
    environment = Environment.capture(values={"HOME": str(folder)}, cwd=folder)
    make_demo(folder / "d", environment=environment).close()
    return folder / "d"


@pytest.fixture
def demo(mgit: Any, played: Path) -> Any:
    """A copy of it."""
    shutil.copytree(played, mgit.directory / "d", symlinks=True)
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


def offered(err: str) -> list[list[str]]:
    """The commands of the hint at the end."""
    return [shlex.split(line)[1:] for line in re.findall(r"`(mgit [^`]+)`", err.splitlines()[-1])]


def follow(demo: Any, *command: str, see: bool) -> int:
    """Do what the hints of refusals say until `command` is not refused any more; how often they were followed."""
    for followed in range(5):
        ran = demo(*command, code=None)
        if ran.code == 0:
            return followed
        *seen, accept = offered(ran.err)
        assert "`--gate warn` records anyway" in ran.err and accept[:2] == ["eval", "accept"]
        suite = accept[accept.index("--suite") + 1]
        ids = re.findall(r"↯ ([^:]+): ", ran.err.partition(f"eval {suite}")[2].partition("\neval ")[0])
        if see:
            verdicts = json.loads(demo(*seen[0], "--json", code=1).out)["evaluations"]
            shown, ids = ids, [f["example"] for item in verdicts if item["suite"] == suite for f in item["flips"]]
            assert ids[:3] == shown
        else:
            assert seen == []
        demo(*(",".join(ids) if word == "IDS" else word for word in accept))
    raise AssertionError("the hints lead nowhere")


def test_the_hints_of_a_refusal_lead_to_a_commit(demo: Any) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    config, file = demo.directory / "mgit.toml", demo.directory / "models/bot/model.safetensors"
    settings = config.read_text()
    config.write_text(re.sub(r"accuracy = .*\n", "", settings).replace("max = 0.05", "max = 0.0"))
    demo("commit", "-m", "strict")
    rng = np.random.default_rng(1)
    state = {name: array + 0.05 * rng.standard_normal(array.shape) for name, array in load_file(file).items()}
    save_file({name: array.astype(np.float32) for name, array in state.items()}, file)
    assert follow(demo, "commit", "-m", "worse", see=True) == 2
    assert "accepted" in demo("show").out
    demo("undo")
    demo("restore", ".")
    # A merge that was refused is nowhere: what broke stands in the refusal.
    assert follow(demo, "merge", "topic", see=False) >= 1
    # What no acceptance moves is not said to be accepted.
    config.write_text(re.sub(r"negative_flips = .*\n", "", settings).replace("max_drop = 0.05", "min = 1.0"))
    ran = demo("commit", "-m", "a limit that nothing keeps", code=1)
    assert ran.err.splitlines()[-1] == "hint: `--gate warn` records anyway and marks the commit"
