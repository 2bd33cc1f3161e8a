"""What a diff says: how well the directional form and the diagonal predict the divergence that is measured.

The old side is a dense fine-tune of all 22.6 M weights (TREC and reviews, seed 0), the new one that fine-tune changed
by d.  "Coherent" changes go back along the fine-tune by a share s of the whole way, or drop the half of it that the
diagonal calls least important; "incoherent" ones are Gaussian noise, rounding to bfloat16, and the fine-tune's change
thinned out at random without bias.  Texts are the first of the test split; the Fisher diagonal is that of the old side
on the same texts (one random draw per text).  Seeds of noise 0 to 2; the worst of them counts.

    python tests/benchmarks/science_kl.py WORK

compares two models in this process and prints its CPU seconds and peak memory, which `rows` reads.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from parts import Plan, side_by_side
from science_data import TASKS, Task, dense, new_model, science_task
from table import Row

from modelgit.fisher.behaviour import LOCAL_KL, behaviour, diagonal_note
from modelgit.fisher.directional import Directional, directional, take_change
from modelgit.fisher.estimate import estimate
from modelgit.fisher.kl import fisher_mass, measure
from modelgit.models.base import TaskModel

__all__ = ["rows"]

_TEXTS, _QUICK_TEXTS = 256, 24
_STEPS = (0.01, 0.03, 0.05, 0.08, 0.1, 0.3, 1.0)
_BARRED_KL = 0.005
_SEEDS = (0, 1, 2)
_SIGMAS = (3e-4, 1e-3)
_DENSITIES = (0.02, 0.05)
Weights = dict[str, torch.Tensor]


def rows(plan: Plan) -> Iterator[Row]:
    """Changes along fine-tunes, changes without a direction, cost."""
    for found in side_by_side(_rows_of, plan, TASKS):
        yield from found
    yield from _cost(plan)


def _rows_of(plan: Plan, name: str) -> list[Row]:
    case = _Case(plan, name)
    return [*case.coherent(), *case.incoherent(_SEEDS[:1] if plan.quick else _SEEDS)]


class _Case:
    """A fine-tune, the way to it, and the Fisher diagonal at its end."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.task: Task = science_task(name, quick=plan.quick)
        self.texts = self.task.test.select(range(_QUICK_TEXTS if plan.quick else _TEXTS))
        self.model = dense(plan, self.task)
        self.old = {name: value.detach() for name, value in self.model.module.named_parameters()}
        start = dict(new_model(self.task).module.named_parameters())
        self.way = {name: value - start[name].detach() for name, value in self.old.items()}
        self._scales: dict[float, float] = {}
        found = estimate(self.model, self.texts, estimator="rademacher", limit=None)
        self.fisher = found.values
        self.by_parameter = {
            parameter: torch.from_numpy(self.fisher[self.model.tensor_of[parameter]]) for parameter in self.old
        }

    def changed(self, weights: Weights) -> TaskModel:
        model = copy.deepcopy(self.model)
        model.module.load_state_dict(weights, strict=False)
        return model

    def measured(self, weights: Weights) -> float:
        return measure(self.model, self.changed(weights), self.texts, limit=None).kl

    def form(self, weights: Weights) -> Directional:
        return directional(self.model, take_change(self.model, self.changed(weights)), self.texts, limit=None)

    def diagonal(self, weights: Weights) -> float:
        tensor_of = self.model.tensor_of
        old, new = ({tensor_of[n]: v.numpy() for n, v in side.items()} for side in (self.old, weights))
        return fisher_mass(self.fisher, old, new, self.fisher).divergence

    def coherent(self) -> Iterator[Row]:
        group = f"Back along the fine-tune: {self.task.name}, {len(self.texts)} texts"
        back = {name: self.old[name] - way for name, way in self.way.items()}
        whole, diagonal = self.form(back), self.diagonal(back)
        for step in _STEPS:
            kl = self.measured({name: self.old[name] - step * way for name, way in self.way.items()})
            yield from _judged(group, f"s = {step}", kl, step * step * whole.kl, step * step * diagonal)
        shown = diagonal_note(diagonal, whole.kl) is None
        yield Row(group, "the diagonal is shown", float(shown), "", 0, "at most", "0: diff holds it back")
        parts = whole.by_tensor or {}
        off = abs(sum(parts.values()) / whole.kl - 1)
        yield Row(group, "parts by tensor, against the whole", off, "relative", 1e-3, "at most", whole.method)
        half = self._less_important_half()
        # Not a step along the fine-tune, and a long way: reported without a bar.
        kl, form = self.measured(half), self.form(half).kl
        for row in _judged(group, "drop the half with the least F d^2", kl, form, self.diagonal(half)):
            yield row._replace(bar=None)

    def _less_important_half(self) -> Weights:
        scores = {name: self.by_parameter[name] * way.square() for name, way in self.way.items()}
        # Of those that have any: the vectors of words that no text uses have none.
        line = torch.cat([score[score > 0] for score in scores.values()]).median()
        old = self.old
        return {n: torch.where(scores[n] < line, old[n] - way, old[n]) for n, way in self.way.items()}

    def incoherent(self, seeds: tuple[int, ...]) -> Iterator[Row]:
        group = f"Without a direction: {self.task.name}, {len(self.texts)} texts"
        makers: dict[str, Callable[[int], Weights]] = {
            f"Gaussian noise of {sigma:g}": lambda seed, sigma=sigma: self._noise(sigma, seed) for sigma in _SIGMAS
        }
        makers["rounded to bfloat16"] = lambda _: {n: v.bfloat16().float() for n, v in self.old.items()}
        makers |= {
            f"thinned out to {density:.0%}": lambda seed, density=density: self._thinned(density, seed)
            for density in _DENSITIES
        }
        shown = 0
        for what, make in makers.items():
            found = []
            for seed in seeds if "rounded" not in what else seeds[:1]:
                weights = make(seed)
                found.append((self.measured(weights), self.diagonal(weights)))
                if seed == seeds[0]:
                    form = self.form(weights).kl
                    shown += diagonal_note(found[-1][1], form) is None
            factor, kl, diagonal = max((max(d / kl, kl / d), kl, d) for kl, d in found)
            first = f"of seed {seeds[0]}: {found[0][0]:.3g}, {found[0][1]:.3g}, directional {form:.3g}"
            note = f"measured {kl:.3g}, diagonal {diagonal:.3g} ({first})"
            yield Row(group, f"{what}: diagonal and measured apart", factor, "times", 2, "at most", note)
        yield Row(group, "the diagonal is shown", shown, f"of {len(makers)} kinds", note="within 2x of the form")

    def _noise(self, sigma: float, seed: int) -> Weights:
        draw = torch.Generator().manual_seed(seed)
        return {name: value + sigma * torch.randn(value.shape, generator=draw) for name, value in self.old.items()}

    def _thinned(self, density: float, seed: int) -> Weights:
        """Each value of the way kept with probability min(1, c sqrt(F + eps) |d|), divided by it; the head whole."""
        body = {name: way for name, way in self.way.items() if name not in self.model.head}
        mean = sum(float(self.by_parameter[n].sum()) for n in body) / sum(way.numel() for way in body.values())
        wish = {n: (self.by_parameter[n] + 0.01 * mean).sqrt() * way.abs() for n, way in body.items()}
        budget = density * sum(way.numel() for way in body.values())
        if density not in self._scales:
            self._scales[density] = _scale(wish, budget)
        scale = self._scales[density]
        draw = torch.Generator().manual_seed(seed)
        found = dict(self.old)
        for name, way in body.items():
            keep = (scale * wish[name]).clamp_max(1)
            kept = torch.rand(way.shape, generator=draw) < keep
            found[name] = self.old[name] - way + torch.where(kept, way / keep.clamp_min(1e-30), 0.0)
        return found


