"""How a commit of a sparse patch reads in a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from modelgit.cli._format import plural, size
from modelgit.cli._output import Output, plain_data
from modelgit.errors import UsageError
from modelgit.reporting.wording import amount, change, points, share

if TYPE_CHECKING:
    from modelgit.repo.patches.density import Reduced
    from modelgit.repo.patches.density_judge import Compared

__all__ = ["parse_share", "reduced_data", "say_reduced"]

RESCUE_DAYS = 7
LARGE_KL = 0.1
"""In nats for each output: above this, a patch has lost what a mask that is trained again would keep."""


def parse_share(text: str, *, hint: str) -> float:
    """`0.5%` or `0.005`.  Raises UsageError with `hint` for anything that is not above 0 and at most 1."""
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UsageError(f"not a density: {text[:40]!r}", hint=hint)
    return value


def reduced_data(reduced: Reduced) -> dict[str, object]:
    """The same for `--json`: everything but the commit."""
    return {
        "model": reduced.model,
        "density": reduced.density,
        "importance": reduced.importance,
        "seed": reduced.seed,
        "draw": reduced.draw,
        "draws": list(reduced.draws),
        "task": reduced.task,
        "fisher": reduced.fisher,
        "kept": asdict(reduced.kept),
        "exact": list(reduced.exact),
        "measured": None if reduced.compared is None else plain_data(reduced.compared),
        "note": reduced.note,
        "tried": [plain_data(tried) for tried in reduced.tried],
        "bytes_patch": reduced.bytes_patch,
        "bytes_dense": reduced.bytes_dense,
        "rescued": None if reduced.rescued is None else str(reduced.rescued),
    }


def say_reduced(output: Output, reduced: Reduced) -> None:
    """What was kept and dropped, what that costs, and where the dense weights are."""
    kept = reduced.kept
    for tried in reduced.tried:
        predicted = "" if tried.predicted_kl is None else f", predicted {change(tried.predicted_kl)}"
        measured = "infinite" if tried.measured_kl is None else f"{change(tried.measured_kl)} nats"
        output.say(f"  tried {_density(tried.density)}: KL {measured} measured{predicted}")
    drawn = f", seed {reduced.seed}" if not reduced.importance.startswith("top-k") else ""
    if reduced.draws:
        drawn += f", draw {reduced.draw} of {len(reduced.draws)}"
    dropped = kept.changed - kept.kept
    output.say(
        f"  kept {amount(kept.kept)} of {amount(kept.changed)} changed values "
        f"({share(kept.kept, kept.elements)} of {amount(kept.elements)}) by {reduced.importance}{drawn}; "
        f"{amount(dropped)} dropped"
    )
    mass = "" if kept.fisher_share is None else f" and {share(kept.fisher_share, 1)} of its Fisher information"
    output.say(f"  they hold {share(kept.norm_share, 1)} of the squared change{mass}")
    if reduced.draws:
        known = [cost for cost in reduced.draws if cost is not None]
        broken = len(reduced.draws) - len(known)
        spread = f"{change(min(known))} to {change(max(known))} nats" if known else "an infinite divergence"
        lost = f", {broken} of them break the model" if broken and known else ""
        output.say(f"  the draws cost {spread} on other inputs{lost}; the cheapest is taken")
    if reduced.exact:
        output.say(f"  {plural(len(reduced.exact), 'tensor')} taken whole: new, of another shape, or no floats")
    if reduced.compared is not None:
        output.say(f"  {_divergence(reduced, reduced.compared)}")
        if (line := _accuracy(reduced.compared)) is not None:
            output.say(f"  {line}")
    elif reduced.note is not None:
        output.say(f"  not measured: {reduced.note}")
    output.say(
        f"  weights {size(reduced.bytes_patch)}, {share(reduced.bytes_patch, reduced.bytes_dense)} of the "
        f"{size(reduced.bytes_dense)} that all of the change takes"
    )
    if reduced.rescued is not None:
        kept_in = "/".join(reduced.rescued.parts[-3:])
        output.say(
            f"The work tree now holds the patched model; the dense weights are in {kept_in} for {RESCUE_DAYS} days."
        )
        output.say("hint: `mgit undo` takes the commit back and puts them into the work tree again, bit for bit")
    compared = reduced.compared
    if compared is not None and compared.kl * compared.examples > LARGE_KL * compared.outputs:
        output.say(
            f"hint: {_density(reduced.density)} trained again under a mask keeps more: commit the dense weights on a "
            f"branch, then `mgit mask create --density {100 * reduced.density:.3g}% --from-diff main..BRANCH`"
        )


def _density(value: float) -> str:
    return f"{100 * value:.3g} %"


def _divergence(reduced: Reduced, compared: Compared) -> str:
    predicted = reduced.kept.predicted_kl
    words = f"KL to the dense model {change(compared.kl)} nats"
    if compared.outputs > compared.examples:
        words += f" for each input, {change(compared.kl * compared.examples / compared.outputs)} for each output"
    words += f", measured on {plural(compared.examples, 'input')}"
    if predicted is not None:
        words += f"; predicted {change(predicted)}"
    elif reduced.importance.startswith("top-k"):
        words += "; not predicted: what top-k drops points one way, and the diagonal misses that"
    return words


def _accuracy(compared: Compared) -> str | None:
    if not compared.labelled:
        return f"same answer on {share(compared.agreement, 1)}" if compared.agreement else None
    dense, patched = (right / compared.labelled for right in (compared.dense_correct, compared.patched_correct))
    return (
        f"accuracy {100 * patched:.1f} %, dense {100 * dense:.1f} % ({points(patched - dense)}) on "
        f"{compared.labelled} labelled; same answer on {share(compared.agreement, 1)}"
    )
