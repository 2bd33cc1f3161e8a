"""The smallest density whose measured divergence stays below a limit: predictions say where to measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from modelgit.errors import UsageError

if TYPE_CHECKING:
    from modelgit.fisher.sparsify import Survey

__all__ = ["Tried", "smallest_density"]

_NEAR = 1.15  # densities this near to each other are near enough
_MOST_TRIES = 8
_AIM = 0.95  # of the limit: a patch that just misses it costs another try


class Tried(NamedTuple):
    """A density that was looked at; KL in nats per example, `measured_kl` None where it was infinite."""

    density: float
    predicted_kl: float | None
    measured_kl: float | None


class Measured(Protocol):
    """A patch that was made and measured, and may be given up."""

    @property
    def kl(self) -> float:
        """Its divergence from the dense model in nats per example; infinite for a model that is broken."""

    def give_up(self) -> None:
        """It is not wanted."""


M = TypeVar("M", bound=Measured)


def smallest_density(survey: Survey, limit: float, attempt: Callable[[float], M]) -> tuple[float, M, tuple[Tried, ...]]:
    """A density, its patch and what was tried: at most `limit`, and within 15 % of a density that is above it.

    The draws of one seed are nested (what is kept at one density is kept at every larger one), so that the measured
    divergence falls about steadily; it is bisected on a logarithmic scale, each guess from the predicted curve, scaled
    by what the last measurement said of it.  At most eight patches are made.  Raises UsageError when none is below.
    """
    least, most = max(survey.least_density, 1 / max(1, survey.elements)), survey.full_density
    low, high, ratio = least, most, 1.0
    found: tuple[float, M] | None = None
    tried: list[Tried] = []
    guess = _predicted(survey, limit * _AIM) or (low * high) ** 0.5
    while len(tried) < _MOST_TRIES:
        guess = min(max(guess, low), high)
        if (guess <= low * 1.01 and tried) or guess >= high * 0.99:
            guess = (low * high) ** 0.5
        made = attempt(guess)
        expected = survey.expected_kl(guess)
        tried.append(Tried(guess, expected, made.kl if math.isfinite(made.kl) else None))
        if made.kl <= limit:
            if found is not None:
                found[1].give_up()
            found, high = (guess, made), guess
        else:
            made.give_up()
            low = guess
        if high <= low * _NEAR or high <= least * 1.01:
            break
        if not math.isfinite(made.kl):
            guess = (low * high) ** 0.5
            continue
        ratio = made.kl / expected if expected and made.kl > 0 else ratio
        # Without predictions: the divergence of a drawn patch falls about as its density grows.
        guess = _predicted(survey, limit * _AIM / ratio) or guess * made.kl / (limit * _AIM)
    if found is None:
        last = tried[-1]
        measured = "infinite" if last.measured_kl is None else f"{last.measured_kl:.3g}"
        raise UsageError(
            f"no density below {100 * most:.3g} % keeps the KL divergence under {limit:g}: "
            f"at {100 * last.density:.3g} % it is {measured}",
            hint="commit the whole change (`mgit commit -m …`), or allow a larger `--max-kl`",
        )
    return *found, tuple(tried)


def _predicted(survey: Survey, target: float) -> float | None:
    """The density at which the predicted divergence is `target`; None where nothing is predicted."""
    low, high = max(survey.least_density + 1 / survey.elements, 1e-6), survey.full_density
    if survey.expected_kl(1.0) is None or low >= high:
        return None
    for _ in range(40):
        middle = (low * high) ** 0.5
        expected = survey.expected_kl(middle)
        low, high = (middle, high) if expected is not None and expected > target else (low, middle)
    return high
