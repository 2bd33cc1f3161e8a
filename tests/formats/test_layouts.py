"""Tracked paths: what is recognised, counted, left out, and refused."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelgit.config.schema import TrackSettings
from modelgit.errors import CheckpointFormatError, UsageError
from modelgit.formats.layouts import describe
from modelgit.formats.listing import list_files, matching_pattern

IGNORE = TrackSettings().ignore


def weights(path: Path, **tensors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def sharded(root: Path) -> Path:
    """A checkpoint of two shards in models/bot."""
    bot = root / "models" / "bot"
    weights(bot / "model-00001-of-00002.safetensors", a=np.zeros((2, 3), np.float16), b=np.zeros(5, np.float16))
    weights(bot / "model-00002-of-00002.safetensors", c=np.zeros((), np.float32))
    (bot / "config.json").write_text("{}")
    index(bot, a="model-00001-of-00002", b="model-00001-of-00002", c="model-00002-of-00002")
    return bot


def index(directory: Path, **shards: str) -> None:
    text = json.dumps(
        {"metadata": {"total_size": 26}, "weight_map": {k: f"{v}.safetensors" for k, v in shards.items()}}
    )
    (directory / "model.safetensors.index.json").write_text(text)


def test_a_hugging_face_checkpoint(tmp_path: Path) -> None:
    bot = sharded(tmp_path)
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin"):
        (bot / name).write_bytes(b"x")
    (bot / "checkpoint-500").mkdir()
    (bot / "checkpoint-500" / "model.safetensors").write_bytes(b"broken, and not looked at")
    model = describe(tmp_path, "models/bot", ignore=IGNORE)
    assert (model.layout, model.title) == ("hf-checkpoint", "Hugging Face checkpoint")
    assert model.files == (
        "models/bot/config.json",
        "models/bot/model-00001-of-00002.safetensors",
        "models/bot/model-00002-of-00002.safetensors",
        "models/bot/model.safetensors.index.json",
    )
    assert model.weights == model.files[1:3]
    assert (model.tensors, model.parameters, model.dtypes, model.shards) == (3, 12, "F16, F32", 2)
    assert model.size_bytes == sum((tmp_path / path).stat().st_size for path in model.files)
    assert model.weight_bytes == sum((tmp_path / path).stat().st_size for path in model.weights)
    assert model.ignored == tuple(
        f"models/bot/{name}" for name in ("checkpoint-500/", "optimizer.pt", "rng_state_0.pth", "training_args.bin")
    )
    assert model.patterns == ("checkpoint-*/", "optimizer.pt", "rng_state*.pth", "training_args.bin")


def test_the_repository_root_can_be_the_model(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors", w=np.zeros(3, np.float32))
    (tmp_path / ".mgit").mkdir()
    (tmp_path / ".mgit" / "root").write_bytes(b"x")
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    (tmp_path / "sub" / ".git" / "HEAD").write_bytes(b"x")
    model = describe(tmp_path, ".")
    assert (model.layout, model.files) == ("hf-checkpoint", ("model.safetensors",))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    bot = sharded(tmp_path)
    (bot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointFormatError) as caught:
        describe(tmp_path, "models/bot")
    assert caught.value.message == (
        "models/bot/model.safetensors.index.json names the shard 'model-00002-of-00002.safetensors', which is missing"
    )


def test_a_shard_that_is_ignored_or_linked_says_so(tmp_path: Path) -> None:
    bot = sharded(tmp_path)
    with pytest.raises(CheckpointFormatError, match="left out by an ignore pattern"):
        describe(tmp_path, "models/bot", ignore=["*00002-of*"])
    os.replace(bot / "model-00002-of-00002.safetensors", tmp_path / "elsewhere")
    (bot / "model-00002-of-00002.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointFormatError, match="a symbolic link, which is not followed"):
        describe(tmp_path, "models/bot")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/../../x"])
def test_an_index_cannot_point_outside(tmp_path: Path, name: str) -> None:
    bot = sharded(tmp_path)
    weights(tmp_path / "models" / "outside.safetensors", a=np.zeros(1))
    index(bot, a=name)
    with pytest.raises(CheckpointFormatError, match="which is missing"):
        describe(tmp_path, "models/bot")


def test_an_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    bot = sharded(tmp_path)
    index(bot, a="model-00001-of-00002", c="model-00001-of-00002")
    with pytest.raises(CheckpointFormatError, match="holds the tensor 'c', and its header does not"):
        describe(tmp_path, "models/bot")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": ', "[" * 100_000])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    bot = sharded(tmp_path)
    (bot / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointFormatError, match=r"model.safetensors.index.json is not an index of shards"):
        describe(tmp_path, "models/bot")


def test_a_pointer_among_the_shards(tmp_path: Path) -> None:
    bot = sharded(tmp_path)
    (bot / "model-00001-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointFormatError) as caught:
        describe(tmp_path, "models/bot")
    assert caught.value.message.startswith("models/bot/model-00001-of-00002.safetensors is a Git LFS pointer (")


def test_second_copies_stay_apart(tmp_path: Path) -> None:
    weights(tmp_path / "m" / "model.safetensors", w=np.zeros(3, np.float32))
    weights(tmp_path / "m" / "model.fp16.safetensors", w=np.zeros(3, np.float16))
    weights(tmp_path / "m" / "consolidated.safetensors", other_name=np.zeros(3, np.float32))
    weights(tmp_path / "m" / "1_Dense" / "model.safetensors", linear=np.zeros(2, np.float32))
    (tmp_path / "m" / "config.json").write_text("{}")
    model = describe(tmp_path, "m")
    assert model.weights == ("m/1_Dense/model.safetensors", "m/model.safetensors")
    assert model.apart == ("m/consolidated.safetensors", "m/model.fp16.safetensors")
    assert model.parameters == 5


def test_an_adapter(tmp_path: Path) -> None:
    weights(tmp_path / "a" / "adapter_model.safetensors", **{"q.lora_A.weight": np.zeros((2, 4), np.float32)})
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    model = describe(tmp_path, "a")
    assert (model.layout, model.title, model.parameters) == ("peft-adapter", "PEFT adapter", 8)


def test_compressed_checkpoints_are_reported_as_opaque(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with zipfile.ZipFile(tmp_path / "m" / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/data/0", bytes(100))
    (tmp_path / "m" / "config.json").write_text("{}")
    model = describe(tmp_path, "m")
    assert (model.layout, model.opaque, model.tensors, model.dtypes) == (
        "hf-checkpoint",
        ("m/pytorch_model.bin",),
        0,
        "",
    )
    assert model.notes == (("m/pytorch_model.bin", "its storages are compressed"),)


def test_plain_directories_and_files(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "config.json").write_text("{}")
    (tmp_path / "data" / "deep" / "train.jsonl").write_text("{}")
    weights(tmp_path / "one.safetensors", w=np.zeros(3, np.int64))
    assert describe(tmp_path, "data").layout == "directory"
    assert describe(tmp_path, "data").files == ("data/config.json", "data/deep/train.jsonl")
    assert describe(tmp_path, "data/config.json").layout == "file"
    single = describe(tmp_path, "one.safetensors")
    assert (single.layout, single.weights, single.dtypes) == ("safetensors", ("one.safetensors",), "I64")


def test_links_and_special_files_are_reported_and_never_recorded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "file").write_text("x")
    (directory / "link").symlink_to(tmp_path / "secret")
    (directory / "loop").symlink_to(directory)
    (directory / "dangling").symlink_to("nowhere")
    os.mkfifo(directory / "fifo")
    model = describe(tmp_path, "d")
    assert model.files == ("d/file",)
    assert model.links == ("d/dangling", "d/link", "d/loop")
    assert model.special == ("d/fifo",)


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    weights(tmp_path / "real" / "m" / "model.safetensors", w=np.zeros(3))
    (tmp_path / "models").symlink_to("real")
    with pytest.raises(CheckpointFormatError, match=r"^models is a symbolic link"):
        describe(tmp_path, "models/m")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to("../real/m/model.safetensors")
    with pytest.raises(CheckpointFormatError, match="snapshot holds only symbolic links"):
        describe(tmp_path, "snapshot")


@pytest.mark.parametrize("path", ["nothing", "nothing/deeper", "", "..", "../x", "/etc", ".mgit", "a/../b"])
def test_paths_that_cannot_be_tracked(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError):
        describe(tmp_path, path)


@pytest.mark.parametrize(
    "names", [["aux.json"], ["Config.json", "config.json"], [b"\xff.json"], ["a:b"], ["new\nline"]]
)
def test_names_that_not_every_system_can_hold(tmp_path: Path, names: list[str | bytes]) -> None:
    (tmp_path / "d").mkdir()
    for name in names:
        text = os.fsdecode(name)
        (tmp_path / "d" / text).write_text("x")
    if len(os.listdir(tmp_path / "d")) < len(names):
        pytest.skip("this file system cannot hold them either")
    with pytest.raises(CheckpointFormatError) as caught:
        list_files(tmp_path, "d")
    assert caught.value.message.isprintable()
    assert caught.value.hint is not None and "rename" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "directory", "pattern", "matches"),
    [
        ("m/checkpoint-5", True, "checkpoint-*/", True),
        ("m/checkpoint-5", False, "checkpoint-*/", False),
        ("m/optimizer.pt", False, "optimizer.pt", True),
        ("m/optimizer.pt", False, "m/*.pt", True),
        ("m/runs", True, "runs", True),
        ("m/Optimizer.pt", False, "optimizer.pt", False),
        ("m/my-optimizer.pt", False, "optimizer.pt", False),
    ],
)
def test_patterns(path: str, directory: bool, pattern: str, matches: bool) -> None:
    assert (matching_pattern(path, [pattern], directory=directory) == pattern) is matches


def pickled(path: Path, **tensors: tuple[int, ...]) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in tensors.items()}, path)


def bin_index(directory: Path, **shards: str) -> None:
    text = json.dumps({"weight_map": {name: f"pytorch_model-{part}-of-2.bin" for name, part in shards.items()}})
    (directory / "pytorch_model.bin.index.json").write_text(text)


def test_pickled_shards_are_a_model(tmp_path: Path) -> None:
    pickled(tmp_path / "m" / "pytorch_model-1-of-2.bin", a=(2, 3), b=(4,))
    pickled(tmp_path / "m" / "pytorch_model-2-of-2.bin", c=(5,))
    pickled(tmp_path / "m" / "ema.pt", a=(2, 3), other=(9,))
    np.savez(tmp_path / "m" / "data.npz", x=np.zeros(100))
    bin_index(tmp_path / "m", a="1", b="1", c="2")
    model = describe(tmp_path, "m")
    assert (model.layout, model.tensors, model.parameters, model.dtypes) == ("hf-checkpoint", 3, 15, "BF16")
    assert model.weights == ("m/pytorch_model-1-of-2.bin", "m/pytorch_model-2-of-2.bin")
    assert (model.apart, model.opaque, model.notes) == (("m/data.npz", "m/ema.pt"), (), ())
    bin_index(tmp_path / "m", a="1", b="2", c="2")
    with pytest.raises(CheckpointFormatError, match="holds the tensor 'b', and its header does not"):
        describe(tmp_path, "m")
    (tmp_path / "m" / "pytorch_model-2-of-2.bin").unlink()
    with pytest.raises(CheckpointFormatError, match="which is missing"):
        describe(tmp_path, "m")


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    pickled(tmp_path / "m" / "pytorch_model.bin", w=(3,))
    weights(tmp_path / "m" / "model.safetensors", w=np.zeros(3, np.float32))
    (tmp_path / "m" / "config.json").write_text("{}")
    model = describe(tmp_path, "m")
    assert (model.weights, model.apart) == (("m/model.safetensors",), ("m/pytorch_model.bin",))


@pytest.mark.parametrize(("name", "title"), [("m.pt", "PyTorch checkpoint"), ("m.npz", "numpy arrays")])
def test_single_files_are_called_what_they_are(tmp_path: Path, name: str, title: str) -> None:
    if name.endswith(".pt"):
        pickled(tmp_path / name, a=(2,), b=(3,))
    else:
        np.savez(tmp_path / name, a=np.zeros(2), b=np.zeros(3))
    model = describe(tmp_path, name)
    assert (model.title, model.weights, model.tensors, model.parameters) == (title, (name,), 2, 5)


def test_tied_names_are_one_tensor_and_slices_are_several(tmp_path: Path) -> None:
    import torch

    whole = torch.zeros(4, 3)
    torch.save({"w": whole, "tied": whole}, tmp_path / "tied.pt")
    torch.save({"a": whole[:2], "b": whole[2:]}, tmp_path / "slices.pt")
    assert (describe(tmp_path, "tied.pt").tensors, describe(tmp_path, "tied.pt").parameters) == (1, 12)
    assert (describe(tmp_path, "slices.pt").tensors, describe(tmp_path, "slices.pt").parameters) == (2, 12)


def test_an_adapter_of_pickles(tmp_path: Path) -> None:
    pickled(tmp_path / "a" / "adapter_model.bin", **{"q.lora_A.weight": (2, 4)})
    pickled(tmp_path / "a" / "rng.pt", state=(9,))
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    model = describe(tmp_path, "a")
    assert (model.layout, model.weights, model.apart) == ("peft-adapter", ("a/adapter_model.bin",), ("a/rng.pt",))


def test_opaque_patterns(tmp_path: Path) -> None:
    pickled(tmp_path / "m" / "a.pt", w=(3,))
    (tmp_path / "m" / "broken.pt").write_bytes(b"PK\x03\x04 whatever")
    model = describe(tmp_path, "m", opaque=["broken.pt"])
    assert (model.weights, model.opaque) == (("m/a.pt",), ("m/broken.pt",))
