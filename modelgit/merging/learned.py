"""What a tokenizer's model learned on two sides becomes one: merges of pairs by rank, and pieces by score.

A merge of a byte-pair encoding (Sennrich et al. 2016) has a rank, its place in the list: of all pairs of neighbours in
a word the one with the lowest rank is joined first.  A united list holds the merges of both sides, in an order in which
those of each side follow each other as they do there; so whatever both knew is ranked as before, and a text in which no
new merge applies is cut as before.  A piece of a unigram model (Kudo 2018) has a score, and what both sides have scored
alike stays so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple, TypeVar

from modelgit.objects.merges import SideName

__all__ = ["FIRST", "Clash", "Pair", "decided", "lost_tokens", "read_pairs", "united_order", "united_values"]

FIRST: dict[str, SideName] = {"ours-first": "ours", "theirs-first": "theirs"}
"""Resolutions of two vocabularies that contradict each other: all of both is kept, and this side decides."""
Pair = tuple[str, str]
_SHOWN = 24
_LONGEST = 256

Item = TypeVar("Item", bound=Hashable)
Value = TypeVar("Value")


class Clash(NamedTuple):
    """What each side says where they contradict each other, for people."""

    ours: str
    theirs: str


def decided(base: Value | None, ours: Value, theirs: Value, first: SideName | None) -> Value | None:
    """The three-way choice between values; None where both changed it, differently, and no side goes first."""
    if theirs in (ours, base):
        return ours
    if ours == base:
        return theirs
    return None if first is None else theirs if first == "theirs" else ours


def united_order(
    base: Sequence[Item], ours: Sequence[Item], theirs: Sequence[Item], *, first: SideName | None = None
) -> list[Item] | Clash:
    """One list with the items of both, each side's in its own order; between two that both have ours come first.

    Where the sides put two items that both have the other way round, that is a clash, unless one side goes `first`:
    then what the other alone has follows the last item before it that both have.
    """
    base, ours, theirs = (list(dict.fromkeys(items)) for items in (base, ours, theirs))
    chosen = decided(base, ours, theirs, None)
    if chosen is not None:
        return chosen
    in_ours, in_theirs = set(ours), set(theirs)
    gone = [[item for item in base if item not in side] for side in (in_ours, in_theirs)]
    if any(gone) and first is None:
        words = [f"removed {_shown(items[0])}{_more(items)}" if items else "changed others" for items in gone]
        return Clash(words[0], words[1])
    if first is None:
        shared = [item for item in ours if item in in_theirs], [item for item in theirs if item in in_ours]
        swapped = next(((one, other) for one, other in zip(*shared, strict=True) if one != other), None)
        if swapped is not None:
            here, there = _shown(swapped[0]), _shown(swapped[1])
            return Clash(f"puts {here} before {there}", f"puts {there} before {here}")
    leading, other = (theirs, ours) if first == "theirs" else (ours, theirs)
    known = in_theirs if first == "theirs" else in_ours
    # What `other` alone has, by the item before it that both have.
    following: dict[Item | None, list[Item]] = {}
    last: Item | None = None
    for item in other:
        if item in known:
            last = item
        else:
            following.setdefault(last, []).append(item)
    both = in_ours & in_theirs
    found: list[Item] = []
    last = None
    for item in leading:
        if item in both:
            found += following.pop(last, [])
            last = item
        found.append(item)
    return found + following.pop(last, [])


def united_values(
    base: Mapping[str, Value],
    ours: Mapping[str, Value],
    theirs: Mapping[str, Value],
    *,
    first: SideName | None = None,
) -> dict[str, Value] | Clash:
    """The values of all tokens that either side has; a clash where both gave one token another value."""
    found = dict(ours)
    for token, value in theirs.items():
        mine = ours.get(token)
        chosen = value if mine is None else decided(base.get(token), mine, value, first)
        if chosen is None:
            return Clash(f"scores {_shown(token)} {mine}", f"scores it {value}")
        found[token] = chosen
    return found


def read_pairs(merges: object) -> list[Pair] | None:
    """The merges of a tokenizer.json: pairs, or strings with a space between; None for anything else."""
    if not isinstance(merges, list):
        return None
    found: list[Pair] = []
    for item in merges:
        parts = item.split(" ") if isinstance(item, str) else item
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            return None
        found.append((parts[0], parts[1]))
    return found


def lost_tokens(merges: Sequence[Pair], before: Sequence[Pair], base: Iterable[Pair]) -> list[str]:
    """Tokens that a side's own merges `before` made of their letters, and the united `merges` make no longer.

    Only what is not in `base` counts.  Such a token keeps its row, and no text gives it any more: an earlier merge of
    the other side takes a part of it away.
    """
    ranks, own = ({pair: rank for rank, pair in enumerate(pairs)} for pairs in (merges, before))
    known = set(base)
    made = dict.fromkeys("".join(pair) for pair in before if pair not in known)
    return [token for token in made if _joined(token, ranks) != [token] and _joined(token, own) == [token]]


def _joined(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """What the merges make of the letters of a word; of one that is too long to be a token, nothing.

    Pairs wait in a heap by rank, then from left to right; one whose halves have become something else is passed over.
    """
    parts = list(word)
    end = len(parts)
    if end > _LONGEST:
        return []
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    waiting = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
    heapify(waiting)
    while waiting:
        rank, at = heappop(waiting)
        other = after[at]
        if not parts[at] or other == end or ranks.get((parts[at], parts[other])) != rank:
            continue
        parts[at] += parts[other]
        parts[other] = ""
        after[at] = after[other]
        if after[at] < end:
            before[after[at]] = at
        for first, second in ((before[at], at), (at, after[at])):
            if first >= 0 and second < end and (new := ranks.get((parts[first], parts[second]))) is not None:
                heappush(waiting, (new, first))
    return [part for part in parts if part]


def _shown(item: object) -> str:
    text = " ".join(item) if isinstance(item, tuple) else str(item)
    return repr(text[:_SHOWN])


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""
