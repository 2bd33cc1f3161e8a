"""The Fisher pass: is it right, what does each estimator get wrong, and what does it cost?  Seeds 0, or as stated.

Costs are CPU seconds of this process in one thread, each the least of several rounds taken in turn.  "Naive" is one
backward pass per example (and per label for "naive exact"), squared and added, as a user would write it.

    python tests/benchmarks/science_estimators.py N

runs one pass over N questions in this process and prints its CPU seconds and peak memory, which `rows` reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from parts import Plan
from science_data import dense, new_model, science_task
from table import Row
from torch.nn import functional

from modelgit.fisher.estimate import BLOCK, Accumulator, estimate
from modelgit.models.base import ExampleSet, TaskModel

__all__ = ["rows"]

_TIMED, _TIMED_ALONE = 128, 32
_JUDGED = 256
_PASS = 400
_DRAWS = 64
Diagonal = Mapping[str, NDArray[np.float32]]


def rows(plan: Plan) -> Iterator[Row]:
    """Correctness, then estimators side by side, then speed and memory."""
    task = science_task("trec", quick=plan.quick)
    tuned = dense(plan, task)
    yield from _correct(tuned, task.test, 8 if plan.quick else 32)
    yield from _compared(tuned, task.test, 16 if plan.quick else _JUDGED)
    for stage, model in (("fine-tuned", tuned), ("new head", new_model(task))):
        yield from _settled(stage, model, task.test, 64 if plan.quick else 512)
    counts = (8, 4) if plan.quick else (_TIMED, _TIMED_ALONE)
    yield from _speed(task.classes, new_model(task), task.train, *counts, 1 if plan.quick else 3)
    yield from _memory(32 if plan.quick else _PASS)


def _naive(model: TaskModel, data: ExampleSet, count: int, *, exact: bool) -> Diagonal:
    """Mean over the first `count` examples of the squared gradient, or of its expectation over labels."""
    parameters = list(model.module.parameters())
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in data.batches(1, limit=count):
        log_p = model.module(**batch.inputs).log_softmax(1)[0]
        labels = range(len(log_p)) if exact else [int(batch.labels[0])]
        for label in labels:
            gradients = torch.autograd.grad(log_p[label], parameters, retain_graph=label != labels[-1])
            factor = float(log_p[label].detach().exp()) if exact else 1.0
            for total, gradient in zip(totals, gradients, strict=True):
                total.addcmul_(gradient, gradient, value=factor)
    names = [model.tensor_of[name] for name, _ in model.module.named_parameters()]
    return {name: (total / count).numpy() for name, total in zip(names, totals, strict=True)}


def _first(data: ExampleSet, count: int) -> ExampleSet:
    return data.select(range(count))


def _error(got: Diagonal, expected: Diagonal) -> float:
    """The largest error of any tensor, relative to its largest value; key biases, which vanish, are left out."""
    return max(
        float(np.abs(got[name] - value).max() / value.max())
        for name, value in expected.items()
        if not name.endswith("key.bias")
    )


def _correct(model: TaskModel, data: ExampleSet, count: int) -> Iterator[Row]:
    group = "Fisher pass: correct (MiniLM fine-tuned on TREC, 22.6 M weights)"
    few = _first(data, count)
    naive = _naive(model, few, count, exact=True)
    sizes = {size: estimate(model, few, estimator="exact", batch_size=size).values for size in (1, 8, 32)}
    yield Row(
        group, "hooks against naive exact", _error(sizes[32], naive), "relative", 1e-5, "at most", f"{count} texts"
    )
    apart = max(_error(sizes[1], sizes[8]), _error(sizes[32], sizes[8]))
    yield Row(group, "batches of 1, 8 and 32", apart, "relative", 1e-5, "at most")
    label = estimate(model, few, estimator="empirical").values
    yield Row(
        group, "given label, hooks against naive", _error(label, _naive(model, few, count, exact=False)), "relative",
        1e-5, "at most",
    )  # fmt: skip
    at = "encoder.layer.{}.attention.self.{}.bias"
    zero = max(float(_against(sizes[32], at.format(layer, "key"), at.format(layer, "value"))) for layer in range(6))
    yield Row(group, "key biases, of value biases", zero, "", 1e-8, "at most", "their Fisher is 0 but for rounding")
    used = {token for ids in few.ids for token in ids}
    words = sizes[32]["embeddings.word_embeddings.weight"]
    unseen = np.delete(words, sorted(used), axis=0)
    yield Row(group, "word vectors that no text uses", float(np.abs(unseen).max()), "", 0.0, "at most", "exactly 0")
    # Every text many times: one estimate is then the mean of as many independent ones, as signs go by position.
    many = few.select(list(range(count)) * _DRAWS)
    drawn = estimate(model, many, estimator="rademacher", limit=None).values
    off = max(
        abs(float(drawn[name].sum(dtype=np.float64)) / float(value.sum(dtype=np.float64)) - 1)
        for name, value in naive.items()
        if not name.endswith("key.bias")
    )
    yield Row(group, f"{_DRAWS} random draws, trace of the worst tensor", 100 * off, "% off", 5, "at most", "seed 0")


def _against(values: Diagonal, one: str, other: str) -> float:
    """The largest entry of one tensor in units of the other's."""
    return float(values[one].max() / values[other].max())


