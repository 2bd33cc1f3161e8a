"""Two fine-tunes of one encoder merged into one, on real texts: every strategy, and what a search finds of that.

Questions and reviews (`science_data`), the upper three layers of MiniLM trained on each, separate heads; the body is
merged, each task keeps its head.  Statistics are from the training texts, as `mgit merge` takes them.  Coefficients are
chosen on 250 and 250 validation texts, figures are from 500 and 500 test texts that nothing else saw, over three seeds
of heads and orders.  The search is run with 100 orders of the validation texts on each pair.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from parts import Plan
from science_data import TASKS, Task, dense, logits_of, new_model, science_task, weights_of
from table import Row

from modelgit.fisher.estimate import Accumulator
from modelgit.fisher.grams import gram_matrices
from modelgit.merging.base import STRATEGIES, parse_rule
from modelgit.merging.model import ModelMerge
from modelgit.merging.tensors import TensorParts
from modelgit.models.base import ExampleSet, TaskModel
from modelgit.objects import BlobId, CodedTensor, GramEntry, TensorId, TensorSpec
from modelgit.repo.merges.search import Score, default_candidates, halve, shares_of

__all__ = ["rows"]

SEEDS = 3
ORDERS = 100
PICKS = ("base", "ours", "theirs")
WITH_DATA = ("fisher", "fisher-task", "mats", "regmean")
_VALIDATION, _TEST = 250, 500
_EXAMPLES = 512
_POINTS, _SHARE, _NOISE = 2.0, 96.0, 1.96

Weights = Mapping[str, np.ndarray]
Right = np.ndarray
"""Of each example of both tasks, whether it was right: `[tasks, examples]`."""


class Arrays:
    """Arrays as stored tensors, for code that reads these."""

    def __init__(self) -> None:
        self._held: dict[TensorId | BlobId, memoryview] = {}

    def add(self, values: np.ndarray) -> TensorId:
        raw = np.ascontiguousarray(values, "<f4").tobytes()
        found = TensorId.of(raw)
        self._held[found] = memoryview(raw)
        return found

    def read(self, tensor: TensorId | BlobId, start: int, stop: int) -> memoryview:
        return self._held[tensor][start:stop]

    def read_into(self, tensor: TensorId | BlobId, start: int, out: memoryview) -> None:
        out[:] = self._held[tensor][start : start + out.nbytes]

    def grain(self, tensor: TensorId | BlobId) -> int:
        return 1

    def size(self, tensor: TensorId | BlobId) -> int:
        return self._held[tensor].nbytes


class Known(NamedTuple):
    """The statistics of a side."""

    diagonal: dict[str, CodedTensor]
    grams: dict[str, GramEntry]

    def coded(self) -> dict[str, CodedTensor]:
        return self.diagonal

    def coded_grams(self) -> dict[str, GramEntry]:
        return self.grams


def statistics_of(arrays: Arrays, model: TaskModel, examples: ExampleSet) -> Known:
    """Fisher diagonal and Gram matrices of a model on its training texts, as `mgit fisher --gram` takes them."""
    with Accumulator(model, examples, limit=_EXAMPLES, stop_when_settled=0.8) as work:
        for _ in work.blocks():
            pass
        found, seen = work.result(), work.seen
    grams = gram_matrices(model, examples, seen)
    return Known(
        {name: CodedTensor(arrays.add(values), values.shape, None) for name, values in found.values.items()},
        {
            name: GramEntry(name=name, id=arrays.add(matrix[np.triu_indices(len(matrix))]), size=len(matrix))
            for name, matrix in grams.matrices.items()
        },
    )


class Pair:
    """Two fine-tunes of one start, with the texts of the first `judged` of their tasks to judge merges on.

    What was judged is in the file `kept`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        models: Sequence[TaskModel],
        *,
        judged: int = 2,
        kept: Path | None = None,
        quick: bool = False,
    ) -> None:
        self._models = models[:judged]
        self._kept = kept
        self._arrays = Arrays()
        self._statistics = [statistics_of(self._arrays, m, t.train) for m, t in zip(models, tasks, strict=True)]
        sides = [{name: value.numpy() for name, value in weights_of(model).items()} for model in models]
        start = {name: value.numpy() for name, value in weights_of(new_model(tasks[0])).items()}
        heads = {model.tensor_of[name] for model in models for name in model.head}
        self._parts = [
            TensorParts(
                name=name,
                spec=TensorSpec(dtype="F32", shape=value.shape),
                base=self._arrays.add(value),
                sides=tuple(self._arrays.add(side[name]) for side in sides),
            )
            for name, value in start.items()
            if name not in heads
        ]
        limits = (32, 32) if quick else (_VALIDATION, _TEST)
        self._texts = {
            "validation": [task.validation.select(range(limits[0])) for task in tasks[:judged]],
            "test": [task.test.select(range(limits[1])) for task in tasks[:judged]],
        }
        self._labels = {
            kind: [np.array([example.label for example in part.examples]) for part in parts]
            for kind, parts in self._texts.items()
        }
        self._known: dict[str, Right] = {}
        if kept is not None and kept.exists():
            with np.load(kept) as found:
                self._known = dict(found)
        for kind in self._texts:
            self._known[f"separate|{kind}"] = self._judged(self._models, kind)

    def right(self, candidate: str, kind: str = "validation") -> Right:
        """What the merge by `candidate` (or the separate models) gets right."""
        key = f"{candidate}|{kind}"
        if key not in self._known:
            merged = self._merged(candidate)
            for model in self._models:
                parameters = dict(model.module.named_parameters())
                with torch.no_grad():
                    for name, tensor in model.tensor_of.items():
                        if tensor in merged:
                            parameters[name].copy_(torch.from_numpy(merged[tensor]))
            self._known[key] = self._judged(self._models, kind)
            if self._kept is not None:
                np.savez_compressed(self._kept, **self._known)
        return self._known[key]

    def accuracy(self, candidate: str, kind: str = "validation") -> float:
        """The mean of both tasks, in per cent."""
        return float(self.right(candidate, kind).mean()) * 100

    def search(self, candidates: Sequence[str], order_seed: int = 0) -> tuple[str, int]:
        """What `mgit merge --search` chooses among them, and how many examples it counts."""
        count = self._labels["validation"][0].size
        order = np.random.Generator(np.random.Philox(order_seed)).permutation(count)

        def score(name: str, share: float) -> Score:
            taken = order[: max(1, round(share * count))]
            means = self.right(name)[:, taken].mean(axis=1)
            return Score(name, float(means.mean()), {}, len(means) * taken.size)

        found, counted = halve(list(candidates), shares_of(len(candidates), count), score)
        return found[0].candidate, counted

    def accuracy_of(self, model: TaskModel, kind: str) -> float:
        """The accuracy of another model on the first task, in per cent."""
        return float(self._judged([model], kind).mean()) * 100

    @property
    def judgements(self) -> int:
        """How many validation texts a candidate is judged by."""
        return sum(labels.size for labels in self._labels["validation"])

    def _judged(self, models: Sequence[TaskModel], kind: str) -> Right:
        return np.array(
            [
                logits_of(model, texts).argmax(1).numpy() == labels
                for model, texts, labels in zip(models, self._texts[kind], self._labels[kind], strict=False)
            ]
        )

    def _merged(self, candidate: str) -> Weights:
        run = ModelMerge(self._arrays, self._parts, parse_rule(candidate), fishers=self._statistics)
        made = {}
        for part in self._parts:
            raw = run.source(part.name).read(0, part.spec.size_bytes)
            made[part.name] = np.frombuffer(bytearray(raw), "<f4").reshape(part.spec.shape)
        return made


