"""`commit --adapter`: merged adapters by their own factors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.errors import UsageError
from modelgit.repo import Repository
from modelgit.repo.history.encodings import encodings
from modelgit.repo.tracking.switch import restore
from modelgit.repo.upkeep.usage import usage

NAMES = ("layer.0.q", "layer.0.v", "layer.1.q")


@pytest.fixture
def merged(repo: Repository, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    """A repository with a base, whose work tree has the merged model, and the adapter's directory."""
    rng = np.random.default_rng(0)
    model = {f"{name}.weight": (rng.standard_normal((256, 300)) * 0.05).astype(np.float32) for name in NAMES}
    model["norm.weight"] = np.ones(256, np.float32)
    save_file(model, repo.worktree / "model.safetensors")
    repo.track("model.safetensors")
    repo.commit("base")
    adapter = tmp_path_factory.mktemp("adapter")
    factors = {}
    for name in NAMES[:2]:
        down = (rng.standard_normal((4, 300)) * 0.02).astype(np.float32)
        up = (rng.standard_normal((256, 4)) * 0.03).astype(np.float32)
        model[f"{name}.weight"] = model[f"{name}.weight"] + 2 * (up @ down)
        factors[f"base_model.model.{name}.lora_A.weight"] = down
        factors[f"base_model.model.{name}.lora_B.weight"] = up
    factors["base_model.model.gone.lora_A.weight"] = down
    factors["base_model.model.gone.lora_B.weight"] = up
    save_file(factors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    save_file(model, repo.worktree / "model.safetensors")
    return repo, adapter


def test_a_declared_adapter_is_what_is_stored(merged: tuple[Repository, Path]) -> None:
    repo, adapter = merged
    path = repo.worktree / "model.safetensors"
    before = path.read_bytes()
    result = repo.commit("merged", adapters=[adapter])
    assert result.encodings == {"lowrank": 2}
    assert result.unmatched == ("gone",)
    assert repr(result) == (
        f"CommitResult({result.id.short} on main, 2 tensors changed, {result.bytes_added} bytes added)"
    )
    assert result.bytes_added < 2 * 256 * 300 * 4 / 8
    assert result.commit.trailers["adapter"].startswith("b3:")
    assert result.commit.trailers["adapter"].endswith("scaling 2")
    stored = {item.name: item for item in encodings(repo, result.id)}
    assert [stored[f"{name}.weight"].codec for name in NAMES[:2]] == ["lowrank", "lowrank"]
    assert "of low rank" in stored["layer.0.q.weight"].reason
    coded = [row.tensor.codec for row in usage(repo, by="tensor").rows if row.tensor is not None]
    assert coded.count("lowrank") == 2
    path.unlink()
    restore(repo, ["model.safetensors"])
    assert path.read_bytes() == before


def test_without_an_adapter_nothing_is_recorded(merged: tuple[Repository, Path], tmp_path: Path) -> None:
    repo, _ = merged
    head = repo.head()
    with pytest.raises(UsageError, match="not a PEFT adapter"):
        repo.commit("merged", adapters=[tmp_path / "nowhere"])
    assert repo.head() == head
    assert "adapter" not in repo.commit("merged").commit.trailers
