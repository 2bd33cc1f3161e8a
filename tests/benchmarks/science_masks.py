"""FISH masks against a dense fine-tune, and beside random, bias-only and post-hoc masks with rates of their own.

Every run trains from the published encoder and a head drawn by its seed, 3 epochs of AdamW in batches of 16, the head
whole and counted.  FISH ranks by the Fisher information at the start (512 training texts, the default estimator);
"post-hoc" by F·δ² of the dense fine-tune with the same seed.  The full model has seed 0, the upper three layers seeds
0 to 2.  `BEST` has the rates that are best on validation texts with seed 0, ties going to the smaller one: of the first
two of `GRID`, on reviews with the upper layers of all three.

    python tests/benchmarks/science_masks.py TASK KIND    prints what every rate of the grid gives there
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from parts import Plan, side_by_side
from science_data import (
    EPOCHS,
    KINDS,
    RATES,
    TASKS,
    Kind,
    Task,
    accuracy,
    dense,
    fine_tune,
    new_model,
    science_task,
    weights_of,
)
from table import Row
from torch.nn import functional

from modelgit.fisher.estimate import estimate
from modelgit.fisher.mask import Positions, bias_mask, top_mask
from modelgit.fisher.scores import change_scores, random_scores
from modelgit.integrations.torch import freeze_outside
from modelgit.models.base import TaskModel

__all__ = ["rows"]

SEEDS = (0, 1, 2)
GRID: dict[str, tuple[float, ...]] = {
    "FISH 0.5 %": (1e-3, 2e-3, 4e-3),
    "FISH 0.1 %": (2e-3, 4e-3, 8e-3),
    "random 0.5 %": (5e-3, 1e-2, 2e-2),
    "random 0.1 %": (1e-2, 2e-2, 4e-2),
    "bias only": (2e-3, 5e-3, 1e-2),
    "post-hoc 0.1 %": (2e-3, 4e-3, 8e-3),
}
BEST: dict[tuple[str, Kind], dict[str, float]] = {
    ("trec", "full"): {"FISH 0.5 %": 1e-3, "FISH 0.1 %": 2e-3},
    ("reviews", "full"): {"FISH 0.5 %": 2e-3, "FISH 0.1 %": 2e-3},
    ("trec", "top"): {
        "FISH 0.5 %": 2e-3,
        "random 0.5 %": 1e-2,
        "FISH 0.1 %": 4e-3,
        "random 0.1 %": 2e-2,
        "bias only": 5e-3,
        "post-hoc 0.1 %": 4e-3,
    },
    ("reviews", "top"): {
        "FISH 0.5 %": 4e-3,
        "random 0.5 %": 2e-2,
        "FISH 0.1 %": 8e-3,
        "random 0.1 %": 4e-2,
        "bias only": 1e-2,
        "post-hoc 0.1 %": 8e-3,
    },
}
BARS = {
    ("trec", "FISH 0.5 %"): 2.0,
    ("reviews", "FISH 0.5 %"): 3.0,
    ("trec", "FISH 0.1 %"): 3.0,
    ("reviews", "FISH 0.1 %"): 3.0,
}
_EXAMPLES = 512
_AT_START: dict[tuple[str, Kind, int], Mapping[str, NDArray[np.float32]]] = {}


class Figures(NamedTuple):
    """A method's rate, and its accuracy in per cent for each seed."""

    rate: float
    accuracies: list[float]


def rows(plan: Plan) -> Iterator[Row]:
    """What a masked step costs; the full model with its bars; then the upper layers over three seeds."""
    yield from _cost(plan)
    found = side_by_side(_run, plan, TASKS)
    for kind in KINDS:
        for task, figures in zip(TASKS, found, strict=True):
            yield from _table(task, kind, figures[kind])


def _cost(plan: Plan) -> Iterator[Row]:
    """CPU time of a step, plain, under a mask, and with a journal: each step the least of several rounds in turn."""
    task = science_task("trec", quick=plan.quick)
    batches = [next(iter(task.train.batches(16, seed=seed))) for seed in range(3 if plan.quick else 8)]
    shapes = {name: tuple(value.shape) for name, value in weights_of(new_model(task)).items()}
    mask = top_mask(random_scores(shapes), density=0.005)
    least: dict[tuple[str, int], float] = {}
    memory: dict[str, int] = {}
    for _ in range(2 if plan.quick else 5):
        for how in ("plain", "masked", "masked with a journal"):
            model = new_model(task)
            optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                if how != "plain":
                    journal = Path(folder) / "journal" if "journal" in how else None
                    stack.enter_context(
                        freeze_outside(model.module, mask, optimizer, tensor_of=model.tensor_of, journal=journal)
                    )
                for at, batch in enumerate(batches):
                    began = time.process_time()
                    loss = functional.cross_entropy(model.module(**batch.inputs), batch.labels)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    took = time.process_time() - began
                    least[how, at] = min(took, least.get((how, at), took))
                memory[how] = sum(v.nbytes for state in optimizer.state.values() for v in state.values())
    group = "Training under a mask: cost (22.6 M weights, 0.5 %, 16 questions a step, fused AdamW, CPU)"
    steps = range(1, len(batches))  # the first one makes the moments
    seconds = {how: mean(least[how, at] for at in steps) for how in memory}
    plain = seconds["plain"]
    yield Row(group, "plain step", 1000 * plain, "ms", note=f"moments {memory['plain'] / 1e6:.0f} MB")
    for how in ("masked", "masked with a journal"):
        note = f"{1000 * seconds[how]:.0f} ms, moments {memory[how] / 1e6:.1f} MB"
        yield Row(group, f"{how}, more than plain", 100 * (seconds[how] / plain - 1), "%", 10, "at most", note)