def rows(plan: Plan) -> Iterator[Row]:
    """Every strategy with its defaults and with coefficients of its own; the bars; what a search finds."""
    candidates = list(default_candidates())
    families: dict[str, list[str]] = {}
    for name in candidates:
        families.setdefault(name.split()[0], []).append(name)
    for name in sorted(set(STRATEGIES) - set(PICKS)):
        families.setdefault(name, [])
        families[name] = [name, *(item for item in families[name] if item != name)]
    pairs = []
    chosen: dict[str, list[str]] = {name: [] for name in families}
    lost, shares = [], []
    for seed in range(1 if plan.quick else SEEDS):
        tasks = [science_task(task, "top", quick=plan.quick) for task in TASKS]
        models = [dense(plan, task, seed=seed) for task in tasks]
        kept = plan.work / f"merged-{seed}{'-quick' if plan.quick else ''}.npz"
        pair = Pair(tasks, models, kept=kept, quick=plan.quick)
        for at, name in enumerate(candidates):
            accuracy = pair.accuracy(name)
            print(f"seed {seed}, {at + 1} of {len(candidates)}: {name}: {accuracy:.1f}", file=sys.stderr, flush=True)
        for name, grid in families.items():
            chosen[name].append(max(grid, key=lambda item: (pair.accuracy(item), -grid.index(item))))
        best = max(pair.accuracy(name) for name in candidates)
        for order in range(ORDERS):
            found, counted = pair.search(candidates, order)
            lost.append(best - pair.accuracy(found))
            shares.append(100 * counted / (len(candidates) * pair.judgements))
        for name in families:
            pair.accuracy(name, "test"), pair.accuracy(chosen[name][-1], "test")
        pairs.append(pair)
    yield from _table(pairs, chosen)
    group = "The search beside an exhaustive sweep, on the same pairs (validation texts)"
    note = f"{len(candidates)} candidates; mean {np.mean(lost):.2f}, worst {max(lost):.1f}"
    yield Row(group, "points below the best of the sweep, in 95 of 100 searches", float(np.quantile(lost, 0.95)),
              "points", 0.5, "at most", note)  # fmt: skip
    far = 100 * float(np.mean(np.array(lost) > 0.5))
    yield Row(group, "searches more than half a point below", far, "%", note=f"{len(lost)} searches")
    yield Row(group, "examples counted, of those of the sweep", max(shares), "%", 100 / 3, "at most")


