"""Pruned copies: what is zero in them, what is as it was, and in which files."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.repo import Repository
from modelgit.repo.contents import find_model
from modelgit.repo.gates.zeroed import zeroed_copy
from modelgit.repo.load import model_state


def words(data: np.ndarray) -> bytes:
    """Float32 values as bfloat16, cut off."""
    return (data.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def test_the_smallest_values_of_matrices_are_zero_and_nothing_else(repo: Repository, files) -> None:
    random = np.random.default_rng(0)
    wide = random.standard_normal((40, 25)).astype("<f4")
    wide[0, :3] = np.nan, np.inf, -0.0
    even = np.full((4, 5), -2.0, "<f4")
    values = {
        "wide": ("F32", wide.shape, wide.tobytes()),
        "even": ("F32", even.shape, even.tobytes()),
        "half": ("F16", (8, 8), random.standard_normal(64).astype("<f2").tobytes()),
        "brain": ("BF16", (16, 4), words(random.standard_normal(64))),
        "bias": ("F32", (9,), random.standard_normal(9).astype("<f4").tobytes()),
        "ids": ("I64", (3, 3), np.arange(9, dtype="<i8").tobytes()),
    }
    (repo.worktree / "bot.safetensors").write_bytes(files.safetensors(values, metadata={"format": "pt"}, padding=16))
    repo.track("bot.safetensors")
    repo.commit("base", gate="warn")
    manifest = repo.manifest_of(repo.head())
    with repo.session() as session:
        copy = zeroed_copy(repo, session, manifest, 0.3)
        state = model_state(repo, copy, find_model(copy, "bot.safetensors"), store=session)
        made = {name: np.frombuffer(state[name].raw(), np.uint8) for name in state}
        entry, before = copy.file("bot.safetensors"), manifest.file("bot.safetensors")
        assert repo.content_at(entry.digest, store=session).segments == repo.content_at(before.digest).segments
        session.abort()
    assert [item.path for item in copy.files] == [item.path for item in manifest.files]
    for name, (dtype, shape, raw) in values.items():
        old, width = np.frombuffer(raw, np.uint8), {"F32": 4, "I64": 8}.get(dtype, 2)
        if len(shape) == 1 or dtype == "I64":
            assert (made[name] == old).all(), name
            continue
        old, new = (data.view(f"<u{width}") for data in (old, made[name]))
        kept = int(0.7 * old.size)
        # Magnitudes order as their bits without the sign.
        magnitude = old & np.array((1 << (8 * width - 1)) - 1, old.dtype)
        chosen = np.sort(np.argsort(-magnitude.astype(np.int64), kind="stable")[:kept])
        assert (new[chosen] == old[chosen]).all(), name
        assert np.count_nonzero(new) == kept, name


def test_storages_of_pickles_and_tied_tensors(repo: Repository) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    torch.save({"a": weight, "tied": weight, "turned": weight.t(), "bias": torch.ones(5)}, repo.worktree / "bot.pt")
    repo.track("bot.pt")
    repo.commit("base")
    manifest = repo.manifest_of(repo.head())
    with repo.session() as session:
        copy = zeroed_copy(repo, session, manifest, 0.5)
        state = model_state(repo, copy, find_model(copy, "bot.pt"), store=session)
        a, turned, bias = (state[name].numpy() for name in ("a", "turned", "bias"))
        session.abort()
    assert np.count_nonzero(a) == 21 and (turned == a.T).all() and (bias == 1).all()
    assert (a[a != 0] == weight.numpy()[a != 0]).all()
