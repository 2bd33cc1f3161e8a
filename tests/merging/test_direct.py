"""Merging checkpoints that are in no repository: what comes out, what is refused, what is left behind."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from modelgit.environment import Environment
from modelgit.errors import CheckpointFormatError, MgitError, RepositoryError, UsageError
from modelgit.merging.direct import write as writing
from modelgit.repo.merges.merge_file import MergedFiles, merge_files

BF16 = ml_dtypes.bfloat16
ELEMENTWISE = ["average", "task-arithmetic", "ties", "dare", "wise"]
ANY_BASE = [*ELEMENTWISE, "breadcrumbs", "della", "karcher", "model-stock", "nuslerp", "sce", "slerp"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    base = {
        "emb.weight": rng.standard_normal((40, 16)),
        "layers.0.w": rng.standard_normal((16, 16)),
        "layers.0.b": rng.standard_normal(16),
        "scale": rng.standard_normal(1),
    }
    for number, name in enumerate(["base", "a", "b", "c"]):
        noise = np.random.default_rng(number)
        size = 0.0 if name == "base" else 1e-2
        write_model(tmp_path / name, {k: v + size * noise.standard_normal(v.shape) for k, v in base.items()})
    return tmp_path


def write_model(place: Path, tensors: dict[str, np.ndarray], *, dtype: object = np.float32) -> None:
    place.mkdir()
    stored = {name: np.ascontiguousarray(value.astype(dtype)) for name, value in tensors.items()}
    save_file({**stored, "ids": np.arange(4)}, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps({"model_type": "x", "dtype": "float32", "name": place.name}))
    (place / "tokenizer.json").write_text("{}")


def run(folder: Path, *models: str, out: str = "out", **options: object) -> MergedFiles:
    environment = replace(Environment.capture({"HOME": str(folder)}), cwd=folder)
    return merge_files(environment, models, folder / out, **options)  # type: ignore[arg-type]


def values(place: Path) -> dict[str, np.ndarray]:
    return load_file(place / "model.safetensors" if place.is_dir() else place)


def test_the_average_is_rounded_once(folder: Path) -> None:
    done = run(folder, "a", "b", strategy="average", options={"weights": "3,1"})
    a, b, out = values(folder / "a"), values(folder / "b"), values(folder / "out")
    for name in ("emb.weight", "layers.0.w", "layers.0.b", "scale"):
        exact = 0.75 * a[name].astype(np.float64) + 0.25 * b[name].astype(np.float64)
        np.testing.assert_array_equal(out[name], exact.astype(np.float32))
        assert out[name].shape == a[name].shape
    np.testing.assert_array_equal(out["ids"], np.arange(4))
    assert (done.tensors, done.copied) == (5, 1)


@pytest.mark.parametrize("strategy", ANY_BASE)
def test_a_model_merged_with_itself_is_itself(folder: Path, strategy: str) -> None:
    run(folder, "a", "a", base="base", strategy=strategy)
    a, out = values(folder / "a"), values(folder / "out")
    assert all(np.array_equal(out[name], a[name]) for name in a)


@pytest.mark.parametrize("strategy", ANY_BASE)
def test_windows_and_threads_mean_nothing(folder: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, "a", "b", base="base", strategy=strategy)
    monkeypatch.setattr(writing, "_STEP_BYTES", 64)
    run(folder, "a", "b", base="base", strategy=strategy, out="again")
    first, second = ((folder / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


def test_values_that_are_equal_on_both_sides_are_the_strategys(tmp_path: Path) -> None:
    # A value that both fine-tunes happened to round alike is no agreement: task arithmetic adds both changes.
    base = {"w": np.zeros(4)}
    for name, value in {"base": base, "a": {"w": np.array([1, 2, 0, 0])}, "b": {"w": np.array([1, 3, 0, 4])}}.items():
        write_model(tmp_path / name, value)
    run(tmp_path, "a", "b", base="base", strategy="task-arithmetic")
    np.testing.assert_array_equal(values(tmp_path / "out")["w"], np.float32([2, 5, 0, 4]))


def test_models_of_different_dtypes_and_another_one_to_store(folder: Path) -> None:
    wide = values(folder / "b")
    write_model(folder / "half", {n: v for n, v in wide.items() if n != "ids"}, dtype=BF16)
    run(folder, "a", "half", dtype="F16")
    a, half, out = values(folder / "a"), values(folder / "half"), values(folder / "out")
    exact = (a["layers.0.w"].astype(np.float64) + half["layers.0.w"].astype(np.float64)) / 2
    np.testing.assert_array_equal(out["layers.0.w"], exact.astype(np.float16))
    assert out["ids"].dtype == np.int64
    assert json.loads((folder / "out/config.json").read_text())["dtype"] == "float16"


def test_one_side_and_its_base(folder: Path) -> None:
    run(folder, "a", base="base", strategy="wise", options={"alpha": "0.25"})
    base, a, out = (values(folder / name)["layers.0.w"].astype(np.float64) for name in ("base", "a", "out"))
    np.testing.assert_allclose(out, base + 0.25 * (a - base), rtol=1e-7)


def test_rules_decide_by_name(folder: Path) -> None:
    run(folder, "a", "b", base="base", strategy="average", rules={"emb.*": "theirs", "layers.0.b": "base"})
    out = values(folder / "out")
    np.testing.assert_array_equal(out["emb.weight"], values(folder / "b")["emb.weight"])
    np.testing.assert_array_equal(out["layers.0.b"], values(folder / "base")["layers.0.b"])


def test_shards_have_an_index_and_the_same_values(folder: Path) -> None:
    run(folder, "a", "b")
    done = run(folder, "a", "b", out="cut", shard_bytes=1500)
    index = json.loads((folder / "cut/model.safetensors.index.json").read_text())
    assert done.files == len(set(index["weight_map"].values())) > 1
    whole = values(folder / "out")
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(folder / "cut" / file)[name], whole[name])
    run(folder, "cut", "cut", out="joined")
    assert all(np.array_equal(values(folder / "joined")[name], whole[name]) for name in whole)


def test_the_recipe_is_in_the_card_and_in_the_file(folder: Path) -> None:
    run(folder, "a", "b", base="base", strategy="ties", options={"density": "0.5"}, rules={"emb.*": "ours"})
    card = (folder / "out/README.md").read_text()
    assert card.startswith("---\ntags:\n- merge\n- modelgit\n---\n")
    assert "`ties consensus" in card or "`ties density=0.5" in card
    with safe_open(folder / "out/model.safetensors", "np") as file:
        found = file.metadata()
    assert found["format"] == "pt"
    recipe = json.loads(found["modelgit.merge"])
    assert (recipe["models"], recipe["base"], recipe["rules"]) == (["a", "b"], "base", {"emb.*": "ours"})


def test_files_beside_the_weights_are_merged_by_key(folder: Path) -> None:
    config = json.loads((folder / "base/config.json").read_text())
    for name, change in {"base": {"name": "x"}, "a": {"name": "x", "new": 1}, "b": {"name": "x", "other": 2}}.items():
        (folder / name / "config.json").write_text(json.dumps({**config, **change}))
    done = run(folder, "a", "b", base="base")
    merged = json.loads((folder / "out/config.json").read_text())
    assert (merged["new"], merged["other"], done.notes) == (1, 2, ())
    again = run(folder, "a", "b", out="plain")
    assert "other" not in json.loads((folder / "plain/config.json").read_text())
    assert any("config.json is that of a" in note for note in again.notes)


def test_fisher_diagonals_from_files(folder: Path) -> None:
    a, b = values(folder / "a"), values(folder / "b")
    floats = [name for name in a if name != "ids"]
    for name, weight in (("fa", 1.0), ("fb", 0.0)):
        save_file({n: np.full(a[n].shape, weight, np.float32) for n in floats}, folder / f"{name}.safetensors")
    save_file({n: np.abs(b[n]) for n in floats}, folder / "fb.safetensors")
    run(folder, "a", "b", strategy="fisher", fishers=["fa.safetensors", "fb.safetensors"])
    out = values(folder / "out")["layers.0.w"]
    assert not np.array_equal(out, ((a["layers.0.w"].astype(np.float64) + b["layers.0.w"]) / 2).astype(np.float32))
    low, high = np.minimum(a["layers.0.w"], b["layers.0.w"]), np.maximum(a["layers.0.w"], b["layers.0.w"])
    assert ((low <= out) & (out <= high)).all()


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        (("a", "b"), {"strategy": "ties"}, "needs the model that the others were made from"),
        (("a", "b"), {"strategy": "fisher"}, "needs Fisher estimates"),
        (("a", "b"), {"strategy": "average", "fishers": ["x", "y"]}, "belongs to a strategy that uses it"),
        (("a", "nothing"), {}, "there is nothing at nothing"),
        (("a", "short"), {}, "short has no tensor emb.weight, which a has"),
        (("short", "a"), {}, "short has no tensor emb.weight"),
        (("a", "grown"), {}, "emb.weight has different shapes: [40, 16] in a, [42, 16] in grown"),
        (("a", "counted"), {}, "ids holds I64 values, which differ"),
    ],
)
def test_refusals_name_what_is_wrong(
    folder: Path, models: tuple[str, ...], options: dict[str, object], words: str
) -> None:
    a = {name: value for name, value in values(folder / "a").items() if name != "ids"}
    write_model(folder / "short", {name: value for name, value in a.items() if name != "emb.weight"})
    write_model(folder / "grown", {**a, "emb.weight": np.zeros((42, 16))})
    write_model(folder / "counted", a)
    save_file({**a, "ids": np.arange(4) + 1}, folder / "counted/model.safetensors")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UsageError) as refused:
        run(folder, *models, **options)
    assert words in str(refused.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_what_is_there_stays_unless_forced(folder: Path) -> None:
    run(folder, "a", "b")
    kept = (folder / "out/model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        run(folder, "a", "c")
    assert (folder / "out/model.safetensors").read_bytes() == kept
    run(folder, "a", "c", overwrite=True)
    assert (folder / "out/model.safetensors").read_bytes() != kept
    assert not list(folder.glob("tmp-*"))
    (folder / "home").mkdir()
    (folder / "home/letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not a model"):
        run(folder, "a", "b", out="home", overwrite=True)
    assert (folder / "home/letter.txt").exists()


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter").mkdir()
    save_file({"x.lora_A.weight": np.zeros((2, 2), np.float32)}, folder / "adapter/adapter_model.safetensors")
    (folder / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointFormatError, match="is an adapter"):
        run(folder, "a", "adapter")


def test_a_file_that_changes_meanwhile_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.formats.detect import FileReader

    monkeypatch.setattr(FileReader, "is_unchanged", lambda _: False)
    with pytest.raises(RepositoryError, match="changed while it was being read"):
        run(folder, "a", "b")
    assert not (folder / "out").exists()
    assert not list(folder.glob("tmp-*"))


def test_links_of_a_hub_cache_are_followed_and_others_are_not(folder: Path) -> None:
    cache = folder / "models--org--a"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (folder / "a").rename(cache / "snapshots/1")
    (cache / "snapshots/1/model.safetensors").rename(cache / "blobs/x")
    (cache / "snapshots/1/model.safetensors").symlink_to("../../blobs/x")
    run(folder, "models--org--a/snapshots/1", "b")
    (folder / "c/model.safetensors").rename(folder / "elsewhere")
    (folder / "c/model.safetensors").symlink_to(folder / "elsewhere")
    with pytest.raises(MgitError, match="leads out"):
        run(folder, "c", "b", out="other")


def test_gram_matrices_come_from_files(folder: Path) -> None:
    rng = np.random.default_rng(1)
    matrices = {}
    for name in ("a", "b"):
        x = rng.standard_normal((50, 16))
        matrices[name] = np.float32(x.T @ x)
        save_file({"layers.0.w.gram": matrices[name][np.triu_indices(16)]}, folder / f"{name}.gram.safetensors")
    files = [str(folder / f"{name}.gram.safetensors") for name in ("a", "b")]
    done = run(folder, "a", "b", strategy="regmean", options={"alpha": "1"}, fishers=files)
    assert any(note.startswith("emb.weight: no Gram matrix on every side") for note in done.notes)
    a, b, out = values(folder / "a"), values(folder / "b"), values(folder / "out")
    one, two = (matrices[name].astype(np.float64) for name in ("a", "b"))
    left = a["layers.0.w"].astype(np.float64) @ one + b["layers.0.w"].astype(np.float64) @ two
    assert np.allclose(out["layers.0.w"], np.linalg.solve(one + two, left.T).T, rtol=1e-6)
    assert np.allclose(out["emb.weight"], (a["emb.weight"].astype(np.float64) + b["emb.weight"]) / 2, rtol=1e-7)
    save_file({"layers.0.w.gram": np.zeros(7, np.float32)}, folder / "a.gram.safetensors")
    with pytest.raises(UsageError, match="not the upper triangle"):
        run(folder, "a", "b", out="other", strategy="regmean", fishers=files)
