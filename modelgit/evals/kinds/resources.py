"""`resources`: what a model costs, in bytes, parameters and milliseconds."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from modelgit.config.suites import MetricLimit, ResourcesTest
from modelgit.errors import UsageError
from modelgit.evals.base import Dataset, Side, SuiteRun, data_name
from modelgit.evals.checks import Row, failed, metric_row
from modelgit.models.base import TaskModel
from modelgit.models.outputs import batch_inputs, evaluating, module_device, run_model

__all__ = ["run"]

_REPEATS = 20
_WARM_UP = 3
_UNITS = {"bytes": "bytes", "parameters": "count", "p50_ms": "ms"}


def run(test: ResourcesTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric, one for each baseline where it is compared.

    `bytes` and `parameters` are those of the stored tensors, each counted once.  `p50_ms` is the median of `repeats`
    forward passes on the first example, alone in its batch, after a warm-up; the passes of a baseline are made in
    between those of the candidate, so that both see the same machine.  Raises UsageError for `p50_ms` without data.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for name, limit in test.metrics.items():
        if name == "p50_ms":
            yield from _durations(test, run, limit)
            continue
        at = 0 if name == "bytes" else 1
        task = run.data_of(test).task if data_name(test) is not None else run.task_of(test)
        for side in (run.candidate, *(run.baselines if limit.relative else ())):
            sizes.setdefault(side.name, side.size(task))
        value = float(sizes[run.candidate.name][at])
        if not limit.relative or not run.baselines:
            yield metric_row(name, limit, value, None, unit=_UNITS[name], examples=0)
            continue
        for side in run.baselines:
            before = float(sizes[side.name][at])
            yield metric_row(name, limit, value, before, unit=_UNITS[name], examples=0, against=side.name)


def _durations(test: ResourcesTest, run: SuiteRun, limit: MetricLimit) -> Iterator[Row]:
    if data_name(test) is None:
        raise UsageError(
            f"test `{test.name}` measures p50_ms and has no data", hint='write `data = "NAME"` in the test'
        )
    data = run.data_of(test)
    repeats = limit.repeats or _REPEATS
    if not limit.relative:
        found = _medians_ms(run, [run.candidate], data, repeats)
        yield metric_row("p50_ms", limit, found[0], None, unit="ms", examples=1)
        return
    if not run.baselines:
        yield failed("p50_ms", limit, "", decision="baseline")
    for side in run.baselines:
        value, before = _medians_ms(run, [run.candidate, side], data, repeats)
        yield metric_row("p50_ms", limit, value, before, unit="ms", examples=1, against=side.name)


def _medians_ms(run: SuiteRun, sides: list[Side], data: Dataset, repeats: int) -> list[float]:
    """Median duration of one forward pass of each side in milliseconds; passes of the sides alternate."""
    models = [side.model(data) for side in sides]
    inputs = [_inputs(model, side, data) for model, side in zip(models, sides, strict=True)]
    spent: list[list[float]] = [[] for _ in sides]
    with evaluating(*(model.module for model in models)), torch.inference_mode():
        for turn in range(_WARM_UP + repeats):
            run.check()
            # Who goes first changes from turn to turn.
            for at in range(len(sides)) if turn % 2 else reversed(range(len(sides))):
                duration = _pass_ms(models[at], inputs[at])
                if turn >= _WARM_UP:
                    spent[at].append(duration)
    return [float(np.median(durations)) for durations in spent]


def _inputs(model: TaskModel, side: Side, data: Dataset) -> dict[str, torch.Tensor]:
    batch = next(iter(side.encode(data, np.zeros(1, dtype=np.int64)).batches(1)))
    return batch_inputs(batch, module_device(model.module))


def _pass_ms(model: TaskModel, inputs: dict[str, torch.Tensor]) -> float:
    _wait(model)
    started = time.perf_counter()
    run_model(model, inputs)
    _wait(model)
    return 1000.0 * (time.perf_counter() - started)


def _wait(model: TaskModel) -> None:
    """Let an accelerator finish what it was given."""
    device = module_device(model.module)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
