"""What it costs to read a stored tensor, and which tensor a new one should be coded against.

Cost is decode work in units of one pass over the tensor: a full record costs 1, a dense delta 1 more than its base, a
sparse record a little more than its base.  The bound is on that cost, not on the number of links: a hundred tiny
patches may be cheaper to read than two dense deltas.
"""

from __future__ import annotations

from typing import TypeVar

from modelgit.objects import ObjectId
from modelgit.store.base import Located, ObjectStore

__all__ = ["MAX_CHAIN", "MAX_DENSE_COST", "MAX_SPARSE_COST", "SPARSE_BELOW", "anchor_of", "chain_cost"]

I = TypeVar("I", bound=ObjectId)  # noqa: E741  (I for id)

MAX_CHAIN = 64
MAX_DENSE_COST = 3.3  # two dense deltas, with a few sparse patches among them
MAX_SPARSE_COST = 4.0
_LINK = 0.05  # keeps the longest chain that the bounds allow below MAX_CHAIN
SPARSE_BELOW = 0.10  # a record with a base that is smaller than this share of the raw size reads like a sparse one


def chain_cost(store: ObjectStore, object_id: ObjectId) -> float:
    """Decode cost of the object in passes over it; infinity when it is not here or its chain is broken or too deep."""
    cost = 0.0
    for link in _links(store, object_id):
        if link is None:
            return float("inf")
        raw = max(1, link.stop - link.start)
        share = link.length / raw
        if link.base is None:
            return cost + 1.0
        cost += _LINK + (1.0 if share > SPARSE_BELOW else 4 * share)
    return float("inf")


def anchor_of(store: ObjectStore, object_id: I) -> I | None:
    """The object at the end of the chain: the one that is stored whole.  None when the chain is broken."""
    current = object_id
    for link in _links(store, object_id):
        if link is None:
            return None
        if link.base is None:
            return current
        current = type(object_id)(link.base)
    return None


def _links(store: ObjectStore, object_id: ObjectId) -> list[Located | None]:
    links: list[Located | None] = []
    current = object_id
    for _ in range(MAX_CHAIN):
        found = store.locate(current)
        if not found:
            return [*links, None]
        best = min(found, key=lambda item: (item.base is not None, item.length))
        links.append(best)
        if best.base is None:
            return links
        current = type(object_id)(best.base)
    return [*links, None]