def _table(task: str, kind: Kind, figures: dict[str, Figures]) -> Iterator[Row]:
    seeds = len(figures["dense"].accuracies)
    model = "all 22.6 M weights" if kind == "full" else "upper three layers, 5.3 M weights"
    group = f"FISH masks: {task}, {model}, {seeds} seed{'s' if seeds > 1 else ''}"
    best = mean(figures["dense"].accuracies)
    for method, (rate, values) in figures.items():
        note = f"rate {rate:g}" + (f", sd {stdev(values):.1f}" if seeds > 1 else "")
        yield Row(group, f"accuracy, {method}", mean(values), "%", note=note)
        if method != "dense":
            bar = BARS.get((task, method)) if kind == "full" else None
            yield Row(group, f"below dense, {method}", best - mean(values), "points", bar, "at most")


def _mask(plan: Plan, task: Task, method: str, seed: int) -> Positions:
    model = new_model(task, seed=seed)
    weights = weights_of(model)
    head = {model.tensor_of[name] for name in model.head}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    name, _, share = method.partition(" ")
    if name == "bias":
        return bias_mask(shapes, head=head)
    density = float(share.removesuffix(" %")) / 100
    if name == "random":
        return top_mask(random_scores(shapes, seed=seed), density=density, head=head)
    if name == "FISH":
        scores = _fisher(task, seed)
    else:
        tuned = dense(plan, task, seed=seed)
        fisher = estimate(tuned, task.train, limit=_EXAMPLES, seed=seed).values
        scores = change_scores(shapes, _arrays(weights), _arrays(weights_of(tuned)), diagonal=fisher)
    return top_mask(scores, density=density, head=head)


def _fisher(task: Task, seed: int) -> Mapping[str, NDArray[np.float32]]:
    """The diagonal at the start, computed once for the masks of several sizes."""
    key = (task.name, task.kind, seed)
    if key not in _AT_START:
        _AT_START[key] = estimate(new_model(task, seed=seed), task.train, limit=_EXAMPLES, seed=seed).values
    return _AT_START[key]


def _arrays(weights: dict[str, torch.Tensor]) -> dict[str, object]:
    return {name: value.numpy() for name, value in weights.items()}


def _trained(plan: Plan, task: Task, mask: Positions, *, lr: float, seed: int) -> TaskModel:
    model = new_model(task, seed=seed)
    fine_tune(model, task, lr=lr, seed=seed, mask=mask, epochs=1 if plan.quick else EPOCHS)
    return model


def _run(plan: Plan, name: str) -> dict[Kind, dict[str, Figures]]:
    """Test accuracy in per cent by kind and method, a figure for each seed, and the rate."""
    found: dict[Kind, dict[str, Figures]] = {}
    for kind in KINDS:
        task = science_task(name, kind, quick=plan.quick)
        seeds = SEEDS[:1] if kind == "full" else SEEDS[:2] if plan.quick else SEEDS
        figures = {"dense": Figures(RATES[kind], [accuracy(dense(plan, task, seed=seed), task.test) for seed in seeds])}
        for method, rate in BEST[name, kind].items():
            figures[method] = Figures(rate, [_accuracy(plan, task, method, rate, seed) for seed in seeds])
            print(f"masks: {name} {kind} {method}: {figures[method]}", file=sys.stderr, flush=True)
        found[kind] = figures
    return found


def _accuracy(plan: Plan, task: Task, method: str, rate: float, seed: int) -> float:
    mask = _mask(plan, task, method, seed)
    return accuracy(_trained(plan, task, mask, lr=rate, seed=seed), task.test)


def _tune(name: str, kind: Kind) -> None:
    task = science_task(name, kind)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder))
        for method in BEST[name, kind]:
            mask = _mask(plan, task, method, 0)
            for rate in GRID[method]:
                model = _trained(plan, task, mask, lr=rate, seed=0)
                print(f"{name} {kind} {method} {rate:g}: {accuracy(model, task.validation):.1f} %", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _tune(sys.argv[1], "full" if sys.argv[2] == "full" else "top")
