"""The drawing of histories."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.cli._graph import draw


def _drawn(history: list[tuple[str, list[str]]]) -> list[str]:
    lines = []
    for (commit, _), row in zip(history, draw(history), strict=True):
        lines.append(f"{row.head}{commit}")
        lines += row.edges
    return [line.rstrip() for line in lines]


def test_the_story() -> None:
    history = [("merge", ["refunds", "tone"]), ("tone", ["base"]), ("refunds", ["base"]), ("base", [])]
    assert _drawn(history) == ["*   merge", "|\\", "| * tone", "* | refunds", "|/", "* base"]


def test_a_straight_line() -> None:
    assert _drawn([("c", ["b"]), ("b", ["a"]), ("a", [])]) == ["* c", "* b", "* a"]


def test_an_octopus() -> None:
    history = [("m", ["a", "b", "c"]), ("c", ["r"]), ("b", ["r"]), ("a", ["r"]), ("r", [])]
    assert _drawn(history) == ["*     m", "|\\", "| |\\", "| | * c", "| * | b", "| |/", "* | a", "|/", "* r"]


def test_a_root_in_the_middle_lets_the_rest_move_in() -> None:
    history = [("m", ["a", "b"]), ("a", []), ("b", [])]
    assert _drawn(history) == ["*   m", "|\\", "* | a", " /", "* b"]


def test_a_line_that_joins_across_another() -> None:
    # Two merges whose second parents wait for the same commit, with a line of its own in between.
    history = [("m", ["x", "y", "z"]), ("z", ["x"]), ("y", ["q"]), ("x", ["q"]), ("q", [])]
    assert _drawn(history) == ["*     m", "|\\", "| |\\", "| | * z", "|_|/", "| * y", "* | x", "|/", "* q"]


def test_history_cut_short_keeps_its_lines_open() -> None:
    [row] = draw([("m", ["a", "b"])])
    assert (row.head, row.edges, row.rest) == ("*   ", ("|\\",), "| | ")


@given(st.integers(min_value=0, max_value=100_000), st.integers(min_value=1, max_value=25))
def test_every_commit_gets_one_star_and_lines_only_for_open_parents(seed: int, size: int) -> None:
    chance = random.Random(seed)
    history = []
    for number in range(size, 0, -1):
        older = list(range(1, number))
        parents = chance.sample(older, min(len(older), chance.choice([0, 1, 1, 1, 2, 3])))
        history.append((number, parents))
    open_commits: set[int] = set()
    for (commit, parents), row in zip(history, draw(history), strict=True):
        before = len(open_commits | {commit})
        assert row.head.count("*") == 1 and row.head.count("|") == before - 1
        open_commits = (open_commits - {commit}) | set(parents)
        assert row.rest.count("|") == len(open_commits)
        assert set("".join(row.edges)) <= set("|/\\_ ")


@pytest.mark.parametrize("parents", [["a", "a"], ["a"]])
def test_a_parent_named_twice_is_one_line(parents: list[str]) -> None:
    rows = list(draw([("m", parents), ("a", [])]))
    assert rows[0].rest == "| " and rows[1].head.startswith("*")
