"""Images: pixels as the processors of transformers make them, arrays without Pillow, one batch at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from modelgit.config.schema import TaskSettings
from modelgit.errors import MissingExtraError, UsageError
from modelgit.models.data import read_examples
from modelgit.models.images import ImageSet, Preparation, image_set

pytest.importorskip("torch")

TASK = TaskSettings(model="m", kind="image-classification")


def images(folder: Path, values: list[object], files: dict[str, bytes] | None = None) -> ImageSet:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps({"image": value, "label": at}) + "\n" for at, value in enumerate(values)))
    return image_set(*read_examples(path, TASK, shown="d.jsonl"), files or {})


def picture(folder: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image.fromarray(array).save(folder / f"{seed}.png")
    return array


@pytest.mark.parametrize(
    ("processor", "options"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 12}}),
        ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}, "do_normalize": False, "resample": 3}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 10}, "crop_size": {"height": 16, "width": 13}}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 20}, "crop_pct": 0.8}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
        ("MobileNetV2ImageProcessorPil", {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}),
    ],
)
@pytest.mark.parametrize("size", [(20, 31), (33, 18)])
def test_pixels_are_those_of_transformers(tmp_path: Path, processor: str, options: dict, size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, processor, None)
    if made is None:
        pytest.skip(f"this version of transformers has no {processor}")
    array = picture(tmp_path, *size)
    made = made(**options)
    made.save_pretrained(tmp_path)
    files = {"preprocessor_config.json": (tmp_path / "preprocessor_config.json").read_bytes()}
    (batch,) = images(tmp_path, ["0.png"], files).batches(4)
    expected = made(images=[array], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(batch.inputs["pixel_values"].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_arrays_need_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path, 4, 4)
    monkeypatch.setitem(sys.modules, "PIL", None)
    draw = np.random.default_rng(0)
    small, floats = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8), draw.standard_normal((3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", small)
    np.save(tmp_path / "b.npy", floats)
    (batch,) = images(tmp_path, ["a.npy", "b.npy", small.tolist(), floats.tolist()]).batches(4)
    first, second, third, fourth = batch.inputs["pixel_values"].numpy()
    np.testing.assert_allclose(first, small.transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(second, floats)
    np.testing.assert_array_equal(third, first)
    np.testing.assert_array_equal(fourth, floats)
    assert batch.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(MissingExtraError, match=r"d\.jsonl:1") as caught:
        list(images(tmp_path, ["0.png"]).batches(1))
    assert "modelgit[images]" in caught.value.hint


def test_images_of_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    array = picture(tmp_path, 4, 6)
    value = {"bytes": (tmp_path / "0.png").read_bytes(), "path": "0.png"}
    parquet.write_table(pyarrow.table({"image": [value], "label": [2]}), tmp_path / "d.parquet")
    examples, fingerprint = read_examples(tmp_path / "d.parquet", TASK, shown="d.parquet")
    (batch,) = image_set(examples, fingerprint, {}).batches(1)
    np.testing.assert_allclose(batch.inputs["pixel_values"][0], array.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_the_fingerprint_covers_the_images(tmp_path: Path) -> None:
    picture(tmp_path, 4, 4)
    before = images(tmp_path, ["0.png"])
    assert images(tmp_path, ["0.png"]).fingerprint == before.fingerprint
    np.save(tmp_path / "0.png.npy", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "0.png.npy").replace(tmp_path / "0.png")
    assert images(tmp_path, ["0.png"]).fingerprint != before.fingerprint
    with pytest.raises(UsageError, match=r"d\.jsonl:1: the image changed"):
        list(before.batches(1))


def test_sets_of_sizes_and_selections(tmp_path: Path) -> None:
    for seed, size in enumerate((4, 4, 5)):
        picture(tmp_path, size, size, seed)
    data = images(tmp_path, ["0.png", "1.png", "2.png"])
    with pytest.raises(UsageError, match="images `1` and `3` differ in size") as caught:
        list(data.batches(3))
    assert "preprocessor_config.json" in caught.value.hint
    (batch,) = data.select([1, 0]).batches(2)
    assert batch.labels.tolist() == [1, 0]
    assert sorted(at for batch in data.batches(1, seed=1) for at in batch.indices) == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an image", "cannot be read"),
        (b"\x93NUMPY\x01", r"not a \.npy file"),
    ],
)
def test_damaged_images_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UsageError, match=rf"d\.jsonl:1: .*{message}"):
        list(images(tmp_path, ["x.png"]).batches(1))


def test_arrays_of_other_channels_and_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(UsageError, match=r"shape \[4, 4, 2\]; bytes of 3 channels"):
        list(images(tmp_path, ["a.npy"]).batches(1))
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UsageError, match=r"not a \.npy file"):
        list(images(tmp_path, ["a.npy"]).batches(1))


def test_a_preparation_that_is_not_known_is_refused() -> None:
    for content in (b'{"do_pad": true}', b'{"size": "big"}', b"{"):
        with pytest.raises(UsageError, match=r"preprocessor_config\.json"):
            Preparation.read({"preprocessor_config.json": content})
