"""Small repositories and checkpoint files, made without the code under test wherever that is possible."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest

import modelgit
from modelgit.environment import Environment
from modelgit.repo import Repository

# As the command line does: torch threads that wait must not eat the processors of a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# One of several processes that run tests leaves the other processors to them (and so do the programs that it starts).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every run, and no deadline: a busy machine is not a failing test.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

Bytes = tuple[str, tuple[int, ...], bytes]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, those of minutes come first: none is left alone with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("real", "big")))


def safetensors_bytes(
    tensors: Mapping[str, Bytes], *, metadata: Mapping[str, str] | None = None, padding: int = 0
) -> bytes:
    """A safetensors file of (dtype, shape, raw bytes) by name, in the order given."""
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape, raw) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8 + padding)
    return struct.pack("<Q", len(header)) + header + b"".join(raw for _, _, raw in tensors.values())


class Files(NamedTuple):
    """What the tests need to make and look at files."""

    safetensors: Callable[..., bytes]

    def floats(self, seed: int = 0, *, layers: int = 3, rows: int = 24, columns: int = 32) -> dict[str, np.ndarray]:
        """Weights that look like weights: F32 arrays by name."""
        random = np.random.default_rng(seed)
        return {
            f"layers.{number}.weight": (0.02 * random.standard_normal((rows, columns))).astype("<f4")
            for number in range(layers)
        }

    def of_arrays(self, arrays: Mapping[str, np.ndarray], **options: object) -> bytes:
        """A safetensors file of F32 arrays."""
        tensors = {name: ("F32", array.shape, array.astype("<f4").tobytes()) for name, array in arrays.items()}
        return self.safetensors(tensors, **options)

    def sharded(self, folder: Path, tensors: Mapping[str, Bytes], shards: int) -> None:
        """A Hugging Face directory with `shards` weight files and their index; other weights there are removed."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
            old.unlink()
        names = list(tensors)
        weight_map = {}
        for number in range(shards):
            part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
            name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
            (folder / name).write_bytes(
                self.safetensors({key: tensors[key] for key in part}, metadata={"format": "pt"})
            )
            weight_map.update(dict.fromkeys(part, name))
        if shards > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text('{"model_type": "none"}')

    def digests(self, root: Path, *, everything: bool = False) -> dict[str, str]:
        """sha256 of every file below `root`, without the repository's own directory unless `everything` is wanted."""
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and (everything or ".mgit" not in path.parts)
        }


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Flushing checks its descriptor and returns: what is lost with the power concerns no test in this process.

    The programs that tests start flush in earnest: tests/crash makes their flushes fail, and kills at them.
    """

    def fsync(descriptor: int) -> None:
        os.fstat(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="session")
def files() -> Files:
    return Files(safetensors_bytes)


def environment_at(folder: Path, worktree: Path) -> Environment:
    """Surroundings that have nothing of the real home in them."""
    home = folder / "home"
    return Environment(
        home=home,
        config_home=home / ".config",
        cache_home=home / ".cache",
        cwd=worktree,
        author="Ada <ada@example.org>",
        login="ada",
        host="testhost",
        offline=True,
    )


@pytest.fixture
def make_repo(tmp_path: Path) -> Iterator[Callable[..., Repository]]:
    """Makes (or opens again, with `existing`) repositories below the test's folder."""
    opened: list[Repository] = []

    def make(name: str = "work", *, existing: bool = False) -> Repository:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        start = modelgit.open if existing else modelgit.init
        repo = start(path, environment=environment_at(tmp_path, path))
        opened.append(repo)
        return repo

    yield make
    for repo in opened:
        repo.close()


@pytest.fixture
def repo(make_repo: Callable[..., Repository]) -> Repository:
    """An empty repository in `<tmp_path>/work`."""
    return make_repo()


@pytest.fixture
def bot(repo: Repository, files: Files) -> Repository:
    """A repository with one commit of one small model, `bot.safetensors`."""
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    repo.track("bot.safetensors")
    repo.commit("base")
    return repo


@pytest.fixture(scope="session")
def second_reader() -> ModuleType:
    """The reader that was written from docs/format.md alone."""
    path = Path(__file__).parent / "fixtures" / "second_reader.py"
    spec = importlib.util.spec_from_file_location("mgit_second_reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
