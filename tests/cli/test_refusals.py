"""When things go wrong: what is said, what to type next, how the command ends, and that nothing was touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture
def bot(mgit: Any, files: Any) -> Any:
    """A repository with one commit of one model, `bot.safetensors`, and a text file."""
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    (mgit.directory / "notes.txt").write_text("one\n")
    mgit("init")
    mgit("track", "bot.safetensors", "notes.txt")
    mgit("commit", "-m", "base")
    return mgit


def _change(mgit: Any, files: Any, seed: int) -> None:
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats(seed)))


def test_a_pointer_of_git_lfs_is_not_weights(mgit: Any) -> None:
    folder = mgit.directory / "models" / "llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    name = "model-00001-of-00002.safetensors"
    (folder / name).write_text(LFS_POINTER)
    mgit("init")
    ran = mgit("track", "models/llama", code=7)
    message, hint = ran.err.splitlines()
    assert message.startswith(f"error: models/llama/{name} is a Git LFS pointer ({len(LFS_POINTER)} bytes)")
    assert hint.startswith("hint: ") and "git lfs pull" in hint
    assert mgit("track").out == ""


def test_switching_would_lose_changes(bot: Any, files: Any) -> None:
    bot("switch", "-c", "refunds")
    _change(bot, files, 1)
    bot("commit", "-m", "refunds")
    _change(bot, files, 2)
    before = (bot.directory / "bot.safetensors").read_bytes()
    ran = bot("switch", "main", code=3)
    message, hint = ran.err.splitlines()
    assert message.startswith("error: bot.safetensors has changes that switching would overwrite")
    assert hint == "hint: `mgit commit -m …`, or `mgit switch main --discard` (kept 7 days in .mgit/rescue)"
    assert (bot.directory / "bot.safetensors").read_bytes() == before
    bot("switch", "main", "--discard")
    [kept] = (bot.directory / ".mgit" / "rescue").rglob("bot.safetensors")
    assert kept.read_bytes() == before


def test_a_remote_that_is_ahead(bot: Any, files: Any, tmp_path: Path) -> None:
    bot("remote", "add", "origin", str(tmp_path / "bot.mgit"))
    bot("push")
    bot("clone", str(tmp_path / "bot.mgit"), str(tmp_path / "other"))
    (tmp_path / "other" / "notes.txt").write_text("two\n")
    bot("commit", "-m", "two", cwd=tmp_path / "other")
    bot("push", cwd=tmp_path / "other")
    _change(bot, files, 3)
    bot("commit", "-m", "three")
    ran = bot("push", code=5)
    message, hint = ran.err.splitlines()
    assert message.startswith("error: origin/main has 1 commit that you do not have (")
    assert hint == "hint: `mgit pull` merges it; nothing was changed on origin"
    bot("pull")
    bot("push")
    assert (bot.directory / "notes.txt").read_text() == "two\n"


def test_a_damaged_object_is_named_by_its_tensor(bot: Any) -> None:
    packs = [file for file in (bot.directory / ".mgit" / "packs").rglob("*") if file.is_file()]
    largest = max(packs, key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[1000] ^= 0x10
    largest.chmod(0o644)
    largest.write_bytes(data)
    ran = bot("fsck", code=4)
    assert "layers.0.weight" in ran.out
    assert ran.err.splitlines()[-2].startswith("error: ")


def test_unknown_names_suggest_the_nearest(bot: Any) -> None:
    bot("branch", "refunds")
    assert "did you mean `refunds`?" in bot("log", "refundz", code=3).err
    assert "`mgit switch -c nowhere` makes it" in bot("switch", "nowhere", code=3).err
    assert "is not a branch" in bot("switch", "HEAD~0", code=3).err


def test_merge_strategies_suggest_the_nearest(bot: Any, files: Any) -> None:
    bot("switch", "-c", "tone")
    _change(bot, files, 4)
    bot("commit", "-m", "tone")
    bot("switch", "main")
    ran = bot("merge", "tone", "--strategy", "fishr", code=2)
    assert ran.err.splitlines()[0] == "error: no merge strategy `fishr`; did you mean `fisher`?"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["commit", "-m", "again"], 1),
        (["commit"], 2),
        (["commit", "-m", " "], 2),
        (["commit", "-m", "x", "--allow-empty", "--author", "nobody"], 2),
        (["commit", "-m", "x", "--mask", "abcdef"], 2),
        (["undo"], 0),
        (["redo"], 1),
        (["merge"], 2),
        (["merge", "main", "--continue"], 2),
        (["merge", "--continue"], 1),
        (["merge", "main", "--json"], 2),
        (["merge", "main", "--strategy", "average", "--strategy", "fisher"], 2),
        (["resolve"], 1),
        (["branch", "-d", "main"], 3),
        (["branch", "-d", "-m", "main"], 2),
        (["branch", "-m", "main"], 2),
        (["branch", "a b"], 2),
        (["branch", "-D", "nowhere"], 3),
        (["tag", "-d", "nowhere"], 3),
        (["tag", "-d"], 2),
        (["switch", "main", "start"], 2),
        (["switch", "-c", "x", "--detach"], 2),
        (["restore", "nowhere"], 2),
        (["restore", "../outside"], 2),
        (["track", "../outside"], 2),
        (["track", "nowhere"], 2),
        (["untrack", "nowhere"], 2),
        (["config", "get", "no.such.key"], 2),
        (["config", "get", "user.name"], 1),
        (["config", "set", "track.paths", "3"], 2),
        (["config", "set", "--user", "--shared", "user.name", "x"], 2),
        (["config", "unset", "storage.threads"], 1),
        (["push"], 2),
        (["push", "origin", "--delete"], 2),
        (["push", "origin", "--delete", "nobody-has-this"], 3),
        (["remote", "remove", "origin"], 2),
        (["remote", "add", "origin", "-evil"], 2),
        (["fetch"], 2),
        (["clone", "nowhere.mgit"], 5),
        (["diff", "nowhere"], 3),
        (["diff", "--task", "x"], 2),
        (["diff", "--no-index", "a"], 2),
        (["diff", "--no-index", "a", "b"], 2),
        (["fisher"], 2),
        (["fisher", "remove", "abcdef"], 2),
        (["mask", "create", "--density", "0"], 2),
        (["mask", "create", "--density", "120%"], 2),
        (["mask", "create", "--density", "many"], 2),
        (["mask", "show", "abcdef"], 2),
        (["eval", "--suite", "nowhere"], 2),
        (["trust"], 1),
        (["trust", "--list", "--revoke"], 2),
        (["show", "nowhere"], 3),
        (["log", "-n", "-1"], 2),
        (["init"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_refusal_is_one_sentence_with_its_exit_code(bot: Any, arguments: list[str], code: int) -> None:
    ran = bot(*arguments, code=None)
    assert ran.code == code, ran.all
    lines = ran.err.splitlines()
    if code and "user.name" not in arguments[-1:]:
        assert sum(line.startswith("error: ") for line in lines) == 1
        [message] = [line for line in lines if line.startswith("error: ")]
        assert not message.endswith(".") and "Traceback" not in ran.err and "bug" not in message
        assert len(lines) <= 2 and all(line.startswith(("error: ", "hint: ")) for line in lines)


def test_a_gate_that_refuses_shows_why(bot: Any, files: Any) -> None:
    arrays = files.floats()
    arrays["layers.1.weight"][3, 5] = np.nan
    (bot.directory / "bot.safetensors").write_bytes(files.of_arrays(arrays))
    ran = bot("commit", "-m", "oops", code=1)
    assert "FAIL" in ran.err and "layers.1.weight" in ran.err
    assert ran.err.splitlines()[-1] == "hint: `--gate warn` records anyway and marks the commit"
    assert bot("log", "--oneline").out.count("\n") == 1
    bot("commit", "-m", "oops", "--gate", "warn")
    assert "gates ✗" in bot("log", "--oneline").out


def test_text_of_strangers_cannot_steer_the_terminal(mgit: Any) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    config = mgit.directory / "config.json"
    config.write_text(json.dumps({f"key{evil}": f"one{evil}"}))
    mgit("init")
    mgit("track", "config.json")
    mgit("commit", "-m", f"subject {evil}\n\nbody {evil}", "--author", "E\x1b[31mve <e@x>")
    config.write_text(json.dumps({f"key{evil}": f"two{evil}"}))
    shown = mgit("diff").all + mgit("diff", "--stat").all
    mgit("commit", "-m", "second")
    for arguments in (["log"], ["log", "--graph", "--oneline"], ["show", "HEAD~1"], ["op", "log"], ["undo"], ["redo"]):
        shown += mgit(*arguments).all
    for arguments in (["log"], ["show", "HEAD~1"], ["diff", "HEAD~1", "HEAD"]):
        shown += mgit(*arguments, "--json").all
    shown += mgit("log", f"{evil}", code=3).all + mgit(f"sta{evil}tus", code=2).all
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "\\x1b]0;owned\\x07" in shown


def test_tensor_names_of_strangers_are_refused(mgit: Any, files: Any) -> None:
    raw = np.zeros((4, 4), "<f4").tobytes()
    (mgit.directory / "m.safetensors").write_bytes(files.safetensors({"layer\x1b[2J": ("F32", (4, 4), raw)}))
    mgit("init")
    ran = mgit("track", "m.safetensors", code=7)
    assert "control characters in the tensor name" in ran.err and "\x1b" not in ran.err
