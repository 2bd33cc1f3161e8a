"""A candidate and a baseline on the same labelled examples: who is right where, drawn or in full."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.drawing import Draw, Units, draw_until_decided, fragile_first
from modelgit.evals.predictions import Predictions
from modelgit.objects import Flip

__all__ = ["Pair", "label_name", "predictions_at", "right_at"]

# Between two looks at the clock.
_CHUNK = 512


def predictions_at(run: SuiteRun, side: Side, data: Dataset, indices: NDArray[np.int64]) -> Predictions:
    """Predictions at ascending `indices`, computed in pieces where the suite has a budget.

    Raises BudgetSpent when its time is over; what was computed by then is kept.
    """
    if run.settings.budget is not None and not side.complete(data):
        for start in range(0, indices.size, _CHUNK):
            run.check()
            side.predictions(data, indices[start : start + _CHUNK])
    return side.predictions(data, indices)


def right_at(run: SuiteRun, side: Side, data: Dataset, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the side predicts the label, for ascending `indices`."""
    right: NDArray[np.bool_] = predictions_at(run, side, data, indices).labels == data.labels[indices]
    return right


class Pair:
    """The labelled examples of `data` on both sides of a comparison.

    `order` are their positions in drawing order, `positions` the same ascending, `total` how many they are.
    `right_before` counts those that the baseline has right, None while its predictions are not all known.  Flips that
    an acceptance lets happen in `test` are no flips here.
    """

    def __init__(self, run: SuiteRun, data: Dataset, baseline: Side, *, test: str = "") -> None:
        self.run = run
        self.test = test
        self.data = data
        self.baseline = baseline
        order = run.order(data)
        self.order = order[data.labels[order] >= 0]
        self.positions = np.sort(self.order)
        self.total = int(self.order.size)
        self.right_before: int | None = None
        self._strata = [self.order]
        if baseline.complete(data):
            # Only what was right can flip, and what was right by a small margin flips first.
            known = baseline.predictions(data, self.positions)
            right = known.labels == data.labels[self.positions]
            self.right_before = int(np.count_nonzero(right))
            self._strata = self._split(self.positions[right], known.margins[right])

    def _split(self, indices: NDArray[np.int64], margins: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """The examples that can flip, in drawing order; fragile ones apart when sampling is adaptive."""
        parts = [indices]
        if self.run.settings.sampling == "adaptive":
            parts = [indices[positions] for positions in fragile_first(margins)]
        return [self.order[np.isin(self.order, part)] for part in parts]

    def draw(self, allowed: Sequence[int], *, alpha_fail: float) -> Draw:
        """Draw examples until it is decided whether each number of negative flips in `allowed` holds."""
        return draw_until_decided(
            self._strata,
            allowed,
            self.flips_at,
            alpha=self.run.settings.alpha,
            alpha_fail=alpha_fail,
            in_turn=self.run.fail_fast,
            deadline=self.run.deadline,
            progress=self.run.progress,
        )

    def draw_slice(self, inside: NDArray[np.bool_], allowed: int, *, alpha_fail: float) -> Draw:
        """Draw among the examples of a slice (bool over all of the data) in one stratum.

        Other slices may have looked at some of them before.  That is harmless as long as they are counted in their own
        order: the error is bounded at all numbers of draws at once.
        """
        order = np.concatenate(self._strata) if self.right_before is not None else self.order
        order = self.order[np.isin(self.order, order) & inside[self.order]]
        return draw_until_decided(
            [order],
            [allowed],
            self.flips_at,
            alpha=self.run.settings.alpha,
            alpha_fail=alpha_fail,
            deadline=self.run.deadline,
            progress=self.run.progress,
        )

    def units(self) -> Units:
        """The labelled examples as what is drawn: one by one, or by clusters."""
        return Units(self.order, self.data.clusters, seed=self.run.settings.seed, suite=self.run.identity)

    def changes_at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(right before, right now) as 0 or 1, of positions in any order."""
        ascending = np.sort(positions)
        place = np.searchsorted(ascending, positions)
        before = right_at(self.run, self.baseline, self.data, ascending)[place]
        after = right_at(self.run, self.run.candidate, self.data, ascending)[place]
        return before.astype(np.int64), after.astype(np.int64)

    def flips_at(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the examples at ascending `indices` went from right to wrong."""
        wrong: NDArray[np.bool_] = ~right_at(self.run, self.run.candidate, self.data, indices)
        if self.right_before is None:
            wrong &= right_at(self.run, self.baseline, self.data, indices)
        return self.run.counted(self.test, self.data, wrong, indices)

    def flips(self) -> NDArray[np.bool_]:
        """Which of the examples of `positions` went from right to wrong."""
        before, after = self.outcomes()
        return self.run.counted(self.test, self.data, before & ~after, self.positions)

    def outcomes(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(right before, right now) for every example of `positions`."""
        return (
            right_at(self.run, self.baseline, self.data, self.positions),
            right_at(self.run, self.run.candidate, self.data, self.positions),
        )

    def note_flips(self, test: str, indices: NDArray[np.int64]) -> None:
        """Keep the first negative flips for reports, each once; all `indices` were evaluated, and flipped."""
        room = self.run.show_flips - sum(flip.test == test for flip in self.run.flips)
        known = {flip.example for flip in self.run.flips if (flip.test, flip.against) == (test, self.baseline.name)}
        new = [index for index in indices.tolist() if self.data.examples[index].id not in known]
        chosen = np.array(new[: max(0, room)], dtype=np.int64)
        if not chosen.size:
            return
        before = self.baseline.predictions(self.data, chosen).labels
        after = self.run.candidate.predictions(self.data, chosen).labels
        names = self.data.task.labels
        for position, old, new in zip(chosen.tolist(), before.tolist(), after.tolist(), strict=True):
            self.run.flips.append(
                Flip(
                    test=test,
                    example=self.data.examples[position].id,
                    gold=label_name(names, int(self.data.labels[position])),
                    before=label_name(names, old),
                    after=label_name(names, new),
                    against=self.baseline.name,
                )
            )


def label_name(names: Sequence[str], label: int) -> str:
    """A class by its name, or by its number; "NaN" where the model computed none."""
    if label < 0:
        return "NaN"
    return names[label] if label < len(names) else str(label)
