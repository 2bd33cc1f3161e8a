"""PEFT adapters: tracked, compared and recorded like models, with the base model that they belong to named."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch


def write_adapter(folder: Any, files: Any, seed: int, *, pickled: bool) -> None:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    arrays = {
        f"base_model.model.layers.{layer}.q_proj.lora_{side}.weight": random.standard_normal(shape).astype("<f4")
        for layer in range(2)
        for side, shape in (("A", (8, 64)), ("B", (64, 8)))
    }
    if pickled:
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
        (folder / "adapter_model.bin").write_bytes(buffer.getvalue())
    else:
        (folder / "adapter_model.safetensors").write_bytes(files.of_arrays(arrays))
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/base-7b"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("an adapter\n")


@pytest.mark.parametrize("pickled", [False, True])
def test_an_adapter_and_its_base(mgit: Any, files: Any, pickled: bool) -> None:
    folder = mgit.directory / "lora"
    write_adapter(folder, files, 1, pickled=pickled)
    mgit("init")
    said = mgit("track", "lora").err
    assert said.startswith("Tracking lora: PEFT adapter of org/base-7b, 4 tensors, ")
    assert json.loads(mgit("track", "lora", "--json").out)["added"][0]["base_model"] == "org/base-7b"
    mgit("commit", "-m", "one")
    before = files.digests(mgit.directory)
    write_adapter(folder, files, 2, pickled=pickled)
    assert "lora" in mgit("status").out
    assert "4 of 4 tensors" in mgit("status").out
    out = mgit("diff").out
    assert out.splitlines()[0].startswith("lora  ")
    assert out.splitlines()[1] == "  adapter of org/base-7b"
    mgit("commit", "-m", "two")
    assert json.loads(mgit("diff", "HEAD~1", "HEAD", "--json").out)["bases"] == {"lora": "org/base-7b"}
    mgit("switch", "--detach", "HEAD~1")
    assert files.digests(mgit.directory) == before


def test_an_adapter_that_was_not_merged_is_mentioned(mgit: Any, files: Any) -> None:
    arrays = {f"layers.{layer}.q_proj.weight": np.ones((64, 64), "<f4") for layer in range(2)}
    (mgit.directory / "model.safetensors").write_bytes(files.of_arrays(arrays))
    write_adapter(mgit.directory / "lora", files, 1, pickled=False)
    mgit("init")
    mgit("track", "model.safetensors")
    mgit("commit", "-m", "base")
    noise = np.random.default_rng(3)
    changed = {name: (a + noise.standard_normal(a.shape)).astype("<f4") for name, a in arrays.items()}
    (mgit.directory / "model.safetensors").write_bytes(files.of_arrays(changed))
    assert "No tensor is stored by the adapter's factors" in mgit("commit", "-m", "two", "--adapter", "lora").err
    assert "Adapter: b3:" in mgit("show").out, "the commit says which one was declared"


@pytest.mark.parametrize(
    "config", ["{}", "not json", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 7}']
)
def test_a_configuration_that_names_no_base(mgit: Any, files: Any, config: str) -> None:
    folder = mgit.directory / "lora"
    write_adapter(folder, files, 1, pickled=False)
    (folder / "adapter_config.json").write_text(config)
    mgit("init")
    assert "Tracking lora: PEFT adapter, 4 tensors" in mgit("track", "lora").err


def test_a_hostile_name_of_a_base_is_shown_harmlessly(mgit: Any, files: Any) -> None:
    folder = mgit.directory / "lora"
    write_adapter(folder, files, 1, pickled=False)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "\x1b[2J" + "x" * 500}))
    mgit("init")
    said = mgit("track", "lora").err
    assert "\x1b[2J" not in said
    assert "x" * 100 not in said