def _table(pairs: Sequence[Pair], chosen: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    def over(names: Sequence[str]) -> np.ndarray:
        """Right or not: `[seeds, tasks, examples]`."""
        return np.array([pair.right(name, "test") for pair, name in zip(pairs, names, strict=True)])

    def figure(what: str, right: np.ndarray, group: str, note: str = "") -> Row:
        by_seed = 100 * right.mean(axis=(1, 2))
        tasks = " / ".join(f"{value:.1f}" for value in 100 * right.mean(axis=(0, 2)))
        spread = f", ± {by_seed.std(ddof=1):.1f} over seeds" if len(by_seed) > 1 else ""
        return Row(group, what, float(by_seed.mean()), "%", note=f"{' / '.join(TASKS)}: {tasks}{spread}{note}")

    separate = over(["separate"] * len(pairs))
    group = "Two tasks in one body: mean accuracy, coefficients chosen on validation texts"
    yield figure("separate models", separate, group)
    tuned = {name: over(names) for name, names in chosen.items()}
    for name in sorted(tuned, key=lambda name: -tuned[name].mean()):
        yield figure(name, tuned[name], group, "; " + ", ".join(dict.fromkeys(chosen[name])))
    group = "The same with the defaults of each strategy"
    plain = {name: over([name] * len(pairs)) for name in chosen}
    for name in sorted(plain, key=lambda name: -plain[name].mean()):
        yield figure(name, plain[name], group)
    group = "Bars of the two-task merge"
    lead = 100 * float(tuned["fisher"].mean() - tuned["average"].mean())
    yield Row(group, "fisher above average", lead, "points", _POINTS)
    others = {name: right for name, right in tuned.items() if name not in WITH_DATA}
    best = max(others, key=lambda name: others[name].mean())
    for name in ("fisher-task", "regmean", "mats"):
        bar = None if name == "mats" else _SHARE
        share = 100 * float(tuned[name].mean() / separate.mean())
        yield Row(group, f"{name}, of separate models", share, "%", bar)
        apart = tuned[name].astype(float) - others[best]
        noise = _NOISE * 100 * float(apart.std() / apart.size**0.5)
        bar = None if name == "mats" else -noise
        what = f"{name} above the best strategy without data ({best})"
        yield Row(group, what, 100 * float(apart.mean()), "points", bar, note=f"noise: ± {noise:.2g} (paired, 95 %)")
