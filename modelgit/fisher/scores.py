"""What a mask may rank weights by, computed one tensor at a time: Fisher, change, magnitude, chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.errors import UsageError

__all__ = ["Scores", "change_scores", "fisher_scores", "magnitude_scores", "random_scores"]


class Scores(Mapping[str, NDArray[np.float32]]):
    """Scores by tensor name, made anew each time one is read, so that no second model is held."""

    def __init__(self, names: Mapping[str, object], make: Callable[[str], NDArray[np.float32]]) -> None:
        self._names = tuple(names)
        self._known = frozenset(names)
        self._make = make

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._known:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fisher_scores(diagonal: Mapping[str, NDArray[np.float32]]) -> Scores:
    """The diagonal itself: what to train before any training (FISH)."""
    return Scores(diagonal, lambda name: diagonal[name])


def change_scores(
    diagonal: Mapping[str, NDArray[np.float32]],
    old: Mapping[str, NDArray[np.floating]],
    new: Mapping[str, NDArray[np.floating]],
) -> Scores:
    """F (new - old)^2: what a finished fine-tune needed most, to train it again from `old` under a mask.

    Raises UsageError when a tensor of the diagonal is missing or has another shape in `old` or `new`.
    """
    for name in diagonal:
        if name not in old or name not in new:
            raise UsageError(f"tensor `{name}` of the Fisher estimate is not in both models")
        if not diagonal[name].shape == old[name].shape == new[name].shape:
            raise UsageError(f"tensor `{name}` has another shape than its Fisher estimate")

    def change(name: str) -> NDArray[np.float32]:
        delta = np.asarray(new[name], np.float64) - np.asarray(old[name], np.float64)
        # The root has the same order and does not underflow in float32.
        return (np.sqrt(diagonal[name], dtype=np.float64) * np.abs(delta)).astype(np.float32)

    return Scores(diagonal, change)


def magnitude_scores(weights: Mapping[str, NDArray[np.floating]]) -> Scores:
    """The absolute value of each weight."""
    return Scores(weights, lambda name: np.abs(np.asarray(weights[name], np.float32)))


def random_scores(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> Scores:
    """Independent uniform scores in (0, 1]: the baseline that a mask must beat.

    Each tensor draws from its own stream, named by `seed` and the tensor: the order of tensors does not matter.
    """

    def draw(name: str) -> NDArray[np.float32]:
        key = int.from_bytes(blake3(f"{seed}:{name}".encode()).digest(length=16), "little")
        generator = np.random.Generator(np.random.Philox(key=key))
        return np.float32(1) - generator.random(shapes[name], dtype=np.float32)

    return Scores(shapes, draw)
