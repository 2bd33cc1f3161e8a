"""Old against new: the measured divergence, the form that predicts it, and which of the two may be believed."""

from __future__ import annotations

from dataclasses import dataclass

from modelgit.fisher.directional import Directional, directional, share_equal, take_change
from modelgit.fisher.kl import Measured, measure
from modelgit.models.base import ExampleSet, Likelihood, TaskModel
from modelgit.progress import SILENT, Progress

__all__ = ["DIAGONAL_FACTOR", "LOCAL_ERROR", "LOCAL_KL", "Behaviour", "behaviour", "diagonal_note"]

LOCAL_KL = 0.05
"""Above this measured KL, in nats per output, a quadratic form says nothing: the measured number counts."""
LOCAL_ERROR = 0.25
"""The form stands in for the measurement while the two differ by no more than this share of it."""
DIAGONAL_FACTOR = 2.0
"""The diagonal is believed while it is within this factor of the directional form."""
# Outputs in float32 carry an error near 1e-6, which alone makes a divergence of its square.
_RESOLVED_KL = 1e-11


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a change does to the outputs on `examples` inputs.

    `measured` is None where the outputs do not compare, `directional` None where no weight does.  `reliable` says
    whether the form holds here: the measured KL is at most 0.05 nats per output and the two differ by at most a
    quarter.  `notes` are sentences about everything that limits the numbers.
    """

    examples: int
    likelihood: Likelihood
    measured: Measured | None
    directional: Directional | None
    reliable: bool
    notes: tuple[str, ...]


def behaviour(
    old: TaskModel,
    new: TaskModel,
    examples: ExampleSet,
    *,
    limit: int | None = 512,
    progress: Progress = SILENT,
) -> Behaviour:
    """Compare two models on the first `limit` examples: five forward passes and a backward pass, about.

    `new` is used up: the change is written over its weights, so that two models are held at most, and it cannot be run
    afterwards; `old` is left as it was.  Raises UsageError when the models cannot be run on the examples, CheckFailed
    when their outputs are not finite.
    """
    notes: list[str] = []
    share_equal(old, new)
    measured = None
    if (old.likelihood, old.classes) == (new.likelihood, new.classes):
        measured = measure(old, new, examples, limit=limit, progress=progress)
    else:
        sides = " and ".join(f"{model.classes} {model.likelihood} outputs" for model in (old, new))
        notes.append(f"the outputs do not compare ({sides}), so no divergence was measured")
    change = take_change(old, new)
    found = None
    if change.deltas or not change.apart:
        found = directional(old, change, examples, limit=limit, progress=progress)
        if found.note is not None:
            notes.append(found.note)
    if change.apart:
        notes.append(
            f"the directional form leaves out {_some(change.apart)}, on one side only or of another shape: "
            "it covers the tensors that compare"
        )
    if change.buffers:
        notes.append(f"the directional form leaves out {_some(change.buffers)}: statistics, not weights")
    return Behaviour(
        examples=len(examples) if limit is None else min(limit, len(examples)),
        likelihood=old.likelihood,
        measured=measured,
        directional=found,
        reliable=_holds(measured, found, notes),
        notes=tuple(notes),
    )


def _holds(measured: Measured | None, found: Directional | None, notes: list[str]) -> bool:
    """Whether the form may stand in for the measurement; says why not."""
    if measured is None or found is None:
        return False
    if max(measured.kl_per_output, found.kl / max(1, measured.outputs) * measured.examples) < _RESOLVED_KL:
        if found.kl > 0:
            notes.append("the divergence is below what outputs in float32 show: the form counts")
        return True
    if measured.kl_per_output > LOCAL_KL:
        notes.append(
            f"the change is large (over {LOCAL_KL} nats per output), where no quadratic form holds: what was measured "
            "counts"
        )
        return False
    if abs(found.kl - measured.kl) > LOCAL_ERROR * measured.kl:
        notes.append("the directional form and the measurement differ by over a quarter: what was measured counts")
        return False
    return True


def diagonal_note(diagonal: float, directional_kl: float, *, same_data: bool = True) -> str | None:
    """Why the diagonal form 1/2 sum F d^2 must not be shown, or None where it is within a factor of two.

    `same_data` says whether F was estimated on the data of the directional form.
    """
    if diagonal == directional_kl == 0:
        return None
    low, high = sorted((diagonal, directional_kl))
    if low > 0 and high <= DIAGONAL_FACTOR * low:
        return None
    factor = (
        f"{high / low:,.3g} times"
        if low > 0 and high < 100 * low
        else f"{high / low:,.0f} times"
        if low > 0
        else "infinitely"
    )
    which = "lower" if diagonal < directional_kl else "higher"
    # On data that a model was fitted to, its Fisher information is up to some ten times smaller than on others.
    data = "" if same_data else ", and the Fisher information is that of other data"
    return (
        f"the diagonal form is not shown: it is {factor} {which} than the directional one, as where the parts of a "
        f"change act together, which it leaves out{data}"
    )


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - 1
    return f"`{names[0]}`" + (f" and {more:,} more" if more else "")
