"""A sparse patch of a dense change, without training: which values to keep, and what to write in their place.

Keeping the largest values as they are (`top-k`) leaves an error in which everything that was dropped points back along
the fine-tune: a coherent error, for which a diagonal says nothing and of which a model falls apart.  Drawing the values
and dividing what is kept by its probability makes the patch unbiased, and its error incoherent:

    keep i with probability pi_i = min(1, c sqrt(F_i + eps) |d_i|),  write old_i + d_i / pi_i,  sum pi_i = the budget.

For a fixed budget these probabilities minimise E[1/2 sum F (patch - d)^2] = 1/2 sum F_i d_i^2 (1/pi_i - 1), the KL
divergence that the patch is expected to cost, where F is the diagonal of the true Fisher information at the new
weights: no labels are needed.  With pi constant this is DARE (Yu et al. 2024).

Everything is streamed: a window of a tensor and its float64 temporaries are held at a time, besides the Fisher diagonal
that the caller gives.  The draws are keyed by seed and tensor name and counted by element, so that neither windows nor
threads nor the order of tensors matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modelgit.errors import UsageError
from modelgit.fisher.changes import (
    IMPORTANCES,
    NEEDS_FISHER,
    Diagonal,
    Margins,
    Scale,
    TensorDelta,
    Window,
    can_be_drawn,
    windows,
)
from modelgit.fisher.mask import top_mask
from modelgit.fisher.scores import Scores
from modelgit.numerics.draws import uniform
from modelgit.numerics.ranking import BINS, histogram
from modelgit.progress import SILENT, Progress

__all__ = ["EPSILON", "SHRINKAGE", "Kept", "Plan", "Survey", "draw", "survey"]

EPSILON = 1e-1
"""What is added to the diagonal, in units of its mean: an estimate of a few hundred examples has zeros by chance."""

SHRINKAGE = 0.8
"""How far the diagonal of a matrix is drawn towards row mean times column mean, which have far less noise than its
elements: the factored second moments of Adafactor (Shazeer and Stern 2018), and exact where activations and gradients
are independent, as K-FAC supposes (Martens and Grosse 2015).  Only the probabilities use it."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a patch keeps of a dense change.

    Of `changed` values, `kept` are (`expected` were aimed at; `exact` of them, heads included, are as in the dense
    change).  `norm_share` is the part of the squared change that lies at kept positions, `fisher_share` the part of
    the changed diagonal there, None without one.  `predicted_kl` is 1/2 sum F d^2 (1/pi - 1) in nats per example; None
    without a diagonal, and for top-k, whose error is coherent.
    """

    elements: int
    changed: int
    kept: int
    expected: float
    exact: int
    norm_share: float
    fisher_share: float | None
    predicted_kl: float | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One look at a dense change: enough to say what a patch of any density would cost.

    `elements` counts all values of the model, `changed` those that differ, `whole` those of them that are taken as
    they are, of which `taken` are outside of `deltas`.  Histograms over the upper
    16 bits of the scores hold the counts and the sums of scores, of F d^2 and of F d^2 / score.
    """

    deltas: tuple[TensorDelta, ...]
    fisher: Diagonal | None
    elements: int
    changed: int
    whole: int
    taken: int
    scale: Scale
    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    costs: NDArray[np.float64]
    slopes: NDArray[np.float64]

    @property
    def least_density(self) -> float:
        """The density at which nothing but what is taken whole is kept."""
        return self.whole / max(1, self.elements)

    @property
    def full_density(self) -> float:
        """The density at which everything is kept."""
        return self.changed / max(1, self.elements)

    def budget(self, density: float) -> int:
        """How many values may be drawn beside what is taken whole.  Raises UsageError when that is less than none."""
        if not 0 < density <= 1:
            raise UsageError(f"a density of {density} is not above 0 and at most 1", hint="`--density 0.5%`")
        allowed = round(density * self.elements)
        if allowed < self.whole:
            raise UsageError(
                f"what is taken whole (the head) has {self.whole} changed values, and a density of {density:.4g} "
                f"allows {allowed} of {self.elements}",
                hint=f"`--density {min(1.0, self.least_density) * 100 + 0.01:.2f}%` is the least that keeps more",
            )
        return allowed - self.whole

    def expected_kl(self, density: float) -> float | None:
        """The predicted KL of a drawn patch, good to a few per cent, without another look; None without a diagonal."""
        budget = self.budget(density)
        if self.fisher is None or self.scale.importance.startswith("top-k"):
            return None
        used = np.flatnonzero(self.counts)[::-1]
        means = self.sums[used] / self.counts[used]
        threshold = _water_level(means, self.counts[used], budget)
        rest = used[means < threshold]
        if not np.isfinite(threshold):
            return float("inf")
        return max(0.0, 0.5 * float((threshold * self.slopes[rest] - self.costs[rest]).sum()))

    def plan(self, density: float, *, seed: int = 0, progress: Progress = SILENT) -> Plan:
        """The patch of a density: the exact threshold of its probabilities, or the positions of the largest scores.

        Raises UsageError for a density that what is taken whole does not leave room for.
        """
        budget = self.budget(density)
        if self.scale.importance.startswith("top-k"):
            return Plan(survey=self, seed=seed, budget=budget, threshold=0.0, positions=self._largest(budget))
        return Plan(survey=self, seed=seed, budget=budget, threshold=self._threshold(budget, progress))

    def _threshold(self, budget: int, progress: Progress) -> float:
        """t with sum min(1, score / t) = budget, exactly: one more look, at the scores of the bin that t lies in."""
        if budget <= 0:
            return float("inf")
        if budget >= int(self.counts.sum()):
            return 0.0
        with np.errstate(invalid="ignore"):  # the last bins are those of NaN, and empty
            edges = (np.arange(BINS, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
        from_top = np.cumsum(self.counts[::-1])[::-1]
        below = np.concatenate([[0.0], np.cumsum(self.sums)[:-1]])
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = from_top + np.where(below > 0, below / edges, 0.0)
        at = int(np.flatnonzero(expected >= budget)[-1])
        inside = np.zeros(BINS, np.int64)
        for window in self.body(progress) if self.counts[at] else ():
            bits = window.score[~window.forced].view(np.uint32)
            inside += histogram(bits[bits >> 16 == at], 0)
        low = np.flatnonzero(inside)[::-1]
        values = ((np.uint32(at) << np.uint32(16)) | low.astype(np.uint32)).view(np.float32).astype(np.float64)
        return _water_level(
            values, inside[low], budget - int(self.counts[at + 1 :].sum()), rest=float(self.sums[:at].sum())
        )

    def body(self, progress: Progress = SILENT) -> Iterator[Window]:
        """All values to draw from, tensors in the order of their names."""
        for delta in self.deltas:
            if not delta.whole:
                yield from windows(delta, self.scale, self.fisher, progress)

    def _largest(self, budget: int) -> dict[str, NDArray[np.int64]]:
        body = {delta.name: delta for delta in self.deltas if not delta.whole}
        total = sum(delta.spec.elements for delta in body.values())
        if not budget or not total:
            return {}

        def whole(name: str) -> NDArray[np.float32]:
            return np.concatenate([window.score for window in windows(body[name], self.scale, self.fisher, SILENT)])

        found = top_mask(
            Scores({name: (delta.spec.elements,) for name, delta in body.items()}, whole),
            density=min(1.0, budget / total),
        )
        return {
            name: np.arange(body[name].spec.elements, dtype=np.int64) if at is None else at
            for name, at in found.items()
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A patch: which values are kept with which probability, and the draws.

    A score of `threshold` or more is kept for certain, a lower one with the probability score / threshold; `positions`
    are kept in place of that where they are given.
    """

    survey: Survey
    seed: int
    budget: int
    threshold: float
    positions: dict[str, NDArray[np.int64]] | None = None

    def kept(self, *, progress: Progress = SILENT) -> Kept:
        """One pass over the change: what is kept of it, and what the rest is predicted to cost."""
        found = self.survey
        norm = np.zeros(2)
        mass = np.zeros(2)
        kept = exact = found.taken
        expected, cost = float(found.taken), 0.0
        for delta in found.deltas:
            for window in windows(delta, found.scale, found.fisher, progress):
                chosen, probability = self.choose(delta, window)
                changed = (window.delta != 0) | window.forced
                squares = np.where(window.forced, 0.0, window.delta * window.delta)
                norm += [float(squares[chosen].sum()), float(squares.sum())]
                kept += int(np.count_nonzero(chosen & changed))
                exact += int(np.count_nonzero(chosen & changed & (probability >= 1)))
                expected += float(probability[changed].sum())
                if window.fisher is None:
                    continue
                mass += [float(window.fisher[chosen & changed].sum()), float(window.fisher[changed].sum())]
                open_ = (probability > 0) & (probability < 1)
                cost += float((window.fisher[open_] * squares[open_] * (1 / probability[open_] - 1)).sum())
        drawn = found.fisher is not None and self.positions is None
        return Kept(
            elements=found.elements,
            changed=found.changed,
            kept=kept,
            expected=expected,
            exact=exact,
            norm_share=float(norm[0] / norm[1]) if norm[1] else 1.0,
            fisher_share=float(mass[0] / mass[1]) if found.fisher is not None and mass[1] else None,
            predicted_kl=0.5 * cost if drawn else None,
        )

    def choose(self, delta: TensorDelta, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Which elements of a window are kept, and with which probability they were."""
        size = window.delta.size
        if delta.whole:
            return np.ones(size, np.bool_), np.ones(size)
        if self.positions is not None:
            chosen = np.zeros(size, np.bool_)
            at = self.positions.get(delta.name, np.empty(0, np.int64))
            low, high = np.searchsorted(at, [window.first, window.first + size])
            chosen[at[low:high] - window.first] = True
            chosen |= window.forced
            return chosen, chosen.astype(np.float64)
        probability = window.score.astype(np.float64)
        if self.threshold > 0:
            np.minimum(probability / self.threshold, 1.0, out=probability)
        else:
            probability = (probability > 0).astype(np.float64)
        probability[window.forced] = 1.0
        return draw(self.seed, delta.name, "", window.first, size) < probability, probability


def survey(
    deltas: Sequence[TensorDelta],
    *,
    elements: int,
    taken: int = 0,
    importance: str = "fisher",
    fisher: Diagonal | None = None,
    epsilon: float = EPSILON,
    shrinkage: float = SHRINKAGE,
    progress: Progress = SILENT,
) -> Survey:
    """Look at a dense change of a model of `elements` values: two passes.

    `taken` counts values outside of `deltas` that are taken whole and counted (a head that is new).

    `epsilon` and `shrinkage` steady a diagonal estimated from few examples (see `EPSILON`, `SHRINKAGE`); the prediction
    of what a patch costs uses it as it is.  A tensor without a diagonal is ranked as if it had the mean one everywhere.
    Nothing but ratios counts: a change and a model of any scale give the same patch.  Raises UsageError for an unknown
    importance, for one that needs a diagonal without one, and for a diagonal that is zero or does not fit.
    """
    if importance not in IMPORTANCES:
        raise UsageError(f"no importance `{importance}`", hint=f"known: {', '.join(IMPORTANCES)}")
    if importance in NEEDS_FISHER and fisher is None:
        raise UsageError(f"the importance `{importance}` needs a Fisher estimate", hint="`--importance magnitude`")
    ordered = tuple(sorted(deltas, key=lambda delta: delta.name))
    _check(ordered, fisher)
    blank = Scale(importance="magnitude", mean_fisher=0.0, floor=0.0, factor=1.0)
    changed = whole = covered = 0
    largest = total = peak = 0.0
    progress.start("survey", 2 * len(ordered), unit="tensors")
    for delta in ordered:
        for window in windows(delta, blank, fisher, progress):
            different = (window.delta != 0) | window.forced
            count = int(np.count_nonzero(different))
            changed += count
            whole += count if delta.whole else int(np.count_nonzero(window.forced))
            if delta.whole:
                continue
            largest = max(largest, float(np.abs(window.delta[~window.forced]).max(initial=0.0)))
            if window.fisher is not None:
                covered += window.fisher.size
                total += float(window.fisher.sum())
                peak = max(peak, float(window.fisher.max(initial=0.0)))
        progress.advance("survey", 1)
    mean = total / covered if covered else 0.0
    if importance in NEEDS_FISHER and any(not delta.whole for delta in ordered) and not mean > 0:
        raise UsageError(
            "the Fisher information of what changed is zero: the task does not depend on it",
            hint="`--importance magnitude` needs no task",
        )
    margins: dict[str, Margins] = {}
    if importance == "fisher" and fisher is not None and shrinkage:
        drawn_from = [delta.name for delta in ordered if delta.name in fisher and not delta.whole]
        found = {name: Margins.of(fisher[name]) for name in drawn_from}
        margins = {name: item for name, item in found.items() if item is not None}
    peak = max(peak, *(item.largest for item in margins.values()), 0.0)
    scale = Scale(
        importance=importance,
        mean_fisher=mean,
        floor=epsilon * mean,
        factor=1.0,
        shrinkage=shrinkage,
        margins=margins,
    )
    top = {"uniform": 1.0, "magnitude": largest, "top-k": largest}.get(
        importance, float(np.sqrt(peak + scale.floor)) * largest
    )
    # A power of two: nothing is rounded, and scores keep clear of the ends of float32.
    factor = float(np.ldexp(1.0, -int(np.frexp(top)[1]))) if top > 0 else 1.0
    scale = replace(scale, factor=factor)
    counts = np.zeros(BINS, np.int64)
    sums, costs, slopes = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for delta in ordered:
        for window in windows(delta, scale, fisher, progress) if not delta.whole else ():
            score = window.score[~window.forced]
            bins = (score.view(np.uint32) >> 16).astype(np.intp)
            counts += np.bincount(bins[score > 0], minlength=BINS)
            sums += np.bincount(bins, weights=score.astype(np.float64), minlength=BINS)
            if window.fisher is not None:
                cost = (window.fisher * window.delta * window.delta)[~window.forced]
                costs += np.bincount(bins, weights=cost, minlength=BINS)
                slope = np.divide(cost, score, out=np.zeros_like(cost), where=score > 0)
                slopes += np.bincount(bins, weights=slope, minlength=BINS)
        progress.advance("survey", 1)
    progress.finish("survey")
    return Survey(
        deltas=ordered,
        fisher=fisher,
        elements=elements,
        changed=changed + taken,
        whole=whole + taken,
        taken=taken,
        scale=scale,
        counts=counts,
        sums=sums,
        costs=costs,
        slopes=slopes,
    )


def _water_level(values: NDArray[np.float64], counts: NDArray[np.int64], budget: int, *, rest: float = 0.0) -> float:
    """t with sum counts min(1, values / t) + rest / t = budget, for descending values, all above what `rest` sums up.

    0 when everything fits, infinite for an empty budget.
    """
    if budget <= 0:
        return float("inf")
    certain = np.concatenate([[0], np.cumsum(counts)])
    masses = np.concatenate([np.cumsum((counts * values)[::-1])[::-1], [0.0]]) + rest
    left = budget - certain
    bounds = np.append(values, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(left > 0, masses / left, 0.0)
    # The first number of certain values that leaves nothing above the level among the others.
    fits = (levels >= bounds) & (left > 0)
    if fits.any():
        return float(levels[int(np.argmax(fits))])
    return float(values[-1]) if rest > 0 and len(values) else 0.0


def _check(deltas: Sequence[TensorDelta], fisher: Diagonal | None) -> None:
    names = [delta.name for delta in deltas]
    if len(set(names)) != len(names):
        raise UsageError("a tensor is named twice in one change")
    for delta in deltas:
        if not can_be_drawn(delta.spec):
            raise UsageError(f"tensor `{delta.name}` holds {delta.spec.dtype}, of which no values can be drawn")
        if fisher is not None and delta.name in fisher and tuple(fisher[delta.name].shape) != delta.spec.shape:
            raise UsageError(f"tensor `{delta.name}` has another shape than its Fisher estimate")


def draw(seed: int, name: str, purpose: str, first: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for `count` elements from `first` on, the same whatever was drawn before."""
    return uniform(f"patch:{seed}:{purpose}:{name}", first, count)
