"""`mgit fisher` and the `--fisher` of the commands that move commits, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("torch")

from modelgit.integrations.demo.small import SETTINGS, write_checkpoint, write_data


@pytest.fixture
def bot(mgit: Any) -> Any:
    """A tiny BERT and data of a task, committed."""
    write_checkpoint(mgit.directory / "models/bot")
    write_data(mgit.directory / "data", train=30, test=5)
    mgit("init")
    text = SETTINGS.partition("# The gate")[0].partition("[task.tone]")[0]
    (mgit.directory / "mgit.toml").write_text(text)
    mgit("commit", "-m", "base")
    return mgit


def test_make_is_implied_and_the_second_time_costs_nothing(bot: Any) -> None:
    made = bot("fisher", "main", "--examples", "20").err
    assert made.startswith("fisher ") and "exact, 20 examples of task topic" in made and "stored in" in made
    assert "kept from an earlier run" in bot("fisher", "make", "--examples", "20").err
    # Common options before the command's own words do not hide them.
    assert "kept from an earlier run" in bot("fisher", "--no-progress", "main", "--examples", "20").err
    document = json.loads(bot("fisher", "--examples", "20", "--json").out)
    assert document["schema"] == "mgit.fisher/1" and document["cached"] and document["examples"] == 20
    assert "diagonal" not in document and document["head"] == ["heads.topic.bias", "heads.topic.weight"]


def test_show_list_and_remove(bot: Any) -> None:
    bot("fisher", "--examples", "12")
    shown = bot("fisher", "show").out
    for words in (
        "trace ",
        "zeros ",
        "effective number of weights",
        "encoder.layer.0",
        "heads.topic",
        "one byte a weight",
    ):
        assert words in shown
    assert (
        "more tensors (--tensors lists them)" in shown and "more tensor" not in bot("fisher", "show", "--tensors").out
    )
    document = json.loads(bot("fisher", "show", "latest", "--json").out)
    assert document["schema"] == "mgit.fisher-summary/1"
    assert sum(layer["share"] for layer in document["summary"]["layers"]) == pytest.approx(1)
    assert set(document["summary"]["top"]) == {"0.001", "0.005", "0.01", "0.1"}
    [listed] = json.loads(bot("fisher", "list", "--json").out)["estimates"]
    assert listed["refs"] == ["main"] and listed["id"] == document["id"] and listed["origin"] == ""
    assert "main" in bot("fisher", "list").out and "made here" in bot("fisher", "list").out
    assert "Forgot Fisher estimate" in bot("fisher", "remove", listed["id"][3:11]).err
    assert bot("fisher", "list").out == ""
    refused = bot("fisher", "show", code=2).err
    assert refused == ("error: no Fisher estimate is kept of the weights at HEAD\nhint: `mgit fisher HEAD` makes one\n")


def test_early_stop_is_said(bot: Any) -> None:
    assert "too few examples to say whether the ranking has settled" in bot("fisher").err
    assert "settled" not in bot("fisher", "--no-early-stop").err
    assert "(50.0 % asked for)" not in bot("fisher", "--settle", "0.5").err  # nothing was compared: one block
    assert bot("fisher", "--settle", "0", code=2).err.startswith("error: ")


def test_estimates_travel_when_asked_and_what_moved_is_said(bot: Any, tmp_path: Path) -> None:
    bot("fisher")
    bot("remote", "add", "origin", str(tmp_path / "o.mgit"))
    assert "Fisher" not in bot("push").err
    assert "1 Fisher estimate sent, " in bot("push", "--fisher").err
    again = json.loads(bot("push", "--fisher", "--json").out)
    assert again["updates"] == [] and again["fisher"]["estimates"] == []
    assert "no Fisher estimate sent" in bot("push", "--fisher").err
    bot("clone", str(tmp_path / "o.mgit"), str(tmp_path / "plain"))
    assert bot("fisher", "list", cwd=tmp_path / "plain").out == ""
    fetched = json.loads(bot("fetch", "--fisher", "--json", cwd=tmp_path / "plain").out)
    assert len(fetched["fisher"]["estimates"]) == 1
    assert (
        "1 Fisher estimate received" in bot("clone", str(tmp_path / "o.mgit"), str(tmp_path / "full"), "--fisher").err
    )
    assert "from origin" in bot("fisher", "list", cwd=tmp_path / "full").out
    assert "no Fisher estimate received" in bot("pull", "--fisher", cwd=tmp_path / "full").err
    assert bot("push", "origin", "main", "--delete", "--fisher", code=2).err.startswith(
        "error: --delete goes with none"
    )
    assert bot("fetch", "--repair", "--fisher", code=2).err.startswith("error: --fisher does not go with --repair")


def test_a_damaged_list_of_estimates_can_be_given_up(bot: Any) -> None:
    bot("fisher", "--examples", "5")
    for file in (bot.directory / ".mgit/statistics").iterdir():
        file.write_bytes(b"")
    for command in (["fisher", "list"], ["gc"]):
        assert "hint: `mgit fisher remove --all` begins a new one" in bot(*command, code=4).err
    bot("fisher", "remove", code=2)
    bot("fisher", "remove", "latest", "--all", code=2)
    assert bot("fisher", "remove", "--all").err == "Forgot all Fisher estimates\n"
    bot("gc")
    assert "stored in" in bot("fisher", "--examples", "5").err


def test_a_seed_that_no_record_holds_is_refused_before_the_pass(bot: Any) -> None:
    assert "--seed" in bot("fisher", "--seed", str(2**63), code=2).err
    bot("fisher", "--examples", "2", "--seed", str(-(2**63)))
