"""Strategies that take one side whole, bit for bit, whatever the dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from modelgit.merging.base import strategy

__all__ = ["base_side", "ours", "theirs"]


@strategy(exact=True)
def ours(sides: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Take the value of the branch that is merged into."""
    return sides[0]


@strategy(exact=True)
def theirs(sides: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Take the value of the branch that is merged (the last one, of several)."""
    return sides[-1]


@strategy(exact=True, name="base")
def base_side(base: npt.NDArray[Any], sides: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:  # noqa: ARG001
    """Take the value of the common ancestor, giving up what both sides changed."""
    return base
