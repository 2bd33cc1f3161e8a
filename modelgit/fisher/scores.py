"""What a mask may rank weights by, computed one tensor at a time: Fisher, change, magnitude, gradient, chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import UsageError

__all__ = ["Arrays", "Scores", "among_changed", "change_scores", "given_scores", "magnitude_scores", "random_scores"]

Shapes = Mapping[str, tuple[int, ...]]

# Differences are taken in float64, in pieces: no tensor is ever held in that precision.
_PIECE_ELEMENTS = 1 << 20
_LEAST = np.float32(np.finfo(np.float32).smallest_subnormal)


class Arrays(Protocol):
    """Arrays by name, read when asked for."""

    def __getitem__(self, name: str) -> NDArray[np.generic]: ...


class Scores(Mapping[str, NDArray[np.float32]]):
    """Scores by tensor name, made anew each time one is read, so that no second model is held.

    `shapes` are known without making any.
    """

    def __init__(self, shapes: Shapes, make: Callable[[str], NDArray[np.float32]]) -> None:
        self.shapes = dict(shapes)
        self._make = make

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self.shapes:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def given_scores(shapes: Shapes, arrays: Arrays) -> Scores:
    """Arrays that are scores already: a Fisher diagonal (FISH), or a mean gradient.

    Raises UsageError for an array of another shape when it is read.
    """

    def make(name: str) -> NDArray[np.float32]:
        array = np.asarray(arrays[name], np.float32)
        if array.shape != shapes[name]:
            raise UsageError(f"tensor `{name}` has another shape than its scores")
        return array

    return Scores(shapes, make)


def magnitude_scores(shapes: Shapes, weights: Arrays) -> Scores:
    """The absolute value of each weight."""
    return Scores(shapes, lambda name: np.abs(np.asarray(weights[name]).astype(np.float32)))


def change_scores(shapes: Shapes, old: Arrays, new: Arrays, *, diagonal: Arrays | None = None) -> Scores:
    """F (new - old)^2: what a finished fine-tune needed most, to train it again from `old` under a mask.

    Without `diagonal` it is |new - old|.  Values that did not change score 0; those that did, but have no Fisher
    information, come after all others that did.  Raises UsageError for an array of another shape when it is read.
    """

    def change(name: str) -> NDArray[np.float32]:
        # The root of F delta^2 has the same order and does not underflow.
        before, after = (_flat(side, name, shapes[name]) for side in (old, new))
        information = None if diagonal is None else _flat(diagonal, name, shapes[name])
        scores = np.empty(before.size, np.float32)
        for start in range(0, before.size, _PIECE_ELEMENTS):
            piece = slice(start, start + _PIECE_ELEMENTS)
            delta = np.abs(np.asarray(after[piece], np.float64) - np.asarray(before[piece], np.float64))
            score = delta if information is None else np.sqrt(information[piece], dtype=np.float64) * delta
            scores[piece] = score
            np.maximum(scores[piece], _LEAST, out=scores[piece], where=delta > 0)
        return scores.reshape(shapes[name])

    return Scores(shapes, change)


def among_changed(scores: Scores, changes: Scores) -> Scores:
    """`scores`, positive ones, where `changes` are not 0, and 0 elsewhere."""
    return Scores(scores.shapes, lambda name: np.where(changes[name] > 0, scores[name], np.float32(0)))


def random_scores(shapes: Shapes, *, seed: int = 0) -> Scores:
    """Independent uniform scores in (0, 1]: the baseline that a mask must beat.

    Each tensor draws from its own stream, named by `seed` and the tensor: the order of tensors does not matter.
    """

    def draw(name: str) -> NDArray[np.float32]:
        key = int.from_bytes(blake3(f"{seed}:{name}".encode()).digest(length=16), "little")
        generator = np.random.Generator(np.random.Philox(key=key))
        return np.float32(1) - generator.random(shapes[name], dtype=np.float32)

    return Scores(shapes, draw)


def _flat(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    array = np.asarray(arrays[name])
    if array.shape != shape:
        raise UsageError(f"tensor `{name}` has shape {list(array.shape)} on one side and {list(shape)} on the other")
    return array.reshape(-1)
