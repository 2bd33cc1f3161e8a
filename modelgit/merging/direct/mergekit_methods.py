"""The methods of mergekit as strategies here: which parameters they take, and where the results differ on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelgit.errors import UsageError, did_you_mean
from modelgit.merging.base import STRATEGIES, BoundStrategy

__all__ = ["METHODS", "Chosen", "Method", "setting_at"]


class Chosen(NamedTuple):
    """What makes a tensor: a strategy (None: the only side as it is), times a factor."""

    strategy: BoundStrategy | None
    factor: float = 1.0


Make = Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], Chosen]
"""From the shared parameters and those of each side to a strategy."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: its parameters with their defaults (None: needed), and what must be said about it.

    `base` says whether the base is what the others are changes of ("start"), one of two ends ("end"), "optional", or an
    input like others ("input").
    """

    make: Make
    base: str
    shared: Mapping[str, Any]
    each: Mapping[str, Any]
    note: str = ""

    def check(self, name: str, parameters: Iterable[str], shown: str) -> None:
        """Raise UsageError for a parameter that the method does not have, naming the nearest."""
        known = {*self.shared, *self.each}
        for parameter in parameters:
            if parameter not in known:
                raise UsageError(
                    f"{shown}: `{name}` has no parameter `{parameter}`{did_you_mean(parameter, known)}",
                    hint=f"its parameters: {', '.join(sorted(known)) or 'none'}",
                )


def setting_at(value: Any, tensor: str, depth: float, shown: str) -> Any:
    """A parameter's value for a tensor: of several the first whose filter matches, of a gradient that at `depth`.

    `depth` goes from 0 for the first layer to 1 for the last.  None where no filter matches.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return value
    if all(isinstance(item, Mapping) for item in value):
        for item in value:
            unknown = set(item) - {"filter", "value"}
            if unknown or "value" not in item:
                raise UsageError(f"{shown}: a parameter by filter has `filter` and `value`, not {sorted(item)}")
            pattern = item.get("filter")
            if pattern is None or pattern == "*" or str(pattern) in tensor:
                return setting_at(item["value"], tensor, depth, shown)
        return None
    if not value or any(isinstance(item, Mapping | list) for item in value):
        raise UsageError(f"{shown}: {str(value)[:60]} is neither a number, a gradient nor a list of filters")
    numbers = [_number(item) for item in value]
    if any(isinstance(item, bool) or number is None for item, number in zip(value, numbers, strict=True)):
        return value[int(depth * (len(value) - 1))]
    place = depth * (len(value) - 1)
    low = min(int(place), len(value) - 1)
    high = min(low + 1, len(value) - 1)
    part = place - low
    return (1 - part) * float(numbers[low] or 0) + part * float(numbers[high] or 0)


def _number(value: object) -> float | None:
    """YAML reads 1e-4 as text, so that text may be a number."""
    if isinstance(value, str | int | float):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _float(value: Any, name: str) -> float:
    number = None if isinstance(value, bool) else _number(value)
    if number is None or not math.isfinite(number):
        raise UsageError(f"`{name}` must be a number, not {str(value)[:40]!a}")
    return number


def _bool(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"`{name}` must be true or false, not {str(value)[:40]!a}")
    return value


def _numbers(sides: Sequence[Mapping[str, Any]], name: str) -> tuple[float, ...]:
    return tuple(_float(side[name], name) for side in sides)