def _scale(wish: Mapping[str, torch.Tensor], budget: float) -> float:
    """The c with which `budget` values are kept in the mean."""
    low, high = 0.0, 1.0
    while _expected(wish, high) < budget:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected(wish, middle) < budget else (low, middle)
    return high


def _expected(wish: Mapping[str, torch.Tensor], scale: float) -> float:
    return sum(float((scale * value).clamp_max(1).sum(dtype=torch.float64)) for value in wish.values())


def _judged(group: str, what: str, kl: float, form: float, diagonal: float) -> Iterator[Row]:
    note = f"measured {kl:.3g}, directional {form:.3g}, diagonal {diagonal:.2g} ({kl / diagonal:,.0f} times low)"
    bar = 15.0 if kl <= _BARRED_KL else None
    if kl > LOCAL_KL:
        note += ": the measurement counts"
    yield Row(group, f"{what}: directional off", 100 * abs(form / kl - 1), "%", bar, "at most", note)


def _cost(plan: Plan) -> Iterator[Row]:
    group = "Cost of a comparison (two models of 22.6 M weights, one thread)"
    command = [sys.executable, __file__, str(plan.work), *(["quick"] if plan.quick else [])]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    yield Row(group, "measured alone", found["measured"], "CPU s", note=f"{found['texts']} texts")
    yield Row(group, "measured, directional, parts by tensor", found["all"], "CPU s")
    yield Row(group, "peak memory above both models", found["above"], "MiB", note="87 MiB each")


def _memory(field: str) -> float:
    """MiB of this process now ("VmRSS") or at most since it was last reset ("VmHWM"); Linux alone counts both."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _measure_cost(plan: Plan) -> dict[str, float]:
    task = science_task("trec", quick=plan.quick)
    texts = task.test.select(range(_QUICK_TEXTS if plan.quick else _TEXTS))
    old, new = dense(plan, task), new_model(task)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    started = time.process_time()
    measure(old, new, texts, limit=None)
    middle = time.process_time()
    behaviour(old, new, texts, limit=None)
    ended = time.process_time()
    return {
        "texts": len(texts),
        "measured": middle - started,
        "all": ended - middle,
        "above": _memory("VmHWM") - before,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_measure_cost(Plan(Path(sys.argv[1]), len(sys.argv) > 2))))
