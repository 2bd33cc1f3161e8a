"""Runs a suite: its tests one after the other, each line's say in the verdict, and what time or a failure leaves open.

A comparison that cannot be made is never a pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from blake3 import blake3

from modelgit.config.suites import CheckListTest, ClassificationTest, NfrTest, RunSettings, TestTable
from modelgit.errors import MgitError
from modelgit.evals.base import KINDS, BudgetSpent, SuiteRun, data_name
from modelgit.evals.checks import Row, at_level
from modelgit.evals.suites import Suite
from modelgit.objects import CheckResult, ComparedWith, EvalRecord, ManifestId, domain, worst_decision

__all__ = ["WallTime", "run_settings", "run_suite", "sampled_limits", "suite_id", "unavailable"]

STOPPED = "not decided: the suite stopped at a proven failure"
"""What a test says that did not run because another one had failed."""
_NO_TIME = "not decided: the time of the suite is over"


class WallTime:
    """A budget of `seconds` (None: without end) from now on."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def passed(self) -> bool:
        """Whether it is over."""
        return self._end is not None and time.monotonic() >= self._end


def run_settings(
    run: RunSettings, *, full: bool = False, baselines: Sequence[str] = (), keep: bool = False
) -> RunSettings:
    """How a suite runs: a release is always measured in full, and `baselines` stand for those of the suite.

    With `keep` they stand for its "parent" only: a verdict that others rely on leaves out none of what the suite names.
    """
    if baselines and keep:
        others = (name for name in run.baselines if name not in ("parent", "parent:1"))
        baselines = tuple(dict.fromkeys((*baselines, *others)))
    if full or run.stage == "release":
        run = msgspec.structs.replace(run, sampling="full")
    return msgspec.structs.replace(run, baselines=tuple(baselines)) if baselines else run


def suite_id(suite: Suite, fingerprints: Mapping[str, str], code: Mapping[str, str] | None = None) -> str:
    """What was asked: `b3:` and the BLAKE3 of the suite, its tasks, the fingerprints of its data and its users' code.

    `fingerprints` are those of the data by name, `code` the hashes of code by path.  Two verdicts compare only under
    one suite id.
    """
    content = msgspec.json.encode(
        (suite.name, msgspec.Raw(suite.question), sorted(fingerprints.items()), sorted((code or {}).items())),
        order="deterministic",
    )
    return "b3:" + blake3(domain("suite") + content).hexdigest()


def sampled_limits(tests: Iterable[TestTable], *, baselines: int, names: int = 0) -> int:
    """How many limits of `tests` a draw of examples may find broken, against so many baselines.

    These have `names`, of which each may have a limit of its own on negative flips.
    """
    count = 0
    for test in tests:
        if test.level != "block":
            continue
        if isinstance(test, NfrTest):
            count += max(1, baselines, names if test.max_vs else 0) + (
                0 if test.slice_max is None else max(1, baselines)
            )
        elif isinstance(test, ClassificationTest) and "accuracy" in test.metrics:
            count += max(1, baselines)
        elif isinstance(test, CheckListTest):
            count += 1
    return max(1, count)


def unavailable(
    name: str, candidate: ManifestId, baseline: ManifestId | None, reason: str, *, stage: str = ""
) -> EvalRecord:
    """The record of a suite that could not even start; an "error", never a pass."""
    return EvalRecord(
        candidate=candidate,
        baseline=baseline,
        suite=name,
        suite_id="",
        results=(CheckResult(name="run", decision="error", detail=reason),),
        decision="error",
        seconds=0.0,
        stage=stage,
    )


