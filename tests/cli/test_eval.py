"""`mgit eval` and what belongs to it, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")

SUITE = """
task = "topic"
[data.topic]
path = "data/topic.test.jsonl"
[[test]]
name = "flips"
kind = "nfr"
data = "topic"
max = 0.0
"""


def _write_model(folder: Path, seed: int) -> None:
    from safetensors.numpy import load_file, save_file

    state = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(seed)
    changed = {
        name: (array + 0.05 * rng.standard_normal(array.shape)).astype(np.float32) for name, array in state.items()
    }
    save_file(changed, folder / "model.safetensors")


def test_suites_from_the_command_line(mgit: Any) -> None:
    import torch

    from modelgit.integrations.demo.small import SETTINGS, write_checkpoint, write_data

    torch.set_num_threads(1)
    root = mgit.directory
    model = root / "models/bot"
    model.mkdir(parents=True)
    write_checkpoint(model)
    (root / "data").mkdir()
    write_data(root / "data", train=8, test=60)
    (root / "evals").mkdir()
    (root / "evals/strict.toml").write_text(SUITE)
    (root / "mgit.toml").write_text(SETTINGS.partition("# The gate")[0])
    mgit("init")
    assert "recorded as the first baseline" in mgit("commit", "-m", "one").all
    _write_model(model, 1)

    found = mgit("eval", "--staged", "--show", "flips", code=1)
    assert "flips: negative flips" in found.out and "FAIL" in found.out and "↯" in found.out and " vs " not in found.out
    assert "Shadow: without --shadow this ends with 1." in mgit("eval", "--shadow").err
    assert mgit("eval", "--budget", "1ms", code=None).code in (1, 8)
    assert "no length of time" in mgit("eval", "--budget", "soon", code=2).err
    assert "--staged is about the work tree" in mgit("eval", "main", "--staged", code=2).err
    mgit("commit", "-m", "two", code=1)
    mgit("commit", "-m", "two", "--gate", "warn")

    (root / "evals/strict.toml").write_text(SUITE.replace("0.0", "1.0"))
    verified = mgit("eval", "main", "--full", "--verify-cache", "8")
    assert verified.code == 0 and "Computed again: 16 cached predictions, all as" in verified.err
    again = "hint: `mgit eval main --suite strict --baseline 'main~1' --budget 1s` goes on from what was computed"
    assert again in mgit("eval", "main", "--baseline", "main~1", "--budget", "1ms", code=8).err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelgit.cli.cmd_eval.signing_key_of", lambda *_: None)
        recorded = mgit("eval", "main", "--record", "--sign", "my key", "--budget", "1ms", code=8)
    assert "`mgit eval main --suite strict --record --sign 'my key' --budget 1s` goes on" in recorded.err
    short = SUITE.replace("0.0", "1.0").replace("[data", '[run]\nbudget = "1ms"\n[data', 1)
    (root / "evals/strict.toml").write_text(short)
    assert "--budget 1s` goes on" in mgit("eval", "main", code=8).err
    mgit("eval", "main", "--budget", "10m")
    (root / "evals/strict.toml").write_text(SUITE.replace("0.0", "1.0"))
    assert "FAIL" in mgit("eval", "main", "--suites-from", "main", code=1).out
    [record] = json.loads(mgit("eval", "run", "main", "--suite", "strict", "--json").out)["evaluations"]
    assert record["decision"] == "pass" and record["baselines"][0]["name"] == "parent"

    assert "is no test" in mgit("eval", "selftest", code=1).out
    (root / "evals/strict.toml").write_text(SUITE)
    assert "works" in mgit("eval", "selftest").out
    floors = json.loads(mgit("eval", "--noise-floor", "--baseline", "main~1", "--json").out)["floors"]
    assert [floor["versus"] for floor in floors] == ["computed again", "against main~1"]
    assert floors[0]["changed"] == 0 < floors[1]["changed"]
    assert "60 examples, 60 with a label" in mgit("eval", "lint").out
    (root / "evals/strict.toml").write_text(SUITE.replace("max =", "maxx ="))
    assert "did you mean `max`" in mgit("eval", "lint", code=1).out