def _linear(shared: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> Chosen:
    weights = _numbers(sides, "weight")
    total = math.fsum(weights)
    if min(weights) < 0 or total == 0:
        raise UsageError("negative weights, or none above 0, make no average", hint="task_arithmetic adds up")
    return Chosen(_bind("average", weights=weights), 1.0 if _bool(shared["normalize"], "normalize") else total)


def _passthrough(_: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> Chosen:
    scale = sides[0]["scale"]
    return Chosen(None, 1.0 if scale == 1 else _float(scale, "scale"))


def _slerp(shared: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> Chosen:
    return Chosen(_bind("slerp", t=_float(shared["t"], "t")))


def _nuslerp(shared: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> Chosen:
    rows = not _bool(shared["nuslerp_flatten"], "nuslerp_flatten")
    if rows and _bool(shared["nuslerp_row_wise"], "nuslerp_row_wise"):
        raise UsageError("`nuslerp_row_wise` goes by columns, which is not offered", hint="nuslerp_row_wise: false")
    return Chosen(_bind("nuslerp", weights=_numbers(sides, "weight"), rows=rows))


def _karcher(_: Mapping[str, Any], __: Sequence[Mapping[str, Any]]) -> Chosen:
    return Chosen(_bind("karcher"))


def _model_stock(shared: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> Chosen:
    return Chosen(_bind("model-stock", rows=_bool(shared["filter_wise"], "filter_wise")))


def _sce(shared: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> Chosen:
    return Chosen(_bind("sce", topk=_float(shared["select_topk"], "select_topk")))


def _changes(strategy: str, *, ties: bool) -> Make:
    """A method that adds up changes: weights, a scale, and for each side how it is thinned out."""

    def make(shared: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> Chosen:
        weights = _numbers(sides, "weight")
        options: dict[str, Any] = {"scale": _float(shared["lambda"], "lambda")}
        normalize = _bool(shared["normalize"], "normalize")
        if normalize and not ties:
            total = math.fsum(weights)
            if total == 0:
                raise UsageError("`normalize` divides by the sum of the weights, which is 0")
            weights = tuple(weight / total for weight in weights)
        options["weights"] = weights
        if strategy != "task-arithmetic":
            options["consensus"] = ("ties" if normalize else "ties-sum") if ties else "none"
            options |= {name: _numbers(sides, name) for name in ("density", "gamma", "epsilon") if name in sides[0]}
        if strategy == "ties":
            options["trim"] = "tensor"
        rescale = _bool(shared["rescale"], "rescale")
        if strategy in ("dare", "della"):
            options["rescale"] = rescale
        elif rescale:
            raise UsageError(f"`rescale` is for methods that draw, not for `{strategy}`", hint="rescale: false")
        return Chosen(_bind(strategy, **options))

    return make


def _bind(name: str, **options: Any) -> BoundStrategy:
    return STRATEGIES.get(name).bind(options)


def _summed(strategy: str, *, ties: bool, normalize: bool, rescale: bool, note: str = "", **each: float) -> Method:
    return Method(
        make=_changes(strategy, ties=ties),
        base="start",
        shared={"int8_mask": False, "lambda": 1.0, "normalize": normalize, "rescale": rescale},
        each={"weight": None, **({} if strategy == "task-arithmetic" else {"density": 1.0}), **each},
        note=note,
    )


_DRAWN = (
    "kept changes are divided by the probability that they were kept, as in the paper; mergekit makes the L1 norm of "
    "each tensor's changes what it was"
)

METHODS: Mapping[str, Method] = {
    "linear": Method(make=_linear, base="input", shared={"normalize": True}, each={"weight": None}),
    "passthrough": Method(make=_passthrough, base="input", shared={}, each={"scale": 1}),
    "slerp": Method(make=_slerp, base="end", shared={"t": None}, each={}),
    "nuslerp": Method(
        make=_nuslerp,
        base="optional",
        shared={"nuslerp_flatten": True, "nuslerp_row_wise": False},
        each={"weight": None},
    ),
    "karcher": Method(
        make=_karcher,
        base="input",
        shared={"max_iter": 10, "tol": 1e-5},
        each={},
        note="the mean is iterated until it stands still, whatever `max_iter` and `tol` say",
    ),
    "model_stock": Method(
        make=_model_stock,
        base="start",
        shared={"filter_wise": False},
        each={},
        note="cosines of small changes are exact; mergekit takes |a||b| for at least 1e-6",
    ),
    "sce": Method(
        make=_sce,
        base="start",
        shared={"int8_mask": False, "select_topk": 1.0},
        each={},
        note="weights come from the changes however small these are; mergekit's are equal below a sum of 1e-6",
    ),
    "task_arithmetic": _summed("task-arithmetic", ties=False, normalize=False, rescale=False),
    "ties": _summed("ties", ties=True, normalize=True, rescale=False),
    "dare_linear": _summed("dare", ties=False, normalize=False, rescale=True, note=_DRAWN),
    "dare_ties": _summed("dare", ties=True, normalize=False, rescale=True, note=_DRAWN),
    "della": _summed("della", ties=True, normalize=True, rescale=True, note=_DRAWN, epsilon=0.15),
    "della_linear": _summed("della", ties=False, normalize=False, rescale=True, note=_DRAWN, epsilon=0.15),
    "breadcrumbs": _summed("breadcrumbs", ties=False, normalize=False, rescale=False, gamma=0.01),
    "breadcrumbs_ties": _summed("breadcrumbs", ties=True, normalize=False, rescale=False, gamma=0.01),
}
