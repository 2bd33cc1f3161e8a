"""What a merge strategy is: a plain typed function over arrays, with its needs and options read from its signature.

A strategy is made by the decorator `strategy` from a function whose positional parameters are among

- `base`: the common ancestor's values, float64;
- `sides`: two or more arrays of one shape, float64;
- `fisher`: per side the diagonal Fisher information, float64, or None where a side has none;
- `grams`: per side the Gram matrix of a linear layer's inputs, or None where a side has none (scope "tensor" only);
- `statistics`: numbers that the strategy's `prepare` pass gathered over the whole model;
- `where`: the tensor's name and the positions of the elements, for strategies that draw random numbers;

and whose keyword-only parameters, with defaults, are its options.  It returns float64 values; they are rounded to
the tensor's dtype once, by the caller.  `scope` says what one value may depend on:

- "element": its own position alone; called with one-dimensional windows of any size, or with picked positions;
- "model": its own position and `statistics`; called in the same way, after `prepare`;
- "tensor": all of its tensor; called with whole arrays in their shape.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from modelgit.errors import BugError, UsageError
from modelgit.merging.options import Option, Scalar, options_of, recipe_form, resolve_options
from modelgit.registry import Registry

__all__ = [
    "STATISTICS",
    "STRATEGIES",
    "Array",
    "BoundStrategy",
    "Gram",
    "Material",
    "Part",
    "Prepared",
    "Scope",
    "Strategy",
    "Where",
    "ordered_sum",
    "parse_rule",
    "rule_text",
    "side_shares",
    "strategy",
]

Array = npt.NDArray[np.float64]
Scope = Literal["element", "tensor", "model"]

_NETWORK = 8  # at most so many terms are sorted by exchanges
STATISTICS = frozenset({"fisher", "grams"})
"""The inputs that come from a pass over data."""

_INPUTS = ("base", "sides", "fisher", "grams", "statistics", "where")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which elements an array holds: those from `start` on of the tensor `name`, or of these those at `picked`.

    `keys` name the contents of the sides: what is drawn at random for a side must go with it, and not with its place.
    """

    name: str
    start: int = 0
    count: int = 0
    picked: npt.NDArray[np.int64] | None = None
    keys: tuple[str, ...] = ()

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """The flat index in the tensor of every element."""
        if self.picked is not None:
            return self.picked + self.start
        return np.arange(self.start, self.start + self.count, dtype=np.int64)


class Gram(NamedTuple):
    """The mean of x x^T over the inputs x of a linear layer, float64 `[I, I]`, symmetric.

    They meet the last axis of its weight, or, with `first`, the first one.
    """

    matrix: Array
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a strategy sees at once: arrays of one shape (words of the stored dtype for an exact strategy)."""

    where: Where
    base: npt.NDArray[Any] | None
    sides: tuple[npt.NDArray[Any], ...]
    fisher: tuple[Array | None, ...] = ()
    grams: tuple[Gram | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a first pass found: numbers that belong in the recipe, and notes that the user must see."""

    statistics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Material(Protocol):
    """What a `prepare` pass may read, window by window and in a fixed order."""

    @property
    def sides(self) -> int:
        """Number of sides."""

    @property
    def names(self) -> Sequence[str]:
        """The tensors that the strategy will combine, sorted."""

    def parts(self, name: str | None = None) -> Iterator[Part]:
        """All of these tensors, or one of them."""

    def diagonals(self) -> Iterator[tuple[Array | None, ...]]:
        """The Fisher diagonals of all sides over the body they share; None for a side without an estimate."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A merge strategy.

    `needs` holds the positional parameters it takes.  An `exact` one gets and returns words of the stored dtype
    (unsigned integers), so that it suits every dtype.  `prepare`, if any, is called once per model, with the
    options, before the first value is made.
    """

    name: str
    scope: Scope
    needs: frozenset[str]
    options: tuple[Option, ...]
    function: Callable[..., npt.NDArray[Any]]
    prepare: Callable[..., Prepared] | None = None
    exact: bool = False

    @property
    def summary(self) -> str:
        """The first sentence of the function's description."""
        return (inspect.getdoc(self.function) or "").split("\n\n", 1)[0].replace("\n", " ")

    def bind(self, options: Mapping[str, object]) -> BoundStrategy:
        """The strategy with its options set.

        Raises UsageError for an unknown option or a value that does not convert.
        """
        return BoundStrategy(strategy=self, values=resolve_options(self.name, self.options, options))


