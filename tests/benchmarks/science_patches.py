"""Sparse patches of a dense fine-tune without training: what do they keep, and is their cost predicted?

Everything is drawn against the published weights and compared with the dense fine-tune of seed 0.  The Fisher
information is that of the dense weights on 400 validation texts without their labels; the constant that is added to it,
and whether it is drawn towards its margins, are chosen by the divergence on the other validation texts.  Figures are of
the test texts, means over the seeds 0, 1 and 2 of the draws; the head is taken whole and counted.  "Best of 4" is what
`commit --draws 4` takes: of four draws for each seed that with the least divergence on the 400 validation texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from parts import Plan, side_by_side
from science_data import TASKS, Task, dense, logits_of, new_model, science_task, weights_of
from table import Row

from modelgit.fisher.changes import TensorDelta
from modelgit.fisher.estimate import estimate
from modelgit.fisher.patched import PatchedTensor
from modelgit.fisher.sparsify import EPSILON, SHRINKAGE, Survey, survey
from modelgit.models.base import ExampleSet, TaskModel
from modelgit.objects import TensorSpec

__all__ = ["rows"]

SEEDS = (0, 1, 2)
DENSITIES = (0.001, 0.005)
_EPSILONS = (1e-3, 1e-2, 1e-1, 3e-1)
_DRAWS = 4
_INPUTS = 400


class _Held:
    """A tensor in memory as raw bytes."""

    def __init__(self, values: torch.Tensor) -> None:
        self._data = memoryview(np.ascontiguousarray(values.numpy(), "<f4").reshape(-1).view(np.uint8))

    def read(self, start: int, stop: int) -> memoryview:
        """A slice."""
        return self._data[start:stop]


class _Case(NamedTuple):
    """A dense fine-tune to be reduced, with a model that patches are tried in."""

    task: Task
    deltas: tuple[TensorDelta, ...]
    fisher: Mapping[str, NDArray[np.float32]]
    trial: TaskModel
    logits: Mapping[str, torch.Tensor]

    def survey(self, importance: str, steadied: tuple[float, float] = (EPSILON, SHRINKAGE)) -> Survey:
        elements = sum(delta.spec.elements for delta in self.deltas)
        epsilon, shrinkage = steadied
        return survey(
            self.deltas,
            elements=elements,
            importance=importance,
            fisher=self.fisher,
            epsilon=epsilon,
            shrinkage=shrinkage,
        )


class _Outcome(NamedTuple):
    accuracy: float
    kl: float
    predicted: float | None


def rows(plan: Plan) -> Iterator[Row]:
    """Both tasks: the constant, then patches of two sizes by every importance."""
    for found in side_by_side(_rows_of, plan, TASKS[:1] if plan.quick else TASKS):
        yield from found


def _rows_of(plan: Plan, name: str) -> list[Row]:
    return list(_task(plan, name))


def _task(plan: Plan, name: str) -> Iterator[Row]:
    task = science_task(name, quick=plan.quick)
    tuned, trial = dense(plan, task), new_model(task)
    before, after = weights_of(trial), weights_of(tuned)
    head = {tuned.tensor_of[parameter] for parameter in tuned.head}
    deltas = tuple(
        TensorDelta(
            tensor, TensorSpec(dtype="F32", shape=tuple(new.shape)), _Held(before[tensor]), _Held(new), tensor in head
        )
        for tensor, new in after.items()
    )
    inputs = min(_INPUTS, len(task.validation) // 2 if plan.quick else _INPUTS)
    known = task.validation.select(range(inputs))
    found = estimate(tuned, known, estimator="rademacher", limit=None, seed=0)
    rest = task.validation.select(range(inputs, len(task.validation)))
    sets = {"known": known, "rest": rest, "test": task.test}
    case = _Case(task, deltas, found.values, trial, {key: logits_of(tuned, data) for key, data in sets.items()})
    group = f"Patches without training ({name}, full MiniLM, 22.6 M weights)"
    whole = _right(case.logits["test"], task.test)
    yield Row(group, "dense accuracy", whole, "%", note=f"{len(task.test)} test texts")
    chosen = yield from _steadied(case, group, rest)
    seeds = SEEDS[:1] if plan.quick else SEEDS
    for density in DENSITIES:
        outcomes: dict[str, list[_Outcome]] = {}
        for importance in ("fisher", "magnitude", "uniform"):
            look = case.survey(importance, chosen)
            outcomes[importance] = [_outcome(case, look, density, seed, task.test, "test") for seed in seeds]
        mean = {key: float(np.mean([item.accuracy for item in items])) for key, items in outcomes.items()}
        shown = f"{100 * density:g} % kept"
        kept = 100 * mean["fisher"] / whole
        if density == min(DENSITIES):
            best = [_best_draw(case, case.survey("fisher", chosen), density, seed, known) for seed in seeds]
            reached = float(np.mean([item.accuracy for item in best]))
            yield Row(group, f"{shown}, by Fisher and size, best of {_DRAWS}: accuracy kept", 100 * reached / whole,
                      "%", 95.0, note=f"{reached:.1f} %; {_list(item.accuracy for item in best)}")  # fmt: skip
        yield Row(group, f"{shown}, by Fisher and size, one draw: accuracy kept", kept, "%",
                  98.0 if density == max(DENSITIES) else None,
                  note=f"{mean['fisher']:.1f} %; {_list(item.accuracy for item in outcomes['fisher'])}")  # fmt: skip
        yield Row(
            group, f"{shown}, by size alone", 100 * mean["magnitude"] / whole, "%", note=f"{mean['magnitude']:.1f} %"
        )
        lead = mean["fisher"] - mean["uniform"]
        yield Row(
            group, f"{shown}, all alike (DARE)", 100 * mean["uniform"] / whole, "%", note=f"{mean['uniform']:.1f} %"
        )
        yield Row(group, f"{shown}: lead over DARE", lead, "pt", 8.0 if density == 0.001 else None)
        for importance, items in outcomes.items():
            measured = float(np.mean([item.kl for item in items]))
            predicted = float(np.mean([item.predicted or 0.0 for item in items]))
            # The diagonal is a forecast for small changes: it is held to its bar where the divergence is below 0.05.
            ratio = max(measured / predicted, predicted / measured)
            held = 2.0 if importance == "fisher" and measured < 0.05 else None
            yield Row(group, f"{shown}, {importance}: measured against predicted KL", ratio, "x", held, "at most",
                      f"{measured:.4f} measured, {predicted:.4f} predicted")  # fmt: skip
    for importance in ("top-k", "top-k-fisher"):
        got = _outcome(case, case.survey(importance), 0.005, 0, task.test, "test")
        yield Row(group, f"0.5 % kept, {importance}", 100 * got.accuracy / whole, "%", note=f"KL {got.kl:.2f}")


def _steadied(case: _Case, group: str, rest: ExampleSet) -> Iterator[Row]:
    """The constant and the shrinkage with the least divergence on validation texts, over both sizes; returns them."""
    scores: dict[tuple[float, float], float] = {}
    for shrinkage in (0.0, SHRINKAGE):
        for epsilon in _EPSILONS:
            look = case.survey("fisher", (epsilon, shrinkage))
            kls = [_outcome(case, look, density, 0, rest, "rest").kl for density in DENSITIES]
            scores[epsilon, shrinkage] = float(np.log(kls).mean())
            drawn = f", drawn {100 * shrinkage:g} % towards its margins" if shrinkage else ""
            yield Row(group, f"KL on validation texts, constant {epsilon:g} of the mean{drawn}", kls[0], "nats",
                      note=f"at 0.1 %; {kls[1]:.4f} at 0.5 %")  # fmt: skip
    return min(scores, key=lambda settings: scores[settings])


def _best_draw(case: _Case, look: Survey, density: float, seed: int, known: ExampleSet) -> _Outcome:
    """Of draws that no other seed has, the one with the least divergence on the texts that the diagonal is of."""
    draws = range(seed * _DRAWS, (seed + 1) * _DRAWS)
    costs = {draw: _outcome(case, look, density, draw, known, "known").kl for draw in draws}
    return _outcome(case, look, density, min(draws, key=lambda draw: costs[draw]), case.task.test, "test")


@torch.no_grad()
def _outcome(case: _Case, look: Survey, density: float, seed: int, data: ExampleSet, where: str) -> _Outcome:
    made = look.plan(density, seed=seed)
    for name, parameter in case.trial.module.named_parameters():
        parameter.copy_(torch.from_numpy(PatchedTensor(made, case.trial.tensor_of[name]).float32()))
    got, wanted = logits_of(case.trial, data).double().log_softmax(1), case.logits[where].double().log_softmax(1)
    kl = float((wanted.exp() * (wanted - got)).sum(1).mean())
    return _Outcome(_right(got, data), kl, made.kept().predicted_kl)


def _right(logits: torch.Tensor, data: ExampleSet) -> float:
    labels = torch.tensor([example.label for example in data.examples])
    return float((logits.argmax(1) == labels).double().mean()) * 100


def _list(values: Iterator[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)
