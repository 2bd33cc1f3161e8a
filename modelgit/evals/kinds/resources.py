"""`resources`: what a model costs, in bytes, parameters and milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from modelgit.config.suites import MetricLimit, ResourcesTest
from modelgit.errors import UsageError
from modelgit.evals.base import Dataset, Side, SuiteRun, data_name
from modelgit.evals.checks import Row, failed, metric_row
from modelgit.evals.kept import output_key
from modelgit.evals.machine import machine_class

__all__ = ["run"]

_REPEATS = 20
_UNITS = {"bytes": "bytes", "parameters": "count", "p50_ms": "ms"}


def run(test: ResourcesTest, run: SuiteRun) -> Iterator[Row]:
    """A line for each metric, one for each baseline where it is compared.

    `bytes` and `parameters` are those of the stored tensors, each counted once.  `p50_ms` is the median of `repeats`
    forward passes on the first example, alone in its batch, after a warm-up; the passes of a baseline are made in
    between those of the candidate, so that both see the same machine.  They are kept by the weights of all that was
    measured together, what computed, and the class of the machine, unless the test says `cache = "none"`.  Raises
    UsageError for `p50_ms` without data.
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
    if not limit.relative:
        (value,) = _medians_ms(test, run, [run.candidate], data, limit)
        yield metric_row("p50_ms", limit, value, None, unit="ms", examples=1)
        return
    if not run.baselines:
        yield failed("p50_ms", limit, "", decision="baseline")
    for side in run.baselines:
        value, before = _medians_ms(test, run, [run.candidate, side], data, limit)
        yield metric_row("p50_ms", limit, value, before, unit="ms", examples=1, against=side.name)


def _medians_ms(
    test: ResourcesTest, run: SuiteRun, sides: Sequence[Side], data: Dataset, limit: MetricLimit
) -> list[float]:
    """The durations of the sides, measured together: now, or when the same was asked before."""
    repeats = limit.repeats or _REPEATS
    key = None
    if test.cache != "none":
        measured = [(side.model_path(data.task), side.weights) for side in sides]
        machine = machine_class(run.settings.device, run.surroundings)
        key = output_key("durations", run, run.candidate, data, measured, repeats, machine)
    known = None if key is None else _known(run.candidate.scores(key), len(sides))
    if known is not None:
        return known
    from modelgit.evals.durations import median_passes_ms

    found = median_passes_ms(sides, data, repeats=repeats, check=run.check)
    if key is not None:
        run.candidate.keep_scores(key, {"medians_ms": found})
    return found


def _known(value: Mapping[str, Any] | None, count: int) -> list[float] | None:
    """What was kept; None for anything that is not one duration for each side."""
    try:
        found = msgspec.convert({} if value is None else value.get("medians_ms"), list[float])
    except msgspec.ValidationError:
        return None
    return found if len(found) == count and all(duration > 0 for duration in found) else None
