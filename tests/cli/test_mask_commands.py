"""`mgit mask` as it is typed: what each command prints, writes and refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def bot(mgit: Any, files: Any) -> Any:
    """A repository with one commit of a model of three layers, and no task."""
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    mgit("init")
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base")
    return mgit


def change(bot: Any, files: Any, layer: int, at: slice) -> None:
    arrays = files.floats()
    arrays[f"layers.{layer}.weight"].reshape(-1)[at] += 1
    (bot.directory / "bot.safetensors").write_bytes(files.of_arrays(arrays))


def make(bot: Any, *options: str) -> dict[str, Any]:
    return json.loads(bot("mask", "create", *options, "--json").out)["masks"][0]


def test_create_says_what_was_made_and_how_to_go_on(bot: Any, mask_ids: Any) -> None:
    ran = bot("mask", "create", "--density", "1%", "--score", "magnitude", "--name", "tone")
    assert ran.out == ""
    assert mask_ids(ran.err).splitlines() == [
        "mask [id]  tone  23 of 2,304 values (1.00 %) in 3 tensors of bot.safetensors",
        "  magnitude, density 0.01, global",
        "hint: train under it, then `mgit commit --mask tone -m …`",
    ]
    document = make(bot, "--density", "0.01", "--score", "random", "--seed", "2")
    assert document["count"] == 23 and document["total"] == 2304 and document["names"] == [] and document["kept"]
    assert document["origin"] == "random, density 0.01, seed 2, global"


def test_every_option_of_create_does_something(bot: Any, files: Any) -> None:
    change(bot, files, 1, slice(0, 10))
    bot("commit", "-m", "dense")
    made = {
        options: make(bot, "--score", "random", "--density", "10%", *options)["id"]
        for options in (
            (),
            ("--seed", "1"),
            ("--budget", "layer"),
            ("--include", "layers.0*"),
            ("--exclude", "layers.0*"),
            ("--from-diff", "HEAD~1..HEAD"),
        )
    }
    assert len(set(made.values())) == len(made)
    head = make(bot, "--score", "random", "--density", "40%", "--head", "layers.2")
    assert head["tensors"] == 3 and make(bot, "--score", "random", "--density", "40%", "--no-head")["id"] != head["id"]
    changed = bot("mask", "create", "--score", "magnitude", "--density", "10%", "--from-diff", "HEAD~1..")
    assert "10 of 2,304 values" in changed.err and "all that changed: the density allows 230 values" in changed.err
    shown = bot("mask", "show", "latest", "--tensors").out.splitlines()
    assert shown[-1].split() == ["layers.1.weight", "10", "1.30", "%"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "which density?"),
        (("--density", "0.5%"), "which task?"),
        (("--density", "0.5%", "--score", "bias"), "takes no density"),
        (("--density", "0.5%", "--score", "magnitude", "--head", "x", "--no-head"), "exclude each other"),
        (("--density", "0.5%", "--score", "magnitude", "--from-diff", "HEAD"), "not a difference"),
        (("--density", "0.5%", "--score", "magnitude", "--from-diff", "HEAD...HEAD"), "not a difference"),
        (("--density", "0.001%", "--score", "magnitude"), "allows none of 2,304 values"),
        (("--density", "1%", "--score", "magnitude", "--head", "layers.0"), "the head alone has 768 values"),
        (("--density", "1%", "--score", "magnitude", "--name", "a b"), "cannot be called"),
    ],
)
def test_refusals_are_one_sentence_with_what_to_type(bot: Any, options: tuple[str, ...], message: str) -> None:
    lines = bot("mask", "create", *options, code=2).err.splitlines()
    assert lines[0].startswith("error: ") and message in lines[0]
    assert lines[1].startswith("hint: ") and len(lines) == 2


def test_list_and_show(bot: Any, files: Any, mask_ids: Any) -> None:
    make(bot, "--score", "magnitude", "--density", "1%", "--name", "tone")
    make(bot, "--score", "random", "--density", "2%")
    assert mask_ids(bot("mask", "list").out).splitlines() == [
        "[id]        46  2.00 %  bot.safetensors  0 commits  random, density 0.02, seed 0, global",
        "[id]  tone  23  1.00 %  bot.safetensors  0 commits  magnitude, density 0.01, global",
    ]
    positions = json.loads(bot("mask", "show", "tone", "--json").out)["masks"][0]
    assert sum(layer["chosen"] for layer in positions["layers"]) == 23
    assert [layer["layer"] for layer in positions["layers"]] == ["layers.0", "layers.1", "layers.2"]
    assert all(layer["elements"] == 768 for layer in positions["layers"])
    lines = bot("mask", "show", "tone", "--against", "latest").out.splitlines()
    assert len(lines) == 7 and all("█" in line and line.endswith("%") for line in lines[2:5])
    assert lines[6].startswith("against ") and "46 values" in lines[6] and "Jaccard 0.0" in lines[6]
    itself = json.loads(bot("mask", "show", "tone", "--against", "tone", "--json").out)["masks"][0]["against"]
    assert (itself["shared"], itself["jaccard"]) == (23, 1.0)


def test_what_strays_is_refused_put_back_and_committed(bot: Any, files: Any, mask_ids: Any) -> None:
    make(bot, "--score", "random", "--density", "1%", "--name", "tone")
    change(bot, files, 2, slice(None))
    refused = bot("commit", "-m", "trained", "--mask", "tone", code=3).err.splitlines()
    assert refused[0].endswith(" values in layers.2.weight changed outside of mask tone")
    assert refused[1].startswith("hint: `mgit mask apply tone` puts them back")
    before = (bot.directory / "bot.safetensors").read_bytes()
    assert bot("mask", "apply", "tone", "--dry-run").err.startswith("Would put back 7")
    assert (bot.directory / "bot.safetensors").read_bytes() == before
    said = bot("mask", "apply", "tone").err.splitlines()
    assert said[0].startswith("Put back 7") and "bot.safetensors as it was is in " in said[1]
    assert bot("mask", "apply", "tone").err == "nothing differs outside of mask tone\n"
    bot("commit", "-m", "trained", "--mask", "tone")
    shown = mask_ids(bot("mask", "show", "tone").out).splitlines()
    assert shown[-1] == "commit [id]  trained"
    assert "Mask:   [id]" in mask_ids(bot("show").out).splitlines()
    assert bot("mask", "list").out.split("bot.safetensors")[1].startswith("  1 commit  ")
    document = json.loads(bot("mask", "apply", "tone", "--from", "HEAD~1", "--json").out)
    assert (document["schema"], document["count"], document["tensors"]) == ("mgit.mask-apply/1", 0, {})


def test_a_mask_of_the_history_outlives_its_name(bot: Any, files: Any) -> None:
    made = make(bot, "--score", "magnitude", "--density", "1%", "--name", "tone")
    (bot.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    change(bot, files, 0, slice(0, 0))
    bot("commit", "-m", "under it", "--mask", "tone", "--allow-empty")
    assert "tone" in bot("mask", "remove", "tone").err
    bot("mask", "show", "tone", code=2)
    bot("gc")
    assert made["id"][3:15] in bot("mask", "show", "latest").out
    assert json.loads(bot("mask", "list", "--json").out)["masks"][0]["kept"] is False
    assert "kept by commits" in bot("mask", "remove", "latest", code=2).err
    assert json.loads(bot("mask", "show", "latest", "--json").out)["masks"][0]["count"] == 23
