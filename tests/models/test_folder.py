"""The tensors of a model directory without a repository around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import UsageError
from modelgit.models.folder import FolderState, small_files

torch = pytest.importorskip("torch")


def test_tensors_of_shards_in_types_that_numpy_has_and_lacks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "models" / "bot"
    folder.mkdir(parents=True)
    values = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "c": torch.tensor([1, 2, 3]),
        "d": torch.tensor(0.25, dtype=torch.float16),
    }
    save_file({name: values[name] for name in "ab"}, folder / "one.safetensors")
    save_file({name: values[name] for name in "cd"}, folder / "two.safetensors")
    (folder / "config.json").write_text("{}")
    state = FolderState(tmp_path, "models/bot")
    assert sorted(state) == ["a", "b", "c", "d"]
    for name, value in values.items():
        found = state[name]
        assert found.shape == tuple(value.shape)
        assert np.array_equal(found, value.float().numpy())
    assert state["c"].dtype == np.int64
    assert state["d"].dtype == np.float16
    assert small_files(tmp_path, "models/bot", weights=state.weights) == {"config.json": b"{}"}


def test_tied_and_transposed_tensors_of_a_torch_file(tmp_path: Path) -> None:
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    torch.save({"rows": whole, "tied": whole, "turned": whole.t(), "part": whole[1:]}, tmp_path / "model.pt")
    state = FolderState(tmp_path, "model.pt")
    assert set(state) >= {"rows", "tied", "turned", "part"}
    assert np.array_equal(state["tied"], whole.numpy())
    assert np.array_equal(state["turned"], whole.numpy().T)
    assert np.array_equal(state["part"], whole.numpy()[1:])
    assert small_files(tmp_path, "model.pt") == {}


def test_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        FolderState(tmp_path, "models/bot")
