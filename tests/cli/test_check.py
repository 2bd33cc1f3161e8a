"""`mgit check`: what it says of good updates and of bad ones, and how it ends."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

CONFIG = {"model_type": "none"}


@pytest.fixture
def bot(mgit: Any, files: Any) -> Any:
    """`main` with one model; the work tree is on branch `work`."""
    mgit.arrays = {
        "embed.weight": np.random.default_rng(1).standard_normal((300, 8)).astype("<f4"),
        **files.floats(),
    }
    folder = mgit.directory / "bot"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    mgit.folder = folder
    mgit.save = lambda: (folder / "model.safetensors").write_bytes(files.of_arrays(mgit.arrays))
    mgit.save()
    mgit("init")
    mgit("track", "bot")
    mgit("commit", "-m", "base")
    mgit("switch", "-c", "work")
    return mgit


def commit(bot: Any, *options: str) -> None:
    bot.save()
    bot("commit", "-m", "change", *options)


def tune(bot: Any) -> None:
    random = np.random.default_rng(2)
    bot.arrays = {
        name: array + (1e-3 * random.standard_normal(array.shape)).astype("<f4") for name, array in bot.arrays.items()
    }


def report(bot: Any, *options: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bot("check", "--base", "main", "--json", *options, code=code).out)
    assert found["schema"] == "mgit.check/1"
    return found


def outcomes(found: dict[str, Any]) -> dict[str, str]:
    return {section["name"]: section["outcome"] for section in found["sections"]}


def rules(found: dict[str, Any]) -> set[str]:
    return {finding["rule"] for section in found["sections"] for finding in section["findings"]}


def test_a_good_update_passes(bot: Any) -> None:
    tune(bot)
    commit(bot)
    ran = bot("check", "--base", "main")
    assert ran.out.splitlines()[0].startswith("check HEAD (")
    assert "  ✓ schema      names, dtypes and shapes unchanged" in ran.out.splitlines()
    assert ran.out.splitlines()[-1] == "check passed"
    found = report(bot)
    assert found["passed"] is True and found["outcome"] == "pass"
    assert set(outcomes(found).values()) <= {"pass", "skip"}
    assert found["facts"]["tensors_changed"] == 4
    assert found["facts"]["values_changed"] == found["facts"]["values"]
    assert found["facts"]["dense"] is True
    assert found["facts"]["bytes_added"] > 0
    assert found["branch"] == "main"


def test_nothing_new_passes(bot: Any) -> None:
    assert outcomes(report(bot)) == {"patch": "skip"}
    assert bot("check", "--base", "main").out.splitlines()[-1] == "nothing to check"


def test_values_that_are_not_finite_fail(bot: Any) -> None:
    bot.arrays["embed.weight"][3, 3] = np.nan
    commit(bot, "--gate", "warn")
    found = report(bot, code=1)
    assert outcomes(found)["values"] == "fail"
    assert {"values/nonfinite", "patch/override"} <= rules(found)
    assert bot("check", "--base", "main", code=1).out.splitlines()[-1] == "check failed"


def test_what_stands_out_warns(bot: Any) -> None:
    bot.arrays["embed.weight"][7] += 1
    commit(bot)
    found = report(bot)
    assert found["outcome"] == "warn" and found["passed"] is True
    assert rules(found) == {"suspicious/few-rows"}
    assert bot("check", "--base", "main", "--strict", code=1).out.splitlines()[-1] == "check passed, with warnings"


def test_tensors_of_another_form(bot: Any) -> None:
    del bot.arrays["layers.0.weight"]
    bot.arrays["layers.1.weight"] = bot.arrays["layers.1.weight"][:5]
    bot.arrays["extra"] = np.zeros(3, "<f4")
    commit(bot)
    found = report(bot)
    assert rules(found) == {"schema/removed", "schema/respecified", "schema/added"}
    facts = found["facts"]
    assert (facts["tensors_added"], facts["tensors_removed"], facts["tensors_respecified"]) == (1, 1, 1)


def test_code_tokenizers_and_templates(bot: Any) -> None:
    (bot.folder / "modeling_bot.py").write_text("import os\n")
    (bot.folder / "tokenizer.json").write_text("{}")
    (bot.folder / "config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "modeling_bot.Bot"}}))
    (bot.folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ evil }}"}))
    commit(bot)
    found = report(bot)
    assert rules(found) == {"safety/code", "safety/auto-map", "safety/tokenizer", "safety/chat-template"}
    facts = found["facts"]
    assert facts["code"] == ["bot/modeling_bot.py"]
    assert facts["auto_map"] == ["bot/config.json: modeling_bot.Bot"]
    assert facts["tokenizer"] == ["bot/tokenizer.json"]
    assert facts["chat_template"] == ["bot/tokenizer_config.json"]
    assert facts["gate"] == []


def test_a_tokenizer_that_goes_away_is_a_change_of_it(bot: Any) -> None:
    names = ("tokenizer.json", "spm.model", "chat_template.jinja")
    for name in names:
        (bot.folder / name).write_text("{}")
    commit(bot)
    facts = report(bot)["facts"]
    assert facts["tokenizer"] == ["bot/spm.model", "bot/tokenizer.json"]
    bot("branch", "with", "HEAD")
    for name in names:
        (bot.folder / name).unlink()
    commit(bot)
    facts = report(bot, "--base", "with")["facts"]
    assert facts["tokenizer"] == ["bot/spm.model", "bot/tokenizer.json"]
    assert facts["chat_template"] == ["bot/chat_template.jinja"]


class Gadget:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("name", ["extra.pkl", "extra.bin", "notes.txt"])
def test_a_pickle_that_names_what_no_checkpoint_needs_fails(bot: Any, name: str) -> None:
    (bot.folder / name).write_bytes(pickle.dumps(Gadget()))
    bot("track", "--opaque", f"bot/{name}")
    commit(bot)
    found = report(bot, code=1)
    assert outcomes(found)["safety"] == "fail"
    [finding] = [item for section in found["sections"] for item in section["findings"] if item["level"] == "error"]
    assert finding["rule"] == "safety/pickle" and finding["path"] == f"bot/{name}"
    assert "system" in finding["message"]


def test_plain_pickles_pass(bot: Any) -> None:
    (bot.folder / "extra.pkl").write_bytes(pickle.dumps({"a": [1, 2.5, "x"]}))
    commit(bot)
    assert "safety/pickle" not in rules(report(bot))


def test_damaged_objects_fail(bot: Any) -> None:
    tune(bot)
    commit(bot)
    packs = sorted((bot.directory / ".mgit" / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest = packs[-1]
    data = bytearray(newest.read_bytes())
    data[200] ^= 1
    newest.chmod(0o644)
    newest.write_bytes(data)
    found = report(bot, code=1)
    assert outcomes(found)["objects"] == "fail"
    assert "objects/damaged" in rules(found)


def test_an_update_that_is_behind_says_so(bot: Any) -> None:
    tune(bot)
    commit(bot)
    bot("switch", "main")
    (bot.folder / "notes.txt").write_text("x")
    bot("commit", "-m", "meanwhile")
    bot("switch", "work")
    found = report(bot)
    assert rules(found) == {"patch/behind"}
    assert found["facts"]["tensors_changed"] == 4
    assert report(bot, "work")["commit"] == found["commit"]


def test_reports_go_to_files_and_the_step_s_summary(bot: Any, tmp_path: Path) -> None:
    tune(bot)
    commit(bot)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    bot.values["GITHUB_STEP_SUMMARY"] = str(summary)
    files = [("--junit", "new/c.xml"), ("--markdown", "c.md"), ("--html", "c.html"), ("--sarif", "c.sarif")]
    options = [part for option, name in files for part in (option, str(tmp_path / name))]
    ran = bot("check", "--base", "main", "--format", "github", *options)
    token = ran.out.splitlines()[0].removeprefix("::stop-commands::")
    assert len(token) == 32
    lines = ran.out.splitlines()
    assert lines[lines.index(f"::{token}::") - 1] == "check passed"
    assert lines[-1].startswith("::notice title=mgit::")
    ElementTree.parse(tmp_path / "new" / "c.xml")
    assert json.loads((tmp_path / "c.sarif").read_text())["version"] == "2.1.0"
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    assert summary.read_text() == "before\n" + (tmp_path / "c.md").read_text()
    assert "no space" in bot("check", "--base", "main", "--junit", "/dev/full", code=3).err.lower()


def test_wrong_command_lines(bot: Any) -> None:
    assert "--base" in bot("check", code=2).err
    assert "no-suites" in bot("check", "--base", "main", "--suite", "a", "--no-suites", code=2).err
    bot("check", "--base", "nowhere", code=3)


@pytest.mark.parametrize(
    ("form", "begins", "holds"),
    [
        ("text", "check HEAD (", "! suspicious"),
        ("github", "::stop-commands::", "::warning "),
        ("junit", "<?xml", "suspicious"),
        ("sarif", "{", '"suspicious/few-rows"'),
        ("markdown", "#", "suspicious"),
        ("html", "<!doctype html>", "suspicious"),
    ],
)
def test_every_form_of_the_report(bot: Any, form: str, begins: str, holds: str) -> None:
    bot.arrays["embed.weight"][7] += 1
    commit(bot)
    out = bot("check", "--base", "main", "--format", form).out
    assert out.lower().startswith(begins.lower())
    assert holds in out


SIZES = """
task = "bot"

