"""Commits drawn as lines that fork and meet, for `mgit log --graph`: pure functions over ids.

Commits come children before parents.  Each open line waits for one commit; where two lines wait for the same one,
the right one joins the left one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

__all__ = ["Row", "draw"]

H = TypeVar("H", bound=Hashable)


class Row(NamedTuple):
    """What stands left of one commit: on its first line, on lines between it and the next, on all lines after those."""

    head: str
    edges: tuple[str, ...]
    rest: str


def draw(history: Iterable[tuple[H, Sequence[H]]]) -> Iterator[Row]:
    """The gutters of (commit, parents) pairs; parents that never come keep their line open."""
    lanes: list[H] = []
    for commit, parents in history:
        if commit not in lanes:
            lanes.append(commit)
        column = lanes.index(commit)
        before = len(lanes)
        head = _cells("*" if lane == column else "|" for lane in range(before))
        edges: list[str] = []
        if not parents:
            edges += _close(lanes, column)
        else:
            lanes[column] = parents[0]
            for offset, parent in enumerate(parents[1:], start=1):
                edges.append(_fork(len(lanes), column + offset - 1))
                lanes.insert(column + offset, parent)
            edges += _join(lanes)
        width = 2 * max(before, column + max(1, len(parents)))
        yield Row(head.ljust(width), tuple(edges), _cells("|" for _ in lanes))


def _cells(marks: Iterable[str]) -> str:
    return "".join(f"{mark} " for mark in marks)


def _fork(lanes: int, column: int) -> str:
    """A line opens to the right of `column`; lines further right move over."""
    return _cells("|" for _ in range(column + 1))[:-1] + "\\" + " \\" * (lanes - column - 1)


def _close(lanes: list[H], column: int) -> list[str]:
    """The line at `column` ends; lines further right move in."""
    del lanes[column]
    right = len(lanes) - column
    return [(_cells("|" for _ in range(column)) + " /" * right).rstrip()] if right else []


def _join(lanes: list[H]) -> list[str]:
    """Lines that wait for one commit become one, the rightmost first."""
    edges = []
    for right in range(len(lanes) - 1, 0, -1):
        left = lanes.index(lanes[right])
        if left == right:
            continue
        marks = ["| "] * right
        for between in range(left, right - 1):
            marks[between] = "|_"
        marks[right - 1] = "|/"
        edges.append(("".join(marks) + " /" * (len(lanes) - right - 1)).rstrip())
        del lanes[right]
    return edges
