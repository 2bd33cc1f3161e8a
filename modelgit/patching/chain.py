"""What it costs to read a stored tensor, and which tensor a new one should be coded against.

Cost is decode work in units of one pass over the tensor: a full record costs 1, a dense delta 1 more than its base, a
sparse record a little more than its base.  The bound is on that cost, not on the number of links: a hundred tiny
patches may be cheaper to read than two dense deltas.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from modelgit.objects import ObjectId
from modelgit.store.base import Located, ObjectStore

__all__ = [
    "MAX_CHAIN",
    "MAX_COST",
    "MAX_DENSE_COST",
    "MAX_SPARSE_COST",
    "SPARSE_BELOW",
    "Link",
    "anchor_of",
    "chain_cost",
    "chain_links",
    "link_cost",
]

I = TypeVar("I", bound=ObjectId)  # noqa: E741  (I for id)

MAX_CHAIN = 64
MAX_DENSE_COST = 3.3  # two dense deltas, with a few sparse patches among them
MAX_SPARSE_COST = 4.0
_LINK = 0.05  # keeps the longest chain that the bounds allow below MAX_CHAIN
SPARSE_BELOW = 0.10  # a record with a base that is smaller than this share of the raw size reads like a sparse one
MAX_COST = MAX_SPARSE_COST + _LINK + 4 * SPARSE_BELOW  # the most that a writer makes: above it lies what others made


class Link(NamedTuple):
    """One step of a chain: the digest of the base (None at its end) and the coded share of the raw size."""

    base: bytes | None
    share: float


def chain_cost(store: ObjectStore, object_id: ObjectId) -> float:
    """Decode cost of the object in passes over it; infinity when it is not here or its chain is broken or too deep."""
    cost = 0.0
    for link in chain_links(store, object_id):
        if link is None:
            return float("inf")
        if link.base is None:
            return cost + 1.0
        cost += link_cost(link.share)
    return float("inf")


def link_cost(share: float) -> float:
    """What a record with a base adds to the cost of reading its base, from its share of the raw size."""
    return _LINK + (1.0 if share > SPARSE_BELOW else 4 * share)


def anchor_of(store: ObjectStore, object_id: I) -> I | None:
    """The object at the end of the chain: the one that is stored whole.  None when the chain is broken."""
    current = object_id
    for link in chain_links(store, object_id):
        if link is None:
            return None
        if link.base is None:
            return current
        current = type(object_id)(link.base)
    return None


def chain_links(store: ObjectStore, object_id: ObjectId) -> list[Link | None]:
    """The links from the object down to what is stored whole; None at the end says that the chain is broken."""
    links: list[Link | None] = []
    current = object_id
    for _ in range(MAX_CHAIN):
        link = _link(store.locate(current))
        links.append(link)
        if link is None or link.base is None:
            return links
        current = type(object_id)(link.base)
    return [*links, None]


def _link(found: list[Located]) -> Link | None:
    """What a read from the first byte on would use, with all records of the same base taken together."""
    usable = [item for item in found if item.start == 0 and (item.stop or not item.total)]
    if not usable:
        return None
    base = min(usable, key=lambda item: (item.base is not None, item.length)).base
    same = [item for item in found if item.base == base and item.stop > item.start]
    raw = sum(item.stop - item.start for item in same)
    return Link(base, sum(item.length for item in same) / raw if raw else 1.0)
