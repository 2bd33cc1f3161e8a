"""Three-way merging of lines (diff3).

Khanna, Kunal and Pierce, "A Formal Investigation of Diff3" (2007): the base is cut into runs that both sides kept
and the gaps between them; a gap that one side left as it was is the other's, and a gap that both changed
differently is a conflict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

__all__ = ["TextMerge", "merge_lines"]


MAX_EQUAL_PAIRS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class TextMerge:
    """The outcome: `content` with conflict markers where there are `conflicts`, each a pair of differing texts."""

    content: bytes
    conflicts: tuple[tuple[bytes, bytes], ...] = ()


def merge_lines(base: bytes, ours: bytes, theirs: bytes) -> TextMerge:
    """Merge two texts that both come from `base`.  Lines end with a line feed; nothing else about them changes."""
    before, mine, other = (_lines(text) for text in (base, ours, theirs))
    merged: list[bytes] = []
    conflicts: list[tuple[bytes, bytes]] = []
    at_base = at_mine = at_other = 0
    for start, start_mine, start_other, length in _kept_by_both(before, mine, other):
        gap = before[at_base:start]
        left, right = mine[at_mine:start_mine], other[at_other:start_other]
        if right in (left, gap):
            merged += left
        elif left == gap:
            merged += right
        else:
            conflicts.append((b"".join(left), b"".join(right)))
            merged += _marked(left, right)
        merged += before[start : start + length]
        at_base, at_mine, at_other = start + length, start_mine + length, start_other + length
    return TextMerge(content=b"".join(merged), conflicts=tuple(conflicts))


def _lines(text: bytes) -> list[bytes]:
    """Cut after each line feed only: a lone carriage return is part of its line."""
    return re.findall(rb"[^\n]*\n|[^\n]+", text)


def _kept_by_both(
    base: Sequence[bytes], ours: Sequence[bytes], theirs: Sequence[bytes]
) -> list[tuple[int, int, int, int]]:
    """Runs of lines that all three share, as (start in base, in ours, in theirs, length); an empty one ends them."""
    left, right = _matches(base, ours), _matches(base, theirs)
    runs = []
    i = j = 0
    while i < len(left) and j < len(right):
        start_left, in_ours, length_left = left[i]
        start_right, in_theirs, length_right = right[j]
        low = max(start_left, start_right)
        high = min(start_left + length_left, start_right + length_right)
        if low < high:
            runs.append((low, in_ours + low - start_left, in_theirs + low - start_right, high - low))
        if start_left + length_left < start_right + length_right:
            i += 1
        else:
            j += 1
    runs.append((len(base), len(ours), len(theirs), 0))
    return runs


def _matches(base: Sequence[bytes], side: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """Matching runs (start in base, start in side, length); equal beginnings and ends are found without a search."""
    head = 0
    while head < min(len(base), len(side)) and base[head] == side[head]:
        head += 1
    tail = 0
    while tail < min(len(base), len(side)) - head and base[-1 - tail] == side[-1 - tail]:
        tail += 1
    left, right = base[head : len(base) - tail], side[head : len(side) - tail]
    counts = Counter(right)
    # The search costs as much as there are pairs of equal lines.  Where these are too many, frequent lines do not
    # start a match: at worst that is a conflict more, never a wrong merge.
    repetitive = sum(counts[line] for line in left) > MAX_EQUAL_PAIRS
    middle = SequenceMatcher(None, left, right, autojunk=repetitive)
    found = [(0, 0, head)] if head else []
    found += [(head + m.a, head + m.b, m.size) for m in middle.get_matching_blocks() if m.size]
    if tail:
        found.append((len(base) - tail, len(side) - tail, tail))
    return found


def _marked(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[bytes]:
    return [
        b"<<<<<<< ours\n",
        *_ended(ours),
        b"=======\n",
        *_ended(theirs),
        b">>>>>>> theirs\n",
    ]


def _ended(lines: Sequence[bytes]) -> list[bytes]:
    """The lines, the last one with a line feed, so that a marker after it begins a line."""
    if lines and not lines[-1].endswith(b"\n"):
        return [*lines[:-1], lines[-1] + b"\n"]
    return list(lines)
