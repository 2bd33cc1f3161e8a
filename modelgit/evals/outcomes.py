"""What a test's own program found: metrics and scores of examples, read strictly from JSON."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from modelgit.errors import CheckFailed

__all__ = ["NAMELESS", "Outcome", "parse_outcome"]

NAMELESS = "score"
"""What a single number is called that came without a name."""

_MAX_METRICS = 1000
_MAX_EXAMPLES = 10_000_000
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class _Scored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: _Name | int
    score: float | bool


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    metrics: dict[_Name, float | bool] = {}
    examples: list[_Scored] = []


class Outcome(msgspec.Struct, frozen=True):
    """Metrics by name, and the scores of examples by their ids (1 and 0 for right and wrong)."""

    metrics: dict[str, float]
    scores: dict[str, float]

    @property
    def mean_score(self) -> float | None:
        """The mean of the scores; None without any."""
        return math.fsum(self.scores.values()) / len(self.scores) if self.scores else None

    def plain(self) -> dict[str, Any]:
        """As JSON that `known` reads."""
        return {"metrics": self.metrics, "scores": self.scores}

    def metric(self, name: str, *, only: bool) -> float | None:
        """The metric `name`; None when it was not given.

        With `only` (the test asks for no other) a number without a name and the mean of scores are it, too.
        """
        if name in self.metrics:
            return self.metrics[name]
        if only and set(self.metrics) == {NAMELESS}:
            return self.metrics[NAMELESS]
        return self.mean_score if only and not self.metrics else None


def parse_outcome(data: bytes, *, what: str) -> Outcome:
    """One JSON object {"metrics": {NAME: NUMBER}, "examples": [{"id": ID, "score": NUMBER}]}, either may be absent.

    Raises CheckFailed, which calls the program `what`, for anything else: other keys, an id that occurs twice, a
    number that is not finite, text before or after the object.
    """
    hint = 'print one JSON object {"metrics": {"NAME": 0.5}, "examples": [{"id": "1", "score": 1}]} and nothing else'
    try:
        written = msgspec.json.decode(data, type=_Written)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        start = data[:60].decode("utf-8", errors="replace").strip()
        raise CheckFailed(f"{what} gave no outcome ({error}): {start!a}", hint=hint) from error
    if not written.metrics and not written.examples:
        raise CheckFailed(f"{what} gave neither metrics nor examples", hint=hint)
    if len(written.metrics) > _MAX_METRICS or len(written.examples) > _MAX_EXAMPLES:
        raise CheckFailed(f"{what} gave {len(written.metrics):,} metrics and {len(written.examples):,} examples")
    scores: dict[str, float] = {}
    for example in written.examples:
        name = str(example.id)
        if name in scores:
            raise CheckFailed(f"{what} gave the example `{name}` twice", hint="give each example an id of its own")
        scores[name] = float(example.score)
    metrics = {name: float(value) for name, value in written.metrics.items()}
    for name, value in (*metrics.items(), *scores.items()):
        if not math.isfinite(value):
            raise CheckFailed(f"{what} gave {value} for `{name}`, which is no number")
    return Outcome(metrics, scores)