@dataclass(frozen=True, kw_only=True)
class BoundStrategy:
    """A strategy with all of its options."""

    strategy: Strategy
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The strategy's name."""
        return self.strategy.name

    @property
    def recipe(self) -> dict[str, Scalar]:
        """Every option, defaults included, as a MergeRecipe stores it."""
        return {name: recipe_form(value) for name, value in sorted(self.values.items())}

    def prepare(self, material: Material) -> Prepared:
        """The first pass over the model; nothing where the strategy has none."""
        if self.strategy.prepare is None:
            return Prepared()
        with np.errstate(all="ignore"):
            return self.strategy.prepare(material, **self.values)

    def compute(self, part: Part, statistics: Mapping[str, float]) -> npt.NDArray[Any]:
        """The merged values of `part`.

        Raises UsageError when the strategy needs a base and there is none.
        """
        if part.base is None and "base" in self.strategy.needs:
            raise UsageError(
                f"`{self.name}` needs a common ancestor, and {part.where.name} has none",
                hint="use `--strategy average`, or take one side",
            )
        inputs = {
            "base": part.base,
            "sides": part.sides,
            "fisher": part.fisher or (None,) * len(part.sides),
            "grams": part.grams or (None,) * len(part.sides),
            "statistics": statistics,
            "where": part.where,
        }
        # NaN and Inf in weights are values like others: they propagate by IEEE rules, without warnings.
        with np.errstate(all="ignore"):
            merged = self.strategy.function(**{name: inputs[name] for name in self.strategy.needs}, **self.values)
        if merged.shape != part.sides[0].shape:
            raise BugError(f"`{self.name}` returned shape {merged.shape} for {part.sides[0].shape}")
        return merged


def strategy(
    *,
    scope: Scope = "element",
    prepare: Callable[..., Prepared] | None = None,
    exact: bool = False,
    name: str | None = None,
) -> Callable[[Callable[..., npt.NDArray[Any]]], Strategy]:
    """Make a Strategy of a plain function; its name is the function's, with hyphens.

    Raises BugError for a parameter that is neither an input nor an option.
    """

    def make(function: Callable[..., npt.NDArray[Any]]) -> Strategy:
        needs = set()
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                continue
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD or parameter.name not in _INPUTS:
                raise BugError(f"merge strategy {function.__name__} takes `{parameter.name}`, which is not an input")
            needs.add(parameter.name)
        return Strategy(
            name=name or function.__name__.replace("_", "-"),
            scope=scope,
            needs=frozenset(needs),
            options=options_of(function),
            function=function,
            prepare=prepare,
            exact=exact,
        )

    return make


STRATEGIES: Registry[Strategy] = Registry(
    "merge strategy",
    "modelgit.merge_strategies",
    {
        "average": "modelgit.merging.average:average",
        "base": "modelgit.merging.picks:base_side",
        "breadcrumbs": "modelgit.merging.breadcrumbs:breadcrumbs",
        "dare": "modelgit.merging.dare:dare",
        "della": "modelgit.merging.della:della",
        "fisher": "modelgit.merging.fisher:fisher_average",
        "fisher-task": "modelgit.merging.fisher_task:fisher_task",
        "karcher": "modelgit.merging.karcher:karcher",
        "mats": "modelgit.merging.mats:mats",
        "model-stock": "modelgit.merging.model_stock:model_stock",
        "nuslerp": "modelgit.merging.slerp:nuslerp",
        "ours": "modelgit.merging.picks:ours",
        "regmean": "modelgit.merging.regmean:regmean",
        "sce": "modelgit.merging.sce:sce",
        "slerp": "modelgit.merging.slerp:slerp",
        "task-arithmetic": "modelgit.merging.task_arithmetic:task_arithmetic",
        "theirs": "modelgit.merging.picks:theirs",
        "ties": "modelgit.merging.ties:ties",
        "wise": "modelgit.merging.wise:wise",
    },
)


