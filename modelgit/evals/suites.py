"""Suites of the settings, checked before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from modelgit.config.schema import EvalSettings, Limit, Settings, TaskSettings
from modelgit.errors import UsageError
from modelgit.models.kinds import PER_EXAMPLE_KINDS

__all__ = ["Suite", "load_suites"]

_TASK_EXAMPLE = '[task.{name}]  model = "models/bot"  adapter = "bert-classifier"  test = "data/test.jsonl"'
_LIMIT_EXAMPLE = "accuracy = {{ max_drop = 0.005 }}  or  negative_flips = {{ max = 0.01 }}  under [eval.{name}]"


@dataclass(frozen=True)
class Suite:
    """A named suite with its task; `data` is the path of the examples, relative to the repository root."""

    name: str
    settings: EvalSettings
    task: TaskSettings
    data: str


def load_suites(settings: Settings, *, names: Iterable[str] | None = None) -> tuple[Suite, ...]:
    """The suites of `settings` in the order of their names, or those in `names`.

    Raises UsageError for a suite or task that does not exist, for one without data, and for limits that say nothing
    or cannot be meant.
    """
    chosen = sorted(settings.eval) if names is None else list(names)
    return tuple(_suite(settings, name) for name in chosen)


def _suite(settings: Settings, name: str) -> Suite:
    suite = settings.eval.get(name)
    if suite is None:
        raise UsageError(
            f"no suite `{name}`{_near(name, settings.eval)}",
            hint=f"known: {', '.join(sorted(settings.eval))}" if settings.eval else _suite_example(name),
        )
    task = settings.task.get(suite.task)
    if task is None:
        raise UsageError(
            f"suite `{name}` names the task `{suite.task}`, which mgit.toml does not have"
            f"{_near(suite.task, settings.task)}",
            hint=f"add to mgit.toml: {_TASK_EXAMPLE.format(name=suite.task)}",
        )
    if task.kind not in PER_EXAMPLE_KINDS:
        raise UsageError(
            f"suite `{name}` measures a task of kind `{task.kind}`, and suites compare one class for each example",
            hint=f"`mgit diff` compares {task.kind} models; take [eval.{name}] out of mgit.toml",
        )
    data = suite.data or task.test
    if data is None:
        raise UsageError(
            f"suite `{name}` has no data",
            hint=f'write `data = "data/test.jsonl"` under [eval.{name}], or `test = ...` under [task.{suite.task}]',
        )
    _check(name, suite)
    return Suite(name, suite, task, data)


def _check(name: str, suite: EvalSettings) -> None:
    if not 0 < suite.alpha <= 0.5:
        raise UsageError(f"suite `{name}`: alpha is {suite.alpha}, and lies between 0 and 0.5", hint="alpha = 0.05")
    if suite.examples is not None and suite.examples < 1:
        raise UsageError(f"suite `{name}`: examples is {suite.examples}, and is at least 1")
    limits = {"accuracy": suite.accuracy, "negative_flips": suite.negative_flips, "kl": suite.kl}
    if not any(limits.values()):
        raise UsageError(f"suite `{name}` limits nothing", hint=f"write {_LIMIT_EXAMPLE.format(name=name)}")
    for metric, limit in limits.items():
        if limit is not None:
            _check_limit(name, metric, limit)


def _check_limit(name: str, metric: str, limit: Limit) -> None:
    where = f"suite `{name}`: {metric}"
    bounds = {"min": limit.min, "max": limit.max, "max_drop": limit.max_drop, "max_rise": limit.max_rise}
    given = {key: value for key, value in bounds.items() if value is not None}
    if not given and limit.level != "info":
        raise UsageError(f"{where} has no bound", hint=f"write {_LIMIT_EXAMPLE.format(name=name)}")
    for key, value in given.items():
        if metric != "accuracy" and key != "max":
            raise UsageError(
                f"{where} takes `max` only, for it compares with the baseline already",
                hint=f"write `{metric} = {{ max = {value} }}` under [eval.{name}]",
            )
        # `not <=` refuses NaN as well.
        if not value >= 0 or (metric != "kl" and not value <= 1):
            unit = "is at least 0 nats" if metric == "kl" else "lies between 0 and 1 (0.01 is one per cent)"
            raise UsageError(f"{where}: `{key}` is {value}, and {unit}")


def _near(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{match[0]}`?" if match else ""


def _suite_example(name: str) -> str:
    return f'add to mgit.toml: [eval.{name}]  task = "TASK"  negative_flips = {{ max = 0.01 }}'