def run_suite(
    suite: Suite,
    run: SuiteRun,
    *,
    compared: Sequence[ComparedWith] = (),
    missing: Sequence[str] = (),
) -> EvalRecord:
    """Evaluate the candidate of `run` against the limits of a suite.

    `compared` says what the baselines of `run` are, `missing` which ones of the suite mean nothing here (a tag that no
    release has yet).  Where the run is to fail fast, or where the suite stops by itself, a failed test ends the run and
    leaves the others inconclusive.  When drawing examples has in the end looked at them all, lines are exact.
    """
    started = time.monotonic()
    stops = run.fail_fast or (suite.stops and run.settings.sampling != "full")
    found: dict[str, list[Row]] = {}
    failed = False
    # What draws few examples comes first: it may decide alone.
    for test in sorted(suite.tests, key=lambda test: not isinstance(test, NfrTest)):
        if failed and stops:
            found[test.name] = _left_open(test, STOPPED)
            continue
        found[test.name] = _lines(test, run)
        failed |= any(line.decision == "fail" for line in found[test.name])
    if not (failed and stops):
        for test in suite.tests:
            if _could_be_exact(test, run):
                del run.flips[:]
                found |= {again.name: _lines(again, run) for again in suite.tests if _could_be_exact(again, run)}
                break
    rows = [line for test in suite.tests for line in found[test.name]]
    if missing and run.baselines:
        rows += [
            Row(
                CheckResult(name="baseline", decision="baseline", against=name, detail=f"{name} names none yet"), "pass"
            )
            for name in missing
        ]
    if run.settings.on_inconclusive == "warn":
        rows = [Row(line.result, "warn") if line.decision == "inconclusive" else line for line in rows]
    first = run.baselines[0] if run.baselines else None
    return EvalRecord(
        candidate=run.candidate.manifest,
        baseline=None if first is None else first.manifest,
        suite=suite.name,
        suite_id=run.identity,
        results=tuple(line.result for line in rows),
        decision=worst_decision(line.decision for line in rows),
        examples=_examples(suite, found),
        seconds=round(time.monotonic() - started, 3),
        seed=run.settings.seed,
        versions={"numpy": np.__version__, **run.candidate.versions},
        weights=run.candidate.weights,
        baselines=tuple(compared),
        stage=run.settings.stage,
        alpha=None if run.settings.sampling == "full" else run.settings.alpha,
        sampling=run.settings.sampling,
        flips=tuple(run.flips[: run.show_flips]),
        accepted=tuple(sorted(run.excused)),
    )


def _lines(test: TestTable, run: SuiteRun) -> list[Row]:
    """The lines of one test, with its name and at its level."""
    lines: list[Row] = []
    try:
        run.check()
        lines.extend(KINDS.get(_kind(test))(test, run))
    except BudgetSpent:
        return [*(_named(line, test) for line in lines), *_left_open(test, _NO_TIME)]
    except MgitError as error:
        lines.append(Row(CheckResult(name=test.name, decision="error", detail=_reason(error)), "error"))
    if not lines:
        lines.append(Row(CheckResult(name=test.name, decision="error", detail="the test measured nothing"), "error"))
    return [_named(line, test) for line in lines]


def _reason(error: MgitError) -> str:
    """What went wrong, and what to type: a line of a verdict has no place of its own for a hint."""
    return error.message if error.hint is None else f"{error.message}; {error.hint}"


def _named(line: Row, test: TestTable) -> Row:
    result = msgspec.structs.replace(line.result, test=test.name)
    return at_level(Row(result, line.decision), test.level)


def _left_open(test: TestTable, reason: str) -> list[Row]:
    result = CheckResult(name=test.name, decision="inconclusive", detail=reason)
    return [_named(Row(result, "inconclusive"), test)]


def _kind(test: TestTable) -> str:
    return str(test.__struct_config__.tag)


def _could_be_exact(test: TestTable, run: SuiteRun) -> bool:
    """Whether a test drew examples, and everything that it draws from is known by now."""
    data = run.datasets.get(data_name(test) or "")
    if run.settings.sampling == "full" or data is None or not isinstance(test, NfrTest | ClassificationTest):
        return False
    return all(side.complete(data) for side in (run.candidate, *run.baselines))


def _examples(suite: Suite, found: Mapping[str, Sequence[Row]]) -> int:
    """How many examples the run looked at; tests on the same data look at the same ones."""
    most: dict[str, int] = {}
    for test in suite.tests:
        key = data_name(test) or f"\0{test.name}"
        most[key] = max([most.get(key, 0), *(line.result.examples for line in found[test.name])])
    return sum(most.values())
