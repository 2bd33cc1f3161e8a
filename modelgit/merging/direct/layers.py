"""Layers by the names of tensors: which number a tensor's layer has, and how a tensor is called in another layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from modelgit.errors import UsageError

__all__ = ["LayerNames", "is_before_layers"]

_NUMBERED = re.compile(r"(?P<stack>(?:.*?\.)?(?:layers|layer|h|blocks|block|encoder_layers))\.(?P<number>\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.|_)(?:embed|wte|wpe|shared)", re.IGNORECASE)


class LayerNames(NamedTuple):
    """The stack of numbered layers of a model: `model.layers`, and how many there are."""

    stack: str
    size: int

    @classmethod
    def of(cls, names: Iterable[str], shown: str) -> LayerNames:
        """The stack with most tensors.  Raises UsageError, naming the model, where layers are not numbered 0, 1, 2."""
        found: Counter[str] = Counter()
        numbers: dict[str, set[int]] = {}
        for name in names:
            match = _NUMBERED.match(name)
            if match is not None:
                found[match["stack"]] += 1
                numbers.setdefault(match["stack"], set()).add(int(match["number"]))
        if not found:
            return cls("", 0)
        stack = min(found, key=lambda item: (-found[item], item))
        count = len(numbers[stack])
        if numbers[stack] != set(range(count)):
            raise UsageError(f"the layers of {shown} ({stack}.*) are not numbered from 0 on without a gap")
        return cls(stack, count)

    def number(self, name: str) -> int | None:
        """The layer of a tensor; None for one that is in no layer."""
        rest = name.removeprefix(f"{self.stack}.")
        if not self.stack or rest == name:
            return None
        return int(rest.partition(".")[0])

    def renumbered(self, name: str, number: int) -> str:
        """The same tensor of another layer."""
        _, _, rest = name.removeprefix(f"{self.stack}.").partition(".")
        return f"{self.stack}.{number}.{rest}"


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside of the layers is an embedding, and not a norm or a head after them."""
    return _EMBEDDING.search(name) is not None and "lm_head" not in name
