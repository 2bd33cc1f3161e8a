"""Fisher passes that were interrupted: their sums are saved now and then, and the next try goes on from there.

`cache/passes/KEY` holds the eight bytes `MGITPASS`, the length of a JSON header (u32, little-endian), the header, the
float64 sums in the order of its tensors, those of the two halves that the ranking is compared by, and the BLAKE3 of all
of that.  A file that is damaged or of another pass is ignored: then the pass begins anew.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import RepositoryError, UsageError
from modelgit.store.durable import make_directory, replacing, write_all

if TYPE_CHECKING:
    from modelgit.fisher.estimate import Accumulator, PartialFisher

__all__ = ["SAVE_EVERY_S", "run_pass"]

SAVE_EVERY_S = 15.0
_BUSY = 10  # saving takes at most a tenth of the time
_MAGIC = b"MGITPASS"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    estimator: str
    examples: int
    seed: int
    data: str
    scale: float
    tensors: list[tuple[str, tuple[int, ...]]]
    watched: int | None = None
    overlaps: tuple[float, ...] = ()


def run_pass(work: Accumulator, file: Path) -> int:
    """Run a pass to its end, going on from what `file` holds; returns how many examples were done before.

    The sums are saved at most every `SAVE_EVERY_S` seconds.  What cannot be saved (a full disk) is not, and no error.
    The file is left for the caller to remove when the result is safe.
    """
    state = _read(file)
    if state is not None:
        with contextlib.suppress(UsageError):  # of another pass, or of one that saw more examples
            work.restore(state)
    del state
    before = work.done
    saved, took = time.monotonic(), 0.0
    for _ in work.blocks():
        start = time.monotonic()
        if start - saved >= max(SAVE_EVERY_S, _BUSY * took):
            with contextlib.suppress(RepositoryError):
                _write(file, work.state())
            saved = time.monotonic()
            took = saved - start
    return before


def _arrays(state: PartialFisher) -> Iterator[NDArray[np.float64]]:
    yield from state.sums.values()
    if state.settling is not None:
        yield from state.settling.halves


def _write(file: Path, state: PartialFisher) -> None:
    """Replace `file`; nothing is copied but a tensor that is not contiguous.  Raises RepositoryError."""
    settling = state.settling
    header = msgspec.json.encode(
        _Header(
            estimator=state.estimator,
            examples=state.examples,
            seed=state.seed,
            data=state.data,
            scale=state.scale,
            tensors=[(name, array.shape) for name, array in state.sums.items()],
            watched=None if settling is None else len(settling.halves[0]),
            overlaps=() if settling is None else settling.overlaps,
        )
    )
    make_directory(file.parent)
    digest = blake3()
    with replacing(file) as descriptor:
        head = _MAGIC + _LENGTH.pack(len(header)) + header
        digest.update(head)
        write_all(descriptor, head)
        for array in _arrays(state):
            part = np.ascontiguousarray(array, "<f8").reshape(-1).view(np.uint8).data
            digest.update(part)
            write_all(descriptor, part)
        write_all(descriptor, digest.digest())


def _read(file: Path) -> PartialFisher | None:
    """What was saved, None where there is nothing sound.  Holds the sums once."""
    from modelgit.fisher.estimate import PartialFisher
    from modelgit.fisher.settling import SettlingState

    try:
        data = bytearray(file.read_bytes())
    except OSError:
        return None
    body = memoryview(data)[: max(0, len(data) - _DIGEST_BYTES)]
    if body[: len(_MAGIC)] != _MAGIC or blake3(body).digest() != data[len(body) :]:
        return None
    at = len(_MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack_from(body, len(_MAGIC))
    try:
        header = msgspec.json.decode(body[at : at + length], type=_Header)
    except msgspec.MsgspecError:
        return None
    at += length
    shapes = [shape for _, shape in header.tensors] + 2 * ([] if header.watched is None else [(header.watched,)])
    arrays = []
    for shape in shapes:
        count = int(np.prod(shape, dtype=np.int64))
        if count < 0 or at + 8 * count > len(body):
            return None
        arrays.append(np.frombuffer(body, "<f8", count, at).reshape(shape))
        at += 8 * count
    names = [name for name, _ in header.tensors]
    settling = None
    if header.watched is not None:
        settling = SettlingState((arrays[-2], arrays[-1]), header.overlaps)
    return PartialFisher(
        estimator=header.estimator,
        examples=header.examples,
        seed=header.seed,
        data=header.data,
        sums=dict(zip(names, arrays, strict=False)),
        scale=header.scale,
        settling=settling,
    )