def _compared(model: TaskModel, data: ExampleSet, count: int) -> Iterator[Row]:
    group = f"Estimators against exact, {count} questions (trace ratio; overlap of the top 0.5 %)"
    few = _first(data, count)
    exact = _body(estimate(model, few, estimator="exact").values)
    trials: dict[str, Callable[[], Diagonal]] = {
        "random signs, one pass": lambda: estimate(model, few, estimator="rademacher").values,
        "sampled label": lambda: estimate(model, few, estimator="sampled").values,
        "given label": lambda: estimate(model, few, estimator="empirical").values,
        "squared mean gradient of 32": lambda: _batch_mean(model, few, 32),
        "exact, a quarter of the texts": lambda: estimate(model, few, estimator="exact", limit=count // 4).values,
    }
    for name, trial in trials.items():
        found = _body(trial())
        yield Row(group, f"{name}: trace", float(found.sum() / exact.sum()), "of exact")
        yield Row(group, f"{name}: top 0.5 %", 100 * _overlap(found, exact), "% shared")


def _settled(stage: str, model: TaskModel, data: ExampleSet, count: int) -> Iterator[Row]:
    group = "Fisher pass: top 0.5 % shared by two halves of the questions, random signs"
    with Accumulator(model, data, estimator="rademacher", limit=count, stop_when_settled=1.0) as work:
        for done in work.blocks():
            settling = work.state().settling
            if settling is not None and done % (2 * BLOCK) == 0:
                yield Row(group, f"{stage}, {done} questions", 100 * settling.overlaps[-1], "% shared")


def _body(values: Diagonal) -> NDArray[np.float64]:
    return np.concatenate([v.reshape(-1) for n, v in sorted(values.items()) if n[:10] != "classifier"]).astype(float)


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    count = len(one) // 200
    tops = [set(np.argpartition(values, -count)[-count:].tolist()) for values in (one, other)]
    return len(tops[0] & tops[1]) / count


def _batch_mean(model: TaskModel, data: ExampleSet, size: int) -> Diagonal:
    """The usual mistake."""
    named = dict(model.module.named_parameters())
    totals = {model.tensor_of[name]: torch.zeros_like(value) for name, value in named.items()}
    batches = list(data.batches(size, seed=0))
    for batch in batches:
        loss = functional.cross_entropy(model.module(**batch.inputs), batch.labels)
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            totals[model.tensor_of[name]].addcmul_(gradient, gradient)
    return {name: (total / len(batches)).numpy() for name, total in totals.items()}


def _speed(classes: int, model: TaskModel, data: ExampleSet, count: int, alone: int, rounds: int) -> Iterator[Row]:
    """Hooks and a plain backward pass on `count` examples in batches, naive passes on the first `alone` of them."""
    group = f"Fisher pass: examples per CPU second (MiniLM, TREC, {count} examples, naive {alone})"
    few = _first(data, count)
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "plain backward, batches of 32": (count, lambda: _plain(model, few)),
        "naive, given label": (alone, lambda: _naive(model, few, alone, exact=False)),
        "naive exact": (alone, lambda: _naive(model, few, alone, exact=True)),
        "hooks, given label": (count, lambda: estimate(model, few, estimator="empirical")),
        "hooks, exact": (count, lambda: estimate(model, few, estimator="exact")),
        "hooks, random signs": (count, lambda: estimate(model, few, estimator="rademacher")),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, (examples, run) in runs.items():
            started = time.process_time()
            run()
            best[name] = min(best[name], (time.process_time() - started) / examples)
    for name, seconds in best.items():
        yield Row(group, name, 1 / seconds, "per second")
    given, exact, signs = best["hooks, given label"], best["hooks, exact"], best["hooks, random signs"]
    yield Row(group, "given label: hooks against naive", best["naive, given label"] / given, "x", 2)
    yield Row(group, f"exact over {classes} labels: hooks against naive", best["naive exact"] / exact, "x", 4)
    yield Row(group, "random signs against naive exact", best["naive exact"] / signs, "x", 15)
    yield Row(
        group,
        "random signs against a plain backward pass",
        signs / best["plain backward, batches of 32"],
        "x",
        2,
        "at most",
    )


def _plain(model: TaskModel, data: ExampleSet) -> None:
    """Forward and backward of every batch, gradients for all weights, nothing squared."""
    for batch in data.batches(32):
        functional.cross_entropy(model.module(**batch.inputs), batch.labels).backward()
        model.module.zero_grad(set_to_none=True)


def _memory(count: int) -> Iterator[Row]:
    group = f"Fisher pass: {count} questions through MiniLM, 22.6 M weights, random signs, a process of its own"
    command = [sys.executable, str(Path(__file__)), str(count)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    measured = json.loads(done.stdout)
    yield Row(group, "CPU time of the pass", measured["cpu_s"], "s", 20, "at most")
    yield Row(group, "CPU time with imports, reading and tokenising", measured["whole_cpu_s"], "s")
    yield Row(group, "peak memory of the process", measured["peak_gib"], "GiB", 1.5, "at most")


def _pass(count: int) -> None:
    torch.set_num_threads(1)
    task = science_task("trec")
    model = new_model(task)
    started = time.process_time()
    estimate(model, task.train, estimator="rademacher", limit=count)
    seconds = time.process_time() - started
    # The kernel's `ru_maxrss` would count what the parent had before this program was started in its place.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    gib = int(peak.split()[1]) / 1024**2
    print(json.dumps({"cpu_s": seconds, "whole_cpu_s": time.process_time(), "peak_gib": gib}))


if __name__ == "__main__":
    _pass(int(sys.argv[1]))
