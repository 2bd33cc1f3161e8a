"""What every tensor of the output is made of, where models are merged as they are: name by name, by one strategy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelgit.errors import UsageError
from modelgit.merging.base import BoundStrategy
from modelgit.merging.direct.checkpoint import Checkpoint, Located
from modelgit.merging.model import DEFAULT_RULE, matching_rule

__all__ = ["COPY", "Wanted", "floating", "plan_same"]

COPY = ""
"""The rule of a tensor that is its only side, as it is."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A tensor of the output: its sides in order, what they are changes of, and the key of the strategy (or COPY).

    The values are multiplied by `factor` at the end.  `dtype` is what floats are stored as; "" keeps that of the first
    side.
    """

    name: str
    sides: tuple[Located, ...]
    base: Located | None = None
    rule: str = COPY
    factor: float = 1.0
    dtype: str = ""


def floating(tensor: Located) -> bool:
    """Whether the values of a tensor can be computed with."""
    return tensor.spec.kind.is_float


def plan_same(
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    strategies: Mapping[str, BoundStrategy],
    *,
    dtype: str = "",
) -> list[Wanted]:
    """All tensors of models that have the same ones; `strategies` by pattern of names, "*" for the others.

    A rule that picks a side needs the tensor on that side alone, and leaves out one that the side does not have.
    Raises UsageError, naming the tensor, where a side lacks one, where shapes differ, where integers differ, and where
    a strategy needs a base that is not there.
    """
    wanted: list[Wanted] = []
    for name in dict.fromkeys(name for model in models for name in model.tensors):
        rule = matching_rule(name, [pattern for pattern in strategies if pattern != DEFAULT_RULE])
        bound = strategies[rule]
        if bound.strategy.exact:
            picked = {"ours": models[0], "theirs": models[-1], "base": base}[bound.name]
            if picked is None:
                raise _no_base(bound.name, name)
            if name in picked.tensors:
                wanted.append(Wanted(name=name, sides=(picked.tensors[name],), dtype=dtype))
            continue
        _check_names(name, models)
        sides = tuple(model.tensors[name] for model in models)
        _check_shapes(name, [model.shown for model in models], sides)
        before = None if base is None else base.tensors.get(name)
        if before is not None and before.spec.shape != sides[0].spec.shape and "base" in bound.strategy.needs:
            _check_shapes(name, [models[0].shown, base.shown if base else ""], (sides[0], before))
        if not floating(sides[0]):
            wanted.append(Wanted(name=name, sides=sides, rule=rule if len(sides) > 1 else COPY))
            continue
        if "base" in bound.strategy.needs and before is None:
            raise _no_base(bound.name, name, base)
        wanted.append(Wanted(name=name, sides=sides, base=before, rule=rule, dtype=dtype))
    return wanted


def _check_names(name: str, models: Sequence[Checkpoint]) -> None:
    lacking = next((model for model in models if name not in model.tensors), None)
    if lacking is None:
        return
    owner = next(index for index, model in enumerate(models) if name in model.tensors)
    near = difflib.get_close_matches(name, lacking.tensors, n=1, cutoff=0.8)
    pick = "ours" if owner == 0 else "theirs"
    raise UsageError(
        f"{lacking.shown} has no tensor {name}, which {models[owner].shown} has"
        + (f"; its {near[0]} is near" if near else ""),
        hint=f"`--strategy '{name}={pick}'` takes the tensor from where it is",
    )


def _check_shapes(name: str, shown: Iterable[str], tensors: Sequence[Located]) -> None:
    if len({tensor.spec.shape for tensor in tensors}) == 1:
        return
    words = ", ".join(f"{list(tensor.spec.shape)} in {where}" for where, tensor in zip(shown, tensors, strict=True))
    raise UsageError(
        f"{name} has different shapes: {words}",
        hint=f"`--strategy '{name}=ours'` takes the first; grown vocabularies are merged by `mgit merge`",
    )


def _no_base(strategy: str, name: str, base: Checkpoint | None = None) -> UsageError:
    if base is None:
        return UsageError(f"`{strategy}` needs the model that the others were made from", hint="name it: `--base C`")
    return UsageError(
        f"`{strategy}` needs a base, and {base.shown} has no tensor {name}",
        hint=f"`--strategy '{name}=average'` needs none, `'{name}=ours'` takes the first",
    )
