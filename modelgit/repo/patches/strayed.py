"""Values that changed outside of a mask: between two manifests, or a tensor and what is to take its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelgit.amounts import counted
from modelgit.errors import UsageError
from modelgit.objects import Manifest, Mask, TensorEntry, TensorView, row_major
from modelgit.patching.base import TensorReads, windows
from modelgit.repo.contents import find_model, tensors_of, views_of
from modelgit.repo.patches.masks import mask_positions
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["count_strayed", "outside_mask", "over_stored", "strayed_values", "strayed_words"]

Positions = Mapping[str, NDArray[np.int64] | None]
Bytes = bytes | bytearray | memoryview

_NAMED = 3  # tensors in a sentence


def outside_mask(
    repo: Repository, mask: Mask, before: Manifest, after: Manifest, *, new_store: ObjectStore | None = None
) -> dict[str, int]:
    """How many values outside of the mask differ between two manifests, by tensor; empty when none does."""
    old = tensors_of(repo, before, find_model(before, mask.model))
    new = tensors_of(repo, after, find_model(after, mask.model), store=new_store)
    views = views_of(repo, after, find_model(after, mask.model), store=new_store)
    positions = over_stored(mask_positions(repo, mask), views)
    reader = repo.reader(new_store)
    strayed: dict[str, int] = {}
    for name, entry in new.items():
        if name in old and old[name].id == entry.id:
            continue
        if name in positions and positions[name] is None:
            continue
        if name not in old or old[name].spec != entry.spec:
            strayed[name] = entry.spec.elements
            continue
        count = count_strayed(reader, old[name], partial(reader.read, entry.id), positions.get(name))
        if count:
            strayed[name] = count
    return strayed


def strayed_words(strayed: Mapping[str, int]) -> str:
    """Counts by tensor in words: how many values in all, and the tensors with most of them."""
    most = sorted(strayed.items(), key=lambda item: (-item[1], item[0]))
    total = sum(strayed.values())
    places = ", ".join(f"{count:,} in {name}" for name, count in most[:_NAMED])
    if len(most) == 1:
        return f"{counted(total, 'value')} in {most[0][0]}"
    more = f", and more in {len(most) - _NAMED} others" if len(most) > _NAMED else ""
    return f"{total:,} values in {len(most)} tensors ({places}{more})"


def over_stored(
    positions: Positions, views: Mapping[str, tuple[TensorEntry, TensorView]]
) -> dict[str, NDArray[np.int64] | None]:
    """Positions in tensors as they are stored: those in a view (tied, sliced, transposed) become the stored tensor's.

    Raises UsageError for a view of another type than what it shows.
    """
    found: dict[str, NDArray[np.int64] | None] = {}
    for name, at in positions.items():
        target, translated = name, at
        if name in views:
            stored, view = views[name]
            target, translated = stored.name, _through(name, stored, view, at)
        known = found.get(target, ())
        if known is None or translated is None:
            found[target] = None
        else:
            found[target] = translated if not len(known) else np.union1d(known, translated)
    return found


def _through(
    name: str, stored: TensorEntry, view: TensorView, at: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    spec = view.spec or stored.spec
    if spec.dtype != stored.spec.dtype or spec.kind.bits % 8:
        raise UsageError(f"tensor `{name}` is a view of another type than what is stored, which a mask cannot follow")
    is_whole = (
        view.offset == 0 and view.strides in ((), row_major(spec.shape)) and spec.elements == stored.spec.elements
    )
    if is_whole:
        return at
    inside = np.arange(spec.elements, dtype=np.int64) if at is None else at
    if view.strides:
        places = np.unravel_index(inside, spec.shape) if spec.shape else ()
        inside = np.zeros_like(inside)
        for place, stride in zip(places, view.strides, strict=True):
            inside += place * stride
    moved: NDArray[np.int64] = np.unique(inside + view.offset // (spec.kind.bits // 8))
    return moved


def count_strayed(
    reader: TensorReads,
    old: TensorEntry,
    new: Callable[[int, int], Bytes],
    allowed: NDArray[np.int64] | None,
) -> int:
    """How many values have other bits in `new`, which reads a tensor of the spec of `old`, and are not `allowed` to.

    Holds two windows.
    """
    return sum(
        strayed_values(reader.read(old.id, start, stop), new(start, stop), start, old, allowed)[0]
        for start, stop in windows(old.spec.size_bytes)
    )


def strayed_values(
    old: Bytes, new: Bytes, start: int, entry: TensorEntry, allowed: NDArray[np.int64] | None
) -> tuple[int, NDArray[np.bool_], np.dtype[np.unsignedinteger]]:
    """Which values of a window of a tensor, from byte `start` on, differ in bits and are not `allowed` to.

    Returns their number, a flag per value, and the type of the words that were compared: types without whole bytes per
    value are compared byte by byte.
    """
    unit = entry.spec.kind.bits // 8
    word = np.dtype(f"<u{unit}") if unit in (1, 2, 4, 8) else np.dtype("<u1")
    changed = np.frombuffer(old, word) != np.frombuffer(new, word)
    if allowed is not None:
        low, high = np.searchsorted(allowed, (start // word.itemsize, start // word.itemsize + changed.size))
        changed[allowed[low:high] - start // word.itemsize] = False
    return int(np.count_nonzero(changed)), changed, word
