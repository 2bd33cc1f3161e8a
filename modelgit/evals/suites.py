"""Suites as they run: files of `evals/` and `[eval.NAME]` tables in one form, checked before anything is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from modelgit.config.schema import EvalSettings, Limit, Settings, TaskSettings
from modelgit.config.suite_files import duration_s, parse_suite, suite_path
from modelgit.config.suites import (
    CheckListTest,
    ClassificationTest,
    DataSettings,
    DataTest,
    KlTest,
    LmEvalTest,
    MetricLimit,
    NfrTest,
    PerplexityTest,
    PinTest,
    ProgramTest,
    PythonTest,
    ReportSettings,
    ResourcesTest,
    RetrievalTest,
    RunSettings,
    ShellTest,
    SuiteFile,
    TestTable,
)
from modelgit.errors import UsageError, did_you_mean
from modelgit.models.kinds import PER_EXAMPLE_KINDS
from modelgit.objects.paths import path_problem

__all__ = ["DataSource", "Suite", "load_suites"]

_TASK_EXAMPLE = '[task.{name}]  model = "models/bot"  adapter = "bert-classifier"  test = "data/test.jsonl"'
_LIMIT_EXAMPLE = "accuracy = {{ max_drop = 0.005 }}  or  negative_flips = {{ max = 0.01 }}  under [eval.{name}]"
_BASELINE_KINDS = ("tag", "merge-base", "branch", "parent")
# What compares one class for each example; the other kinds say themselves which tasks they can measure.
_BY_CLASS = (NfrTest, ClassificationTest, PinTest, CheckListTest)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A file of examples at `path`, relative to the repository root, and the task that reads it.

    `task` has the fields that the suite gives in place of the task's own; `also` are further fields of the records
    that tests want.
    """

    name: str
    path: str
    task: TaskSettings
    id_field: str = "id"
    slices: tuple[str, ...] = ()
    cluster: str | None = None
    also: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite with its tasks and data, by the names that tests give.

    `place` is where it is written; `task` is its own task.  `question` is what it asks, as deterministic JSON, without
    what only says how it is shown or where the data of a task lie.  With `stops`, a failure that is proven by a few
    examples ends the run.
    """

    name: str
    place: str
    run: RunSettings
    tests: tuple[TestTable, ...]
    task: TaskSettings | None
    question: bytes
    data: Mapping[str, DataSource] = field(default_factory=dict)
    tasks: Mapping[str, TaskSettings] = field(default_factory=dict)
    report: ReportSettings = field(default_factory=ReportSettings)
    stops: bool = False


def load_suites(
    settings: Settings, files: Mapping[str, str] | None = None, *, names: Iterable[str] | None = None
) -> tuple[Suite, ...]:
    """The suites of `settings` and of `files` (texts by the name of the suite) by name, or those in `names`.

    Raises UsageError for a suite or task that does not exist, for one without data, for two of one name, and for limits
    that say nothing or cannot be meant.
    """
    files = files or {}
    twice = sorted(set(files) & set(settings.eval))
    if twice:
        raise UsageError(
            f"suite `{twice[0]}` is written twice: in {suite_path(twice[0])} and as [eval.{twice[0]}]",
            hint=f"take [eval.{twice[0]}] out of mgit.toml",
        )
    known = sorted({*files, *settings.eval})
    chosen = known if names is None else list(dict.fromkeys(names))
    return tuple(_suite(settings, files, name, known) for name in chosen)


def _suite(settings: Settings, files: Mapping[str, str], name: str, known: list[str]) -> Suite:
    if name in files:
        return _Compiler(name, parse_suite(files[name], name=name), settings).suite()
    if name in settings.eval:
        return _short(settings, name, settings.eval[name])
    raise UsageError(
        f"no suite `{name}`{did_you_mean(name, known)}",
        hint=f"known: {', '.join(known)}" if known else _suite_example(name),
    )


def _task(settings: Settings, name: str, where: str) -> TaskSettings:
    task = settings.task.get(name)
    if task is None:
        raise UsageError(
            f"{where} names the task `{name}`, which mgit.toml does not have{did_you_mean(name, settings.task)}",
            hint=f"add to mgit.toml: {_TASK_EXAMPLE.format(name=name)}",
        )
    return task


# -- the short form


def _short(settings: Settings, name: str, suite: EvalSettings) -> Suite:
    """`[eval.NAME]`: one set of examples, and up to three tests by the names of what they limit."""
    where = f"suite `{name}`"
    task = _task(settings, suite.task, where)
    if task.kind not in PER_EXAMPLE_KINDS:
        raise UsageError(
            f"{where} measures a task of kind `{task.kind}`, and [eval.{name}] compares one class for each example",
            hint=f"write {suite_path(name)} with tests for {task.kind} models; docs/evals.md lists the kinds",
        )
    data = suite.data or task.test
    if data is None:
        raise UsageError(
            f"{where} has no data",
            hint=f'write `data = "data/test.jsonl"` under [eval.{name}], or `test = ...` under [task.{suite.task}]',
        )
    _check_short(name, suite)
    tests: list[TestTable] = []
    if suite.accuracy is not None:
        limits: dict[str, MetricLimit] = {"accuracy": MetricLimit(**msgspec.structs.asdict(suite.accuracy))}
        tests.append(ClassificationTest(name="accuracy", data="data", metrics=limits))  # type: ignore[arg-type]
    if suite.negative_flips is not None:
        flips = suite.negative_flips
        tests.append(NfrTest(name="negative flips", data="data", max=flips.max, level=flips.level))
    if suite.kl is not None:
        tests.append(KlTest(name="kl", data="data", max=suite.kl.max, level=suite.kl.level))
    return Suite(
        name=name,
        place=f"[eval.{name}]",
        run=RunSettings(seed=suite.seed, alpha=suite.alpha, sampling=suite.sampling, examples=suite.examples),
        tests=tuple(tests),
        task=task,
        question=_question(msgspec.structs.replace(suite, data=None), [task]),
        data={"data": DataSource(name="data", path=data, task=task)},
        tasks={suite.task: task},
        stops=suite.sampling != "full",
    )


def _check_short(name: str, suite: EvalSettings) -> None:
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
    given = _bounds(limit)
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


def _bounds(limit: Limit) -> dict[str, float]:
    keys = ("min", "max", "max_drop", "max_rise", "max_ratio")
    return {key: value for key in keys if (value := getattr(limit, key, None)) is not None}


# -- suite files


class _Compiler:
    """One suite file: every test is bound to its data and its task, and every limit is looked at."""

    def __init__(self, name: str, file: SuiteFile, settings: Settings) -> None:
        self.name = name
        self.place = suite_path(name)
        self.file = file
        self.settings = settings
        self.task = None if file.task is None else _task(settings, file.task, self.place)
        self.tasks: dict[str, TaskSettings] = {} if file.task is None or self.task is None else {file.task: self.task}
        self.data: dict[str, DataSource] = {}

    def suite(self) -> Suite:
        file = self.file
        self._check_run()
        if not file.test:
            raise UsageError(
                f"{self.place} has no test", hint='write [[test]]  name = "flips"  kind = "nfr"  max = 0.01'
            )
        for name, count in Counter(test.name for test in file.test).items():
            if count > 1:
                raise UsageError(f"{self.place} has {count} tests called `{name}`", hint="give each a name of its own")
        for test in file.test:
            self._bind(test)
        unused = sorted(set(file.data) - set(self.data))
        if unused:
            raise UsageError(
                f"{self.place}: no test uses the data `{unused[0]}`{did_you_mean(unused[0], self.data)}",
                hint=f'write `data = "{unused[0]}"` in a test, or take [data.{unused[0]}] out',
            )
        asked = msgspec.structs.replace(file, report=ReportSettings())
        return Suite(
            name=self.name,
            place=self.place,
            run=file.run,
            tests=file.test,
            task=self.task,
            question=_question(asked, [*self.tasks.values(), *(item.task for item in self.data.values())]),
            data=self.data,
            tasks=self.tasks,
            report=file.report,
        )

    def _check_run(self) -> None:
        run = self.file.run
        if run.budget is not None:
            duration_s(run.budget, where=f"{self.place}, run: `budget`")
        for name in run.baselines:
            kind, colon, rest = name.partition(":")
            if not name or (colon and not rest) or (kind == "parent" and rest not in ("", "1")):
                raise UsageError(
                    f"{self.place}, run: the baseline `{name}` names nothing", hint='"tag:v*", "branch:main"'
                )
            if colon and kind not in _BASELINE_KINDS:
                raise UsageError(
                    f"{self.place}, run: no kind of baseline `{kind}`{did_you_mean(kind, _BASELINE_KINDS)}",
                    hint='known: "parent", "parent:1", "tag:PATTERN", "merge-base:REF", "branch:NAME", a revision',
                )
        if len(set(run.baselines)) < len(run.baselines):
            raise UsageError(f"{self.place}, run: a baseline is named twice", hint="name each once")

    def _bind(self, test: TestTable) -> None:
        where = f"{self.place}, `{test.name}`"
        if not test.name.strip() or not test.name.isprintable():
            raise UsageError(f"{self.place}: {test.name!a} is no name for a test")
        _check_test(test, where)
        named = getattr(test, "task", None)
        if named is not None:
            self.tasks[named] = _task(self.settings, named, where)
        elif self.task is None and isinstance(test, PythonTest | ResourcesTest | LmEvalTest):
            raise UsageError(f"{where} has no task", hint='write `task = "NAME"` at the top of the suite')
        if not isinstance(test, DataTest):
            return
        source = self._source(test, where)
        if source is None:
            return
        if isinstance(test, _BY_CLASS) and source.task.kind not in PER_EXAMPLE_KINDS:
            raise UsageError(
                f"{where} compares one class for each example, and its task is of kind `{source.task.kind}`",
                hint=f"docs/evals.md lists the tests for {source.task.kind} models",
            )

    def _source(self, test: DataTest, where: str) -> DataSource | None:
        """What the test reads, noted under the name that it gives; fields that tests want add up."""
        if test.data is not None and test.path is not None:
            raise UsageError(f"{where} has both `data` and `path`", hint="`data` names a table [data.NAME]")
        if test.data is None and test.path is None:
            if isinstance(test, ResourcesTest):
                return None
            raise UsageError(f"{where} has no data", hint='write `data = "NAME"` with [data.NAME], or `path = "FILE"`')
        if test.data is not None:
            key = test.data
            if key not in self.file.data:
                raise UsageError(
                    f"{where} names the data `{key}`, which the suite does not have{did_you_mean(key, self.file.data)}",
                    hint=f'write [data.{key}]  path = "data/test.jsonl"',
                )
            settings = self.file.data[key]
        else:
            key = str(test.path)
            settings = DataSettings(path=key)
        wanted = {field for field in (getattr(test, "changed", None),) if field is not None}
        if isinstance(test, RetrievalTest):
            wanted.add(self._task_of(settings, where).label)  # examples match by it, whatever the task computes
        before = self.data.get(key)
        also = frozenset({*settings.slices, *wanted, *(before.also if before else ())})
        if settings.cluster is not None:
            also |= {settings.cluster}
        source = DataSource(
            name=key,
            path=settings.path,
            task=self._task_of(settings, where),
            id_field=settings.id,
            slices=settings.slices,
            cluster=settings.cluster,
            also=also,
        )
        self.data[key] = source
        return source

    def _task_of(self, settings: DataSettings, where: str) -> TaskSettings:
        task = self.task
        if settings.task is not None:
            task = self.tasks[settings.task] = _task(self.settings, settings.task, where)
        if task is None:
            raise UsageError(f"{where} has no task", hint='write `task = "NAME"` at the top of the suite')
        given = {key: value for key in ("text", "pair", "label") if (value := getattr(settings, key)) is not None}
        return msgspec.structs.replace(task, **given) if given else task


def _check_test(test: TestTable, where: str) -> None:
    metrics: Mapping[str, MetricLimit] = getattr(test, "metrics", {})
    for name, limit in metrics.items():
        if not _bounds(limit) and "info" not in (limit.level, test.level):
            raise UsageError(f"{where}: `{name}` has no bound", hint=f"write `metrics.{name} = {{ max_drop = 0.01 }}`")
        _check_metric(test, name, limit, where)
    if isinstance(test, NfrTest):
        if test.max is None and test.slice_max is None and not test.max_vs and test.level != "info":
            raise UsageError(f"{where} has no bound", hint='write `max = 0.01`, or `level = "info"`')
    elif isinstance(test, KlTest | PerplexityTest | RetrievalTest):
        keys = ("max_drop", "min_cosine")
        if not isinstance(test, RetrievalTest):
            keys = ("max", "p99_max") if isinstance(test, KlTest) else ("max", "max_ratio")
        if all(getattr(test, key) is None for key in keys) and test.level != "info":
            raise UsageError(f"{where} has no bound", hint=f"write `{keys[0]} = ...`")
    elif isinstance(test, ClassificationTest | ResourcesTest) and not metrics:
        raise UsageError(f"{where} has no metric", hint="write `metrics.NAME = { max_drop = 0.01 }`")
    if isinstance(test, PythonTest):
        file, colon, function = test.entry.partition(":")
        if not colon or not function.isidentifier() or not file.endswith(".py") or path_problem(file) is not None:
            raise UsageError(
                f"{where}: the entry `{test.entry}` is no function", hint='`entry = "evals/leak.py:check"`'
            )
    if isinstance(test, ShellTest) and not test.command.strip():
        raise UsageError(f"{where} has an empty command", hint='`command = "python evals/tool.py {checkout}"`')
    if isinstance(test, ProgramTest):
        duration_s(test.timeout, where=f"{where}: `timeout`")
        if not metrics and test.nfr_max is None and test.level != "info":
            raise UsageError(f"{where} has no bound", hint="write `metrics.NAME = { min = 0.9 }` or `nfr_max = 0.02`")
    for key in msgspec.structs.fields(test):
        value = getattr(test, key.name)
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{where}: `{key.name}` is not a number")


def _check_metric(test: TestTable, name: str, limit: MetricLimit, where: str) -> None:
    share = isinstance(test, ClassificationTest) and name != "nll"
    for key, value in _bounds(limit).items():
        if math.isnan(value) or (key != "min" and value < 0) or (share and not 0 <= value <= 1 and key != "max_ratio"):
            unit = "lies between 0 and 1 (0.01 is one per cent)" if share else "is no such limit"
            raise UsageError(f"{where}: `{key}` of `{name}` is {value}, and {unit}")
    if isinstance(test, ClassificationTest):
        if limit.max_ratio is not None or limit.repeats is not None:
            raise UsageError(
                f"{where}: `max_ratio` and `repeats` are for tests of kind resources", hint="max_rise = 0.01"
            )
        if name == "churn" and (limit.max_drop is not None or limit.max_rise is not None):
            raise UsageError(
                f"{where}: churn takes `max` only, for it compares with the baseline already",
                hint="write `metrics.churn = { max = 0.05 }`",
            )


# -- shared


def _question(asked: msgspec.Struct, tasks: Iterable[TaskSettings]) -> bytes:
    plain = [msgspec.structs.replace(task, train=None, test=None) for task in tasks]
    return msgspec.json.encode((asked, plain), order="deterministic")


def _suite_example(name: str) -> str:
    return f'add to mgit.toml: [eval.{name}]  task = "TASK"  negative_flips = {{ max = 0.01 }}'