def parse_rule(text: str) -> BoundStrategy:
    """Read `NAME option=value option=value`, the form of a rule for tensors of some names.

    Raises UsageError for an unknown strategy or option.
    """
    name, *pairs = text.split()
    given: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(
                f"`{pair}` in the rule {text[:80]!r} is not option=value",
                hint="`mgit merge --list-strategies` shows the options of each",
            )
        if key in given:
            raise UsageError(f"the rule {text[:80]!r} sets {key} twice", hint=f"`{name} {key}={value}`")
        given[key] = value
    return STRATEGIES.get(name).bind(given)


def rule_text(bound: BoundStrategy) -> str:
    """The text that `parse_rule` reads back; options that are empty were not given."""
    return " ".join([bound.name, *(f"{name}={value}" for name, value in bound.recipe.items() if value != "")])


def side_shares(weights: Sequence[float], sides: int) -> tuple[float, ...]:
    """The share of each side, adding up to 1: `weights` divided by their sum, uniform when there are none.

    A weight of 0 is a weight: that side does not count.  Raises UsageError for a wrong number of weights, a
    negative one, or none above 0.
    """
    if not weights:
        return (1.0 / sides,) * sides
    if len(weights) != sides:
        raise UsageError(
            f"{len(weights)} weights for {sides} sides", hint="give one weight a side: ours first, then theirs"
        )
    total = math.fsum(weights)
    if min(weights) < 0 or not total > 0:
        raise UsageError(
            f"weights {recipe_form(tuple(weights))} must not be negative, and not all 0",
            hint="`average weights=2,1` counts ours twice",
        )
    return tuple(weight / total for weight in weights)


def ordered_sum(terms: Sequence[Array]) -> Array:
    """The element-wise sum of one or more arrays, the same to the bit in whatever order they come.

    Two terms commute; of three or more, each element's terms are added from the smallest to the largest.
    """
    if len(terms) == 1:
        return terms[0].copy()
    if len(terms) == 2:
        return np.asarray(terms[0] + terms[1])
    lanes = _sorted(terms) if len(terms) <= _NETWORK else list(np.sort(np.stack(terms), axis=0))
    total = np.asarray(lanes[0] + lanes[1])
    for lane in lanes[2:]:
        total += lane
    if not total.all():
        # A sort takes zeros for equal, but a sum of zeros is -0 where all of them are.
        zero = total == 0
        total[zero] = np.where(np.logical_and.reduce([np.signbit(term[zero]) for term in terms]), -0.0, 0.0)
    return total


def _sorted(terms: Sequence[Array]) -> list[Array]:
    """Few arrays sorted element by element: pairs change places, which is far faster than a sort."""
    lanes = list(terms)
    spare: Array | None = None
    mine = [False] * len(lanes)
    for low, high in _exchanges(len(lanes)):
        least = np.minimum(lanes[low], lanes[high], out=spare)
        most = np.maximum(lanes[low], lanes[high], out=lanes[high] if mine[high] else None)
        spare = lanes[low] if mine[low] else None
        lanes[low], lanes[high] = least, most
        mine[low] = mine[high] = True
    return lanes


@cache
def _exchanges(count: int) -> tuple[tuple[int, int], ...]:
    """The pairs of a sorting network: the fewest there are for three and four terms, neighbours in turn for more."""
    if count == 4:
        return (0, 1), (2, 3), (0, 2), (1, 3), (1, 2)
    return tuple((at, at + 1) for turn in range(count) for at in range(turn % 2, count - 1, 2))
