"""What the commands do, and that every option does something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def bot(mgit: Any, files: Any) -> Any:
    """A repository with one commit of one model, `bot.safetensors`, and a text file."""
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    (mgit.directory / "notes.txt").write_text("one\n")
    mgit("init")
    mgit("track", "bot.safetensors", "notes.txt")
    mgit("commit", "-m", "base")
    return mgit


def _nudge(mgit: Any, files: Any, layer: int, values: int = 5, cwd: Path | None = None) -> None:
    """Change the first values of one layer of the model as it lies in the work tree."""
    from safetensors.numpy import load_file

    file = (cwd or mgit.directory) / "bot.safetensors"
    arrays = {name: array.copy() for name, array in sorted(load_file(file).items())}
    arrays[f"layers.{layer}.weight"].reshape(-1)[:values] += 1.0
    file.write_bytes(files.of_arrays(arrays))


def test_init_elsewhere_with_another_branch(mgit: Any) -> None:
    ran = mgit("init", "models", "-b", "trunk")
    assert ran.err == "Initialised an empty mgit repository in models/.mgit (branch trunk)\n" and ran.out == ""
    assert mgit("status", cwd=mgit.directory / "models").out.startswith("On branch trunk, no commits yet\n")


def test_track_says_how_to_record_the_state_of_training(mgit: Any, files: Any) -> None:
    mgit("init")
    (mgit.directory / "bot").mkdir()
    (mgit.directory / "bot" / "model.safetensors").write_bytes(files.of_arrays(files.floats(1)))
    assert "hint" not in mgit("track", "bot").err
    (mgit.directory / "bot" / "optimizer.pt").write_bytes(b"moments")
    said = mgit("track", "bot").err
    assert "ignored" in said and "hint: `mgit track --training-state bot`" in said
    mgit("track", "--training-state", "bot")
    said = mgit("track", "bot").err
    assert "beside    bot/optimizer.pt  (recorded as training state)" in said
    assert "hint" not in said and "ignored" not in said


def test_track_from_a_subdirectory_and_untrack(mgit: Any) -> None:
    (mgit.directory / "data").mkdir()
    (mgit.directory / "data" / "a.txt").write_text("a")
    mgit("init")
    mgit("track", "a.txt", cwd=mgit.directory / "data")
    assert mgit("track").out == "data/a.txt\n"
    assert json.loads(mgit("track", "--json").out)["paths"] == ["data/a.txt"]
    mgit("untrack", "data/a.txt")
    assert mgit("track").out == ""


def test_status_names_tensors_and_files(bot: Any, files: Any) -> None:
    assert bot("status").out == "On branch main\nnothing to commit\n"
    _nudge(bot, files, 1)
    (bot.directory / "notes.txt").unlink()
    assert bot("status", "-v").out.splitlines() == [
        "On branch main",
        "  M bot.safetensors   1 of 3 tensors",
        "      layers.1.weight",
        "  D notes.txt",
    ]
    document = json.loads(bot("status", "--json").out)
    assert document["schema"] == "mgit.status/1" and document["clean"] is False
    assert document["models"] == [{"path": "bot.safetensors", "tensors": ["layers.1.weight"], "total": 3}]
    assert document["files"] == [{"path": "notes.txt", "change": "deleted"}]


def test_commit_takes_part_with_only(bot: Any, files: Any) -> None:
    _nudge(bot, files, 0)
    (bot.directory / "notes.txt").write_text("two\n")
    bot("commit", "-m", "the notes", "--only", "*.txt")
    assert bot("status").out == "On branch main\n  M bot.safetensors   1 of 3 tensors\n"
    document = json.loads(bot("commit", "-m", "the rest", "-m", "with a reason", "--author", "Eve <e@x>", "--json").out)
    assert document["commit"]["message"].rstrip() == "the rest\n\nwith a reason"
    assert document["commit"]["author"]["name"] == "Eve" and document["commit"]["committer"]["name"] == "Ada"
    assert [change["name"] for change in document["patch"]["tensors"]] == ["layers.0.weight"]
    assert document["patch"]["tensors"][0]["values_changed"] == 5
    bot("commit", "-m", "empty", "--allow-empty")
    assert bot("log", "--oneline").out.count("\n") == 4


def test_the_first_commit_says_who_you_are_unless_you_did(mgit: Any) -> None:
    (mgit.directory / "a.txt").write_text("a")
    mgit.values.pop("MGIT_AUTHOR")
    mgit("init")
    mgit("track", "a.txt")
    assert "hint: `mgit config set --user user.name NAME`" in mgit("commit", "-m", "first").err
    (mgit.directory / "a.txt").write_text("b")
    assert "hint" not in mgit("commit", "-m", "second").err


def test_log_limits_starts_anywhere_and_draws(bot: Any, files: Any) -> None:
    _nudge(bot, files, 0)
    bot("commit", "-m", "second\n\nwhy")
    assert bot("log", "-n", "1", "--oneline").out.count("\n") == 1
    assert bot("log", "-n", "0").out == ""
    assert "second" not in bot("log", "HEAD~1").out
    full = bot("log").out
    assert "Author: Ada <ada@example.org>" in full and "    why" in full and "1 tensor, 5 of their 768 values" in full
    document = json.loads(bot("log", "--json").out)
    assert [entry["commit"]["message"].split("\n")[0] for entry in document["commits"]] == ["second", "base"]
    assert bot("log", "--graph", "--oneline").out.startswith("* ")


def test_log_and_op_log_before_the_first_commit(mgit: Any) -> None:
    mgit("init")
    assert mgit("log") == (0, "", "no commits yet\n")
    assert mgit("op", "log").out.count("\n") == 1
    assert json.loads(mgit("log", "--json").out)["commits"] == []


def test_show_lists_changes_verdicts_and_the_tree(bot: Any, files: Any) -> None:
    _nudge(bot, files, 2)
    bot("commit", "-m", "second")
    shown = bot("show").out
    assert "M  bot.safetensors:layers.2.weight  5 of 768 values (0.65 %)" in shown
    assert "eval builtin" in shown and "notes.txt" in shown
    document = json.loads(bot("show", "HEAD~1", "--json").out)
    assert document["commit"]["parents"] == [] and document["evaluations"][0]["decision"] == "baseline"


def test_diff_exit_code_stat_and_json(bot: Any, files: Any) -> None:
    assert bot("diff", "--exit-code") == (0, "", "")
    _nudge(bot, files, 1)
    assert "1 tensor, 5 of 2,304 values (0.22 %)" in bot("diff", "--exit-code", code=1).out
    [_, row] = bot("diff", "--stat").out.splitlines()
    assert row.split()[:3] == ["layers.1.weight", "5", "0.65"]
    document = json.loads(bot("diff", "--json").out)
    assert document["models"][0]["values_changed"] == 5 and "sizes" not in document
    bot("commit", "-m", "second")
    assert bot("diff", "HEAD~1..HEAD").out == bot("diff", "HEAD~1", "HEAD").out != ""
    assert bot("diff").out == ""


def test_diff_writes_a_page(bot: Any, files: Any) -> None:
    _nudge(bot, files, 1)
    assert bot("diff", "--html", "out.html").err == "wrote out.html (self-contained)\n"
    page = (bot.directory / "out.html").read_text()
    assert page.startswith("<!doctype html>") and "bot.safetensors" in page


def test_diff_of_files_needs_no_repository(mgit: Any, files: Any) -> None:
    arrays = files.floats()
    (mgit.directory / "a.safetensors").write_bytes(files.of_arrays(arrays))
    arrays["layers.0.weight"][0, :3] += 1
    (mgit.directory / "b.safetensors").write_bytes(files.of_arrays(arrays))
    ran = mgit("diff", "--no-index", "a.safetensors", "b.safetensors", "--exit-code", code=1)
    assert "3 of 2,304 values" in ran.out


def test_branches(bot: Any) -> None:
    bot("branch", "refunds")
    bot("branch", "-m", "refunds", "returns")
    assert bot("branch").out == "* main\n  returns\n"
    document = json.loads(bot("branch", "--json").out)
    assert document["current"] == "main" and [item["name"] for item in document["branches"]] == ["main", "returns"]
    bot("switch", "returns")
    bot("commit", "-m", "alone", "--allow-empty")
    bot("switch", "main")
    bot("branch", "-d", "returns", code=3)
    bot("branch", "-D", "returns")
    assert bot("branch").out == "* main\n"
    bot("undo")
    assert bot("branch").out == "* main\n  returns\n"


def test_switch_detaches_creates_and_goes_back(bot: Any, files: Any) -> None:
    first = (bot.directory / "bot.safetensors").read_bytes()
    _nudge(bot, files, 0)
    second = (bot.directory / "bot.safetensors").read_bytes()
    bot("commit", "-m", "second")
    bot("switch", "--detach", "HEAD~1")
    assert (bot.directory / "bot.safetensors").read_bytes() == first
    assert bot("status").out.startswith("At commit ") and "* (detached at" in bot("branch").out
    bot("switch", "-c", "old")
    bot("switch", "-c", "newer", "main")
    assert (bot.directory / "bot.safetensors").read_bytes() == second
    assert bot("branch").out == "  main\n* newer\n  old\n"


def test_restore_from_here_and_from_another_commit(bot: Any, files: Any) -> None:
    first = (bot.directory / "bot.safetensors").read_bytes()
    _nudge(bot, files, 0)
    bot("commit", "-m", "second")
    second = (bot.directory / "bot.safetensors").read_bytes()
    (bot.directory / "bot.safetensors").unlink()
    assert bot("restore", ".").err == "Restored 1 file\n  bot.safetensors\n"
    assert (bot.directory / "bot.safetensors").read_bytes() == second
    bot("restore", "--source", "HEAD~1", "*.safetensors")
    assert (bot.directory / "bot.safetensors").read_bytes() == first
    assert bot("restore", "notes.txt").err == "nothing differed\n"


def test_tags(bot: Any) -> None:
    bot("tag", "v1")
    assert "invalid tag name '-x': it begins with a dash" in bot("tag", "--", "-x", code=2).err
    assert "invalid branch name '-x': it begins with a dash" in bot("branch", "--", "-x", code=2).err
    bot("commit", "-m", "second", "--allow-empty")
    bot("tag", "v1", code=3)
    bot("tag", "-f", "v1")
    assert "second" in bot("tag").out
    bot("tag", "v0", "HEAD~1")
    assert [item["name"] for item in json.loads(bot("tag", "--json").out)["tags"]] == ["v0", "v1"]
    bot("tag", "-d", "v0")
    assert bot("tag").out.count("\n") == 1


def test_settings_in_three_files(bot: Any) -> None:
    bot("config", "set", "--user", "user.name", "Ada")
    bot("config", "set", "storage.threads", "2")
    bot("config", "set", "--shared", "track.ignore", '["*.bak"]')
    assert bot("config", "get", "user.name").out == "Ada\n"
    assert bot("config", "get", "track.ignore").out == '["*.bak"]\n'
    listed = bot("config", "list", "--origin").out
    assert ".mgit/config.toml" in listed and "mgit.toml" in listed and "home/.config/mgit/config.toml" in listed
    document = json.loads(bot("config", "list", "--json").out)
    assert {"key": "storage.threads", "value": 2, "origin": ".mgit/config.toml"} in document["settings"]
    bot("config", "unset", "--local", "storage.threads")
    assert bot("config", "get", "storage.threads").out == "0\n"


def test_settings_of_the_user_outside_of_a_repository(mgit: Any) -> None:
    mgit("config", "set", "--user", "user.name", "Ada")
    assert mgit("config", "get", "user.name").out == "Ada\n"
    mgit("config", "set", "user.name", "Eve", code=3)


def test_undo_and_redo(bot: Any, files: Any) -> None:
    _nudge(bot, files, 0)
    bot("commit", "-m", "second")
    assert bot("undo").err.startswith("Undid commit: second\n")
    assert "bot.safetensors" in bot("status").out
    assert bot("redo").err == "Did again commit: second\n"
    assert bot("status").out == "On branch main\nnothing to commit\n"
    assert (
        json.loads(bot("op", "log", "-n", "1", "--json").out)["operations"][0]["description"] == "redo: commit: second"
    )


def test_the_strategy_decides_what_both_changed(bot: Any, files: Any) -> None:
    from safetensors.numpy import load_file

    base = load_file(bot.directory / "bot.safetensors")["layers.1.weight"].reshape(-1)[0]
    bot("switch", "-c", "tone")
    _nudge(bot, files, 1)
    bot("commit", "-m", "tone")
    bot("switch", "main")
    _nudge(bot, files, 1, 3)
    _nudge(bot, files, 1, 2)
    bot("commit", "-m", "main")

    def merged(*options: str) -> list[float]:
        bot("merge", "tone", *options)
        values = load_file(bot.directory / "bot.safetensors")["layers.1.weight"].reshape(-1)[:5]
        bot("undo")
        return [round(float(value), 5) for value in values - base + 0]

    ours, theirs = merged("--strategy", "ours")[0], merged("--strategy", "theirs")[0]
    assert (ours, theirs) == pytest.approx((2, 1), abs=1e-4)
    assert merged("--strategy", "average")[0] == pytest.approx(1.5, abs=1e-4)
    assert merged("--strategy", "average weights=3,1")[0] == pytest.approx(1.75, abs=1e-4)
    assert merged("--strategy", "average", "--strategy", "layers.1.*=theirs")[0] == pytest.approx(1, abs=1e-4)


def test_merges_that_need_no_strategy(bot: Any, files: Any) -> None:
    bot("switch", "-c", "tone")
    _nudge(bot, files, 1)
    bot("commit", "-m", "tone")
    bot("switch", "main")
    plan = bot("merge", "tone", "--plan").out
    assert "2 tensors  unchanged on both sides" in plan and "1 tensor   changed on tone only" in plan
    assert json.loads(bot("merge", "tone", "--plan", "--json").out)["counts"] == {"keep": 2, "theirs": 1}
    assert "(fast-forward)" in bot("merge", "tone").err
    assert bot("merge", "tone").err == "Already up to date with tone\n"
    bot("undo")
    bot("merge", "tone", "--no-ff", "-m", "Take the tone")
    assert "Take the tone" in bot("log", "--oneline", "--graph", "-n", "1").out


def test_strategies_are_listed_with_their_options(mgit: Any) -> None:
    listed = mgit("merge", "--list-strategies").out
    known = {item["name"]: item for item in json.loads(mgit("merge", "--list-strategies", "--json").out)["strategies"]}
    assert known["ties"]["options"]["density"] == "0.2" and known["ties"]["scope"] == "model"
    assert all(name in listed for name in known)
    assert "average  " in listed and "weights=" in listed and "fisher  " in listed


def test_a_conflict_is_given_up(bot: Any) -> None:
    bot("switch", "-c", "tone")
    (bot.directory / "notes.txt").write_text("tone\n")
    bot("commit", "-m", "tone")
    bot("switch", "main")
    (bot.directory / "notes.txt").write_text("main\n")
    bot("commit", "-m", "main")
    ran = bot("merge", "tone", code=1)
    assert "CONFLICT notes.txt" in ran.err
    assert [item["path"] for item in json.loads(bot("resolve", "--json").out)["conflicts"]] == ["notes.txt"]
    bot("merge", "--abort")
    assert (bot.directory / "notes.txt").read_text() == "main\n"
    bot("merge", "tone", code=1)
    bot("resolve", "notes.txt", "--take", "theirs")
    bot("merge", "--continue", "-m", "Both")
    assert (bot.directory / "notes.txt").read_text() == "tone\n"


def test_remotes(bot: Any, tmp_path: Path) -> None:
    bot("remote", "add", "origin", f"file://{tmp_path / 'bot.mgit'}")
    assert bot("remote", "list").out == f"origin  file://{tmp_path / 'bot.mgit'}\n"
    assert json.loads(bot("push", "--json").out)["commits"] == 1
    bot("switch", "-c", "tone")
    bot("push", "origin", "tone:other")
    assert bot("branch", "-r").out == "  origin/main\n  origin/other\n"
    bot("push", "origin", "--delete", "other")
    bot("commit", "-m", "one way", "--allow-empty")
    bot("push")
    bot("switch", "main")
    bot("branch", "-D", "tone")
    bot("switch", "-c", "tone")
    bot("commit", "-m", "the other way", "--allow-empty")
    assert "origin/tone has 1 commit" in bot("push", code=5).err
    assert " → " in bot("push", "--force-with-lease").err
    assert bot("push").err == "origin is up to date\n"
    bot("remote", "remove", "origin")
    assert bot("remote", "list").out == "" and bot("branch", "-r").out == ""


def test_fetch_forgets_what_is_gone_only_when_asked(bot: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "bot.mgit")
    bot("remote", "add", "origin", url)
    bot("branch", "tone")
    bot("push", "origin", "main", "tone")
    bot("clone", url, str(tmp_path / "c"))
    bot("push", "origin", "--delete", "tone")
    bot("fetch", cwd=tmp_path / "c")
    assert "origin/tone" in bot("branch", "-r", cwd=tmp_path / "c").out
    assert "deleted" in bot("fetch", "--prune", cwd=tmp_path / "c").err
    assert "origin/tone" not in bot("branch", "-r", cwd=tmp_path / "c").out


def test_the_command_lines_of_the_benchmark(mgit: Any, files: Any, tmp_path: Path) -> None:
    mgit("init")
    states = {}
    for number, state in enumerate(("base", "sparse", "dense")):
        (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats(number)))
        states[state] = (mgit.directory / "bot.safetensors").read_bytes()
        mgit("track", "bot.safetensors")
        mgit("commit", "-m", state)
        mgit("tag", f"s-{state}")
    mgit("diff", "s-base", "s-sparse")
    for state, content in states.items():
        mgit("switch", "--detach", f"s-{state}")
        assert (mgit.directory / "bot.safetensors").read_bytes() == content
    mgit("switch", "-c", "alt", "s-sparse")
    _nudge(mgit, files, 0)
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "alt")
    mgit("switch", "main")
    mgit("merge", "alt", "--strategy", "average")
    merged = (mgit.directory / "bot.safetensors").read_bytes()
    mgit("gc")
    mgit("remote", "add", "origin", f"file://{tmp_path / 'work.remote'}")
    mgit("push", "origin", "main", "alt", "--tags")
    (tmp_path / "clone").mkdir()
    mgit("clone", f"file://{tmp_path / 'work.remote'}", "r", cwd=tmp_path / "clone")
    assert (tmp_path / "clone" / "r" / "bot.safetensors").read_bytes() == merged
    assert np.frombuffer(merged[-64:], "<f4").size == 16
    mgit("fsck", cwd=tmp_path / "clone" / "r")


def test_cloning_another_branch_and_pulling_the_first_commit(bot: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "bot.mgit")
    bot("remote", "add", "origin", url)
    bot("branch", "tone")
    bot("push", "origin", "main", "tone")
    bot("clone", url, str(tmp_path / "c"), "-b", "tone")
    assert bot("status", cwd=tmp_path / "c").out == "On branch tone, level with origin/tone\nnothing to commit\n"
    ran = bot("pull", cwd=tmp_path / "c")
    assert ran.err == "Nothing new on origin\ntone is up to date\n"
    assert json.loads(bot("fetch", "--json", cwd=tmp_path / "c").out)["moved"] == []


def test_code_of_strangers_is_listed_before_it_is_trusted(mgit: Any) -> None:
    (mgit.directory / "net.py").write_text("def build(files): ...\n")
    (mgit.directory / "mgit.toml").write_text('[task.t]\nmodel = "m"\nentry = "net:build"\n')
    mgit("init")
    listed = mgit("trust", "--list")
    assert "net.py" in listed.out and listed.err == "not trusted\n"
    mgit("trust")
    assert json.loads(mgit("trust", "--list", "--json").out)["trusted"] is True
    (mgit.directory / "net.py").write_text("def build(files): evil()\n")
    listed = mgit("trust", "--list")
    assert listed.err == "not trusted\n"
    assert [line.split()[-1] for line in listed.out.splitlines() if line.startswith("net.py")] == ["changed"]
    (mgit.directory / "os.py").write_text("")
    assert json.loads(mgit("trust", "--list", "--json").out)["changes"] == {"net.py": "changed", "os.py": "new"}
    assert "Trusting net.py  changed\nTrusting os.py  new\n" in mgit("trust").err
    (mgit.directory / "os.py").unlink()
    assert [line.split() for line in mgit("trust", "--list").out.splitlines() if "os.py" in line] == [
        ["os.py", "removed"]
    ]
    assert mgit("trust").err.endswith("\nNo longer named: os.py  removed\n")
    assert "os.py" not in mgit("trust").err
    mgit("trust", "--revoke")


def test_gc_says_what_it_freed(bot: Any, files: Any) -> None:
    _nudge(bot, files, 0, 700)
    bot("commit", "-m", "to be forgotten")
    bot("undo")
    bot("restore", ".")
    would = json.loads(bot("gc", "--dry-run", "--prune=now", "--json").out)
    assert would["dry_run"] is True and would["bytes_freed"] > 0
    assert bot("gc", "--prune=now").err.startswith("Freed ")
    bot("redo", code=1)
    bot("fsck")


@pytest.mark.parametrize(("decisions", "code"), [("pass", 0), ("baseline warn", 0), ("pass fail error", 1),
                                                 ("error inconclusive", 9), ("pass inconclusive", 8)])  # fmt: skip
def test_exit_codes_of_eval(decisions: str, code: int) -> None:
    from modelgit.cli.cmd_eval import exit_code_of
    from modelgit.objects import EvalRecord, ManifestId

    records = [
        EvalRecord(
            candidate=ManifestId(bytes(32)),
            baseline=None,
            suite="s",
            suite_id="",
            results=(),
            decision=decision,
            seconds=0.0,
        )
        for decision in decisions.split()
    ]
    assert exit_code_of(records) == code
