"""PEFT directories: scalings, orientations, names, and what is not a merged product."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.patching.adapters import Adapter, AdapterSet


def write(directory: Path, tensors: dict[str, np.ndarray], *, how: str = "safetensors", **config) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q"], **config}))
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    if how == "safetensors":
        save_file(named, directory / "adapter_model.safetensors")
    else:
        torch.save({name: torch.from_numpy(value) for name, value in named.items()}, directory / "adapter_model.bin")
    return directory


def factors(seed: int, rank: int = 4, inputs: int = 6, outputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rank, inputs)).astype(np.float32),
        rng.standard_normal((outputs, rank)).astype(np.float32),
    )


@pytest.mark.parametrize("how", ["safetensors", "bin"])
@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8.0), (True, 16.0)])
def test_scaling_and_orientation(tmp_path: Path, how: str, rslora: bool, scaling: float) -> None:
    down, up = factors(0)
    write(
        tmp_path, {"a.q.lora_A.weight": down, "a.q.lora_B.weight": up}, how=how, r=4, lora_alpha=32, use_rslora=rslora
    )
    with Adapter(tmp_path, shown="adapter") as adapter:
        assert list(adapter.modules) == ["a.q"]
        assert adapter.scaling("a.q") == scaling
        product = adapter.product("a.q")
        assert product is not None
        expected = scaling * up.astype(np.float64) @ down
        assert np.allclose(product.left @ product.right.T, expected, rtol=1e-14)
    write(tmp_path, {"a.q.lora_A.weight": down, "a.q.lora_B.weight": up}, r=4, lora_alpha=32, fan_in_fan_out=True)
    with Adapter(tmp_path, shown="adapter") as adapter:
        product = adapter.product("a.q")
        assert product is not None
        assert np.allclose(product.left @ product.right.T, (8 * up.astype(np.float64) @ down).T, rtol=1e-14)


def test_patterns_convolutions_embeddings_and_names_of_adapters(tmp_path: Path) -> None:
    down, up = factors(1)
    small, large = factors(2, rank=2)
    kernel = np.random.default_rng(3).standard_normal((4, 3, 3, 2)).astype(np.float32)
    write(
        tmp_path,
        {
            "a.q.lora_A.default.weight": down,
            "a.q.lora_B.default.weight": up,
            "b.v.lora_A.weight": small,
            "b.v.lora_B.weight": large,
            "conv.lora_A.weight": kernel,
            "conv.lora_B.weight": up.reshape(5, 4, 1, 1),
            "embed.lora_embedding_A": down,
            "embed.lora_embedding_B": up,
            "half.lora_A.weight": down,
        },
        lora_alpha=4,
        alpha_pattern={"v": 6},
        rank_pattern={"v": 2},
    )
    with Adapter(tmp_path, shown="adapter") as adapter:
        assert set(adapter.modules) == {"a.q", "b.v", "conv", "embed"}
        assert (adapter.scaling("a.q"), adapter.scaling("b.v")) == (1.0, 3.0)
        conv, embedding = adapter.product("conv"), adapter.product("embed")
        assert conv is not None
        assert embedding is not None
        expected = torch.einsum("or,rihw->oihw", torch.from_numpy(up), torch.from_numpy(kernel)).numpy()
        assert np.allclose((conv.left @ conv.right.T).reshape(5, 3, 3, 2), expected, atol=1e-5)
        assert np.allclose(embedding.left @ embedding.right.T, (up.astype(np.float64) @ down).T)


def test_tensors_find_their_modules(tmp_path: Path) -> None:
    down, up = factors(4)
    tensors = {}
    for name in ("bert.layer.0.q", "bert.layer.1.q", "head.out"):
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    one, other = write(tmp_path / "1", tensors, r=4, lora_alpha=4), write(tmp_path / "2", tensors, r=4, lora_alpha=8)
    with AdapterSet([(one, "1"), (other, "2")]) as adapters:
        for name in ("bert.layer.0.q.weight", "model.bert.layer.0.q.weight", "layer.0.q.weight"):
            product = adapters.product(name)
            assert product is not None
            assert np.allclose(product.left @ product.right.T, 3 * up.astype(np.float64) @ down)
        for name in ("q.weight", "bert.layer.2.q.weight", "bert.layer.0.q.bias", "weight", "other.weight"):
            assert adapters.product(name) is None
        assert adapters.unmatched(["bert.layer.0.q.weight", "layer.1.q.weight"]) == ("head.out", "head.out")
        trailer = adapters.trailer()
    assert trailer.count("b3:") == 2
    assert trailer.endswith("scaling 2")


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", '{"r": "x"}', '{"lora_alpha": null}', '{"peft_type": "IA3"}', '{"use_dora": true}', "\xff{}"],
)
def test_other_configurations_are_refused(tmp_path: Path, config: str) -> None:
    down, up = factors(5)
    write(tmp_path, {"q.lora_A.weight": down, "q.lora_B.weight": up})
    (tmp_path / "adapter_config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(CheckpointFormatError, match=r"adapter/adapter_config\.json"):
        Adapter(tmp_path, shown="adapter")


def test_directories_that_are_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has no adapter_config"):
        Adapter(tmp_path, shown="adapter")
    write(tmp_path, {"q.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(CheckpointFormatError, match="has no tensors"):
        Adapter(tmp_path, shown="adapter")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match="it has no adapter_model"):
        Adapter(tmp_path, shown="adapter")


def test_factors_that_do_not_fit_together_are_no_product(tmp_path: Path) -> None:
    down, _ = factors(6)
    write(tmp_path, {"q.lora_A.weight": down, "q.lora_B.weight": np.zeros((5, 3), np.float32)})
    with Adapter(tmp_path, shown="adapter") as adapter:
        assert adapter.product("q") is None
