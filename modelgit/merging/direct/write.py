"""Writing merged tensors to safetensors files: window by window, in order, from several threads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modelgit.errors import RepositoryError
from modelgit.formats.safetensors_write import build_header
from modelgit.merging.direct.compute import DirectMerge, MadeTensor
from modelgit.objects import TensorSpec
from modelgit.parallel import Workers
from modelgit.patching.base import windows
from modelgit.progress import SILENT, Progress
from modelgit.store.durable import new_file, sync_directory, write_all

__all__ = ["SHARD_BYTES", "flushed", "shards", "write_shards"]

SHARD_BYTES = 5_000_000_000
"""As large as the files of a published model usually are."""

_STEP_BYTES = 4 << 20
_HELD_BYTES = 256 << 20  # tensors that are computed whole wait while others hold this much
_TASK = "merge"


class _Window(NamedTuple):
    tensor: MadeTensor
    start: int
    stop: int


def shards(specs: Sequence[tuple[str, TensorSpec]], limit: int = SHARD_BYTES) -> list[tuple[str, list[int]]]:
    """File names, and the places of the tensors that go into each: `model.safetensors`, or numbered ones."""
    groups: list[list[int]] = [[]]
    size = 0
    for index, (_, spec) in enumerate(specs):
        if groups[-1] and size + spec.size_bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += spec.size_bytes
    if len(groups) == 1:
        return [("model.safetensors", groups[0])]
    return [(f"model-{n:05d}-of-{len(groups):05d}.safetensors", group) for n, group in enumerate(groups, 1)]


def write_shards(
    folder: Path,
    files: Sequence[tuple[str, Sequence[int]]],
    merge: DirectMerge,
    metadata: Mapping[str, str],
    *,
    threads: int,
    progress: Progress = SILENT,
) -> int:
    """Write the files, and an index where there are several; returns the bytes of all tensors.

    Held are a few windows a thread, and for strategies that see whole tensors such a tensor.  Raises RepositoryError
    when the disk refuses.
    """
    specs = merge.specs
    total = sum(spec.size_bytes for _, spec in specs)
    progress.start(_TASK, total)
    with Workers(threads, name="mgit-merge") as workers:
        for name, members in files:
            header = build_header([specs[index] for index in members], metadata)
            made = workers.ordered(
                lambda window: window.tensor.read(window.start, window.stop),
                _windows(merge, members, progress),
                ahead=2 * workers.count,
                weight=lambda window: window.tensor.held_bytes,
                limit=_HELD_BYTES,
            )
            with flushed(folder / name) as descriptor:
                write_all(descriptor, header)
                for data in made:
                    write_all(descriptor, data)
                    progress.advance(_TASK, len(data))
    progress.finish(_TASK)
    if len(files) > 1:
        table = {specs[index][0]: name for name, members in files for index in members}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
        with flushed(folder / "model.safetensors.index.json") as descriptor:
            write_all(descriptor, (json.dumps(index, indent=2) + "\n").encode())
    return total


def _windows(merge: DirectMerge, members: Sequence[int], progress: Progress) -> Iterator[_Window]:
    for index in members:
        tensor = merge.tensor(index)
        # On borders of elements, whatever their width.
        for start, stop in windows(tensor.spec.size_bytes, step_bytes=_STEP_BYTES):
            progress.check()
            yield _Window(tensor, start, stop)


@contextlib.contextmanager
def flushed(path: Path) -> Iterator[int]:
    """A new file open for writing, which is on the disk at the end.  Raises RepositoryError when the disk refuses."""
    try:
        with new_file(path) as descriptor:
            yield descriptor
        sync_directory(path.parent)
    except OSError as error:
        raise RepositoryError(f"cannot write {path}: {error.strerror or error}") from error