[[test]]
name = "size"
kind = "resources"
metrics.parameters = { max = %d }
"""


def test_the_suites_of_the_base_count(bot: Any) -> None:
    bot("switch", "main")
    (bot.directory / "evals").mkdir()
    limits = bot.directory / "evals/sizes.toml"
    limits.write_text(SIZES % 5000)
    settings = bot.directory / "mgit.toml"
    settings.write_text(settings.read_text() + '[task.bot]\nmodel = "bot"\nadapter = "bert-classifier"\n')
    bot("commit", "-m", "sizes")
    bot("switch", "-c", "larger")
    bot.arrays["more"] = np.ones((40, 10), "<f4")
    limits.write_text(SIZES % 9999)
    commit(bot)
    found = report(bot, code=1)
    assert outcomes(found)["eval sizes"] == "fail"
    [section] = [item for item in found["sections"] if item["name"] == "eval sizes"]
    assert "max 5000" in section["evaluation"]["results"][0]["limit"]
    assert found["facts"]["gate"] == ["evals/sizes.toml"]
    assert "eval sizes" not in outcomes(report(bot, "--no-suites"))
    assert outcomes(report(bot, "--suite", "sizes", code=1))["eval sizes"] == "fail"
    assert outcomes(report(bot, "--suite", "nothing", code=9))["eval"] == "error"


def test_weights_that_retention_took_are_no_damage(bot: Any) -> None:
    tune(bot)
    commit(bot)
    bot.arrays["embed.weight"][9, 3] += 1
    commit(bot)
    bot("config", "set", "retention.work.last", "1")
    bot("prune")
    found = report(bot)
    assert outcomes(found)["objects"] == "pass"
    assert found["facts"]["commits"] == 2
