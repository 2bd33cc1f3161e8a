"""Options of strategies: read from a function's signature, converted from text, checked before anything is merged."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from modelgit.errors import BugError, UsageError, did_you_mean

__all__ = ["Between", "Option", "Scalar", "options_of", "recipe_form", "resolve_options", "split_rule"]

Scalar = float | int | str | bool
_INTEGER_BITS = 63
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Between:
    """Bounds of a numeric option, both inclusive: `Annotated[float, Between(0, 1)]`."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: `kind` is float, int, bool, str, "numbers" (joined by commas), or the tuple of allowed texts."""

    name: str
    kind: type | str | tuple[str, ...]
    default: Any
    bounds: Between = Between()

    def convert(self, value: object) -> Any:
        """`value`, as text or already typed, in the option's type.  Raises UsageError, naming the option."""
        if isinstance(self.kind, tuple):
            if value in self.kind:
                return value
            raise self._refuse(value, "one of " + ", ".join(self.kind), near=self.kind)
        if self.kind == "numbers":
            if isinstance(value, str):
                parts: list[object] = [part.strip() for part in value.split(",")] if value.strip() else []
            elif isinstance(value, list | tuple):
                parts = list(value)
            else:
                parts = [value]
            return tuple(self._number(part, float) for part in parts)
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in _WORDS:
                return _WORDS[value.lower()]
            raise self._refuse(value, "true or false")
        if self.kind is str:
            if isinstance(value, str):
                return value
            raise self._refuse(value, "text")
        return self._number(value, int if self.kind is int else float)

    def _number(self, value: object, kind: Callable[[Any], float]) -> float | int:
        what = "a whole number" if kind is int else "a number"
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._refuse(value, what)
        try:
            if isinstance(value, str) and value.endswith("%") and kind is float:
                number = float(value[:-1]) / 100
            else:
                number = kind(value)
        except (ValueError, OverflowError):
            raise self._refuse(value, what) from None
        if number != value and isinstance(value, float):
            raise self._refuse(value, what)
        if isinstance(number, int) and number.bit_length() > _INTEGER_BITS:
            raise self._refuse(value, f"{what} below 2^{_INTEGER_BITS}")  # records hold no more
        if not math.isfinite(number) or not self.bounds.low <= number <= self.bounds.high:
            bounded = math.isfinite(self.bounds.low) or math.isfinite(self.bounds.high)
            raise self._refuse(value, f"{what} from {self.bounds.low:g} to {self.bounds.high:g}" if bounded else what)
        return number

    def _refuse(self, value: object, wanted: str, *, near: tuple[str, ...] = ()) -> UsageError:
        return UsageError(
            f"option `{self.name}` must be {wanted}, not {str(value)[:40]!r}{did_you_mean(str(value), near)}",
            hint=f"its default is {recipe_form(self.default)!r}",
        )


def options_of(function: Callable[..., object]) -> tuple[Option, ...]:
    """The keyword-only parameters of `function`.

    Raises BugError where one has no default or a type that no text can be converted to.
    """
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise BugError(f"option `{name}` of {function.__name__} has no default")
        hint, bounds = hints[name], Between()
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            bounds = next((extra for extra in extras if isinstance(extra, Between)), bounds)
        found.append(Option(name=name, kind=_kind(hint, name, function), default=parameter.default, bounds=bounds))
    return tuple(found)


def _kind(hint: Any, name: str, function: Callable[..., object]) -> type | str | tuple[str, ...]:
    if hint in (float, int, bool, str):
        return typing.cast(type, hint)
    if hint == tuple[float, ...]:
        return "numbers"
    if get_origin(hint) is typing.Literal and all(isinstance(choice, str) for choice in get_args(hint)):
        return get_args(hint)
    raise BugError(f"option `{name}` of {function.__name__} has type {hint}, which has no text form")


def resolve_options(strategy: str, options: tuple[Option, ...], given: Mapping[str, object]) -> dict[str, Any]:
    """All options of a strategy by name: those given, converted, and the defaults of the others.

    Raises UsageError for an option that the strategy does not have.
    """
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            raise UsageError(
                f"`{strategy}` has no option `{name}`{did_you_mean(name, known)}",
                hint=f"its options: {', '.join(sorted(known)) or 'none'}",
            )
    return {name: option.convert(given[name]) if name in given else option.default for name, option in known.items()}


def recipe_form(value: Any) -> Scalar:
    """An option's value as a recipe stores it: numbers of a list joined by commas, each exact."""
    if isinstance(value, tuple):
        return ",".join(repr(float(number)) for number in value)
    return typing.cast(Scalar, value)


def split_rule(text: str) -> tuple[str, str] | None:
    """Pattern and strategy of `PATTERN=NAME option=value`; None for a strategy without a pattern.

    Raises UsageError where one of the two is missing.
    """
    first, _, options = text.strip().partition(" ")
    pattern, equals, name = first.partition("=")
    if not equals:
        return None
    if not pattern or not name:
        raise UsageError(f"`{text}` is not PATTERN=NAME", hint="--strategy 'lm_head.*=ours'")
    return pattern, f"{name} {options}".strip()
