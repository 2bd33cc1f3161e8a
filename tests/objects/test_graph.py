from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import IntegrityError
from modelgit.objects import CommitId
from modelgit.objects.graph import ahead_behind, ancestors, is_ancestor, merge_bases, topological


def cid(name: object) -> CommitId:
    return CommitId.of(str(name).encode())


class Graph:
    """A history given by names: `Graph(b="a", c="a", d="b c")`."""

    def __init__(self, **edges: str) -> None:
        self.edges = {cid(name): tuple(cid(p) for p in text.split()) for name, text in edges.items()}
        self.calls: list[CommitId] = []

    def __call__(self, commit: CommitId) -> Sequence[CommitId]:
        self.calls.append(commit)
        return self.edges.get(commit, ())


@st.composite
def histories(draw: st.DrawFn) -> dict[CommitId, tuple[CommitId, ...]]:
    """Commits 0..n-1; parents have smaller numbers."""
    size = draw(st.integers(1, 14))
    edges: dict[CommitId, tuple[CommitId, ...]] = {}
    for number in range(size):
        chosen = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        edges[cid(number)] = tuple(cid(parent) for parent in chosen)
    return edges


def closure(edges: dict[CommitId, tuple[CommitId, ...]], start: CommitId) -> set[CommitId]:
    """Reachability by recursion: the slow definition to compare with."""
    return {start}.union(*(closure(edges, parent) for parent in edges[start]))


@given(histories(), st.data())
def test_all_functions_agree_with_the_definitions(
    edges: dict[CommitId, tuple[CommitId, ...]], data: st.DataObject
) -> None:
    a, b = (cid(data.draw(st.integers(0, len(edges) - 1))) for _ in range(2))
    of_a, of_b = closure(edges, a), closure(edges, b)
    assert set(ancestors((a,), edges.__getitem__)) == of_a
    assert is_ancestor(b, a, edges.__getitem__) == (b in of_a)
    assert ahead_behind(a, b, edges.__getitem__) == (len(of_a - of_b), len(of_b - of_a))
    common = of_a & of_b
    best = {c for c in common if not any(c != other and c in closure(edges, other) for other in common)}
    assert merge_bases(a, b, edges.__getitem__) == sorted(best)


@given(histories(), st.lists(st.integers(0, 3), min_size=14, max_size=14))
def test_topological_gives_children_first_and_is_one_order_whatever_the_tips(
    edges: dict[CommitId, tuple[CommitId, ...]], times: list[int]
) -> None:
    when = {cid(number): times[number] for number in range(len(edges))}
    order = list(topological(edges, edges.__getitem__, when.__getitem__))
    assert sorted(order) == sorted(edges)
    place = {commit: number for number, commit in enumerate(order)}
    assert all(place[child] < place[parent] for child, parents in edges.items() for parent in parents)
    assert order == list(topological(reversed(list(edges)), edges.__getitem__, when.__getitem__))


def test_a_criss_cross_has_both_bases() -> None:
    graph = Graph(a="root", b="root", x="a b", y="b a", ours="x", theirs="y")
    assert merge_bases(cid("ours"), cid("theirs"), graph) == sorted([cid("a"), cid("b")])


def test_unrelated_histories_have_no_base() -> None:
    assert merge_bases(cid("p"), cid("q"), Graph(p="p0", q="q0")) == []


def test_unrelated_commits_are_listed_newest_first() -> None:
    when = {cid("old"): 1, cid("new"): 9, cid("root"): 0, cid("tip"): 10}
    order = list(topological([cid("tip")], Graph(tip="old new", old="root", new="root"), when.__getitem__))
    assert order == [cid("tip"), cid("new"), cid("old"), cid("root")]


def test_walks_do_not_pass_stop_and_ask_once_per_commit() -> None:
    graph = Graph(d="b c", b="a", c="a", a="root")
    assert set(ancestors([cid("d")], graph, stop={cid("a")})) == {cid("d"), cid("b"), cid("c")}
    assert len(graph.calls) == len(set(graph.calls)) == 3
    assert list(ancestors([cid("a")], graph, stop=[cid("a")])) == []


def test_long_histories_need_no_recursion() -> None:
    commits = [cid(number) for number in range(5000)]
    edges = {commit: tuple(commits[number - 1 : number]) for number, commit in enumerate(commits)}
    assert is_ancestor(commits[0], commits[-1], edges.__getitem__)
    assert ahead_behind(commits[-1], commits[0], edges.__getitem__) == (4999, 0)
    assert list(topological([commits[-1]], edges.__getitem__, lambda _: 0)) == commits[::-1]


def test_a_cycle_ends_and_is_reported() -> None:
    graph = Graph(a="b", b="c", c="a", tip="a")
    assert len(list(ancestors([cid("tip")], graph))) == 4
    with pytest.raises(IntegrityError, match="cycle"):
        list(topological([cid("tip")], graph, lambda _: 0))
