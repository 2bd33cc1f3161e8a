from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from modelgit.config.schema import EvalSettings, Limit, Settings, TaskSettings
from modelgit.config.suites import NfrTest, RunSettings, TestTable
from modelgit.errors import UsageError
from modelgit.evals.base import Dataset, SuiteRun
from modelgit.evals.predictions import Predictions
from modelgit.evals.runner import WallTime, sampled_limits, suite_id, unavailable
from modelgit.evals.runner import run_suite as run_compiled
from modelgit.evals.suites import Suite, load_suites
from modelgit.models.base import Example
from modelgit.objects import EvalRecord, ManifestId, decode, encode, worst_decision

TASK = TaskSettings(model="models/bot", adapter="bert-classifier", test="data/test.jsonl")
OLD, NEW = ManifestId.of(b"old"), ManifestId.of(b"new")


def log_probs(labels: np.ndarray, *, classes: int = 3, sure: float = 0.9) -> np.ndarray:
    rows = np.full((len(labels), classes), np.log((1 - sure) / (classes - 1)), dtype=np.float32)
    rows[np.arange(len(labels)), labels] = np.log(sure)
    return rows


@dataclass
class FakeSide:
    manifest: ManifestId
    data: Dataset
    rows: np.ndarray
    known: bool = False
    name: str = "candidate"
    weights: str = "w"
    versions: Mapping[str, str] = field(default_factory=lambda: {"torch": "2.x"})
    asked: set[int] = field(default_factory=set)
    error: UsageError | None = None

    def complete(self, data: Dataset) -> bool:
        return self.known

    def predictions(self, data: Dataset, indices: np.ndarray | None = None) -> Predictions:
        if self.error is not None:
            raise self.error
        wanted = np.arange(len(self.rows)) if indices is None else indices
        assert (np.diff(wanted) > 0).all()
        self.asked.update(wanted.tolist())
        return Predictions(wanted, self.rows[wanted])


def dataset(labels: np.ndarray, fingerprint: str = "f" * 64) -> Dataset:
    examples = tuple(Example(str(number), "", int(label)) for number, label in enumerate(labels))
    return Dataset("data", TASK, examples, fingerprint, labels.astype(np.int64))


def pair(
    total: int = 1000, *, wrong: int = 100, negative: int = 0, positive: int = 0, known: bool = False
) -> tuple[FakeSide, FakeSide]:
    """The first `wrong` are wrong in the baseline, `positive` of which are mended; the last `negative` are broken."""
    gold = np.arange(total) % 3
    data = dataset(gold)
    old = gold.copy()
    old[:wrong] = (old[:wrong] + 1) % 3
    new = old.copy()
    new[:positive] = gold[:positive]
    new[total - negative :] = (gold[total - negative :] + 1) % 3
    return FakeSide(NEW, data, log_probs(new)), FakeSide(OLD, data, log_probs(old), known=known, name="parent")


def compiled(name: str, settings: EvalSettings) -> Suite:
    return load_suites(Settings(task={"t": TASK}, eval={name: settings}))[0]


def run_suite(name: str, settings: EvalSettings, candidate: FakeSide, baseline: FakeSide | None) -> EvalRecord:
    return run_on(compiled(name, settings), candidate, baseline)


def run_tests(
    tests: Sequence[TestTable], candidate: FakeSide, baseline: FakeSide, sampling: str = "adaptive"
) -> EvalRecord:
    run = RunSettings(sampling=sampling)  # type: ignore[arg-type]
    suite = Suite(name="s", place="evals/s.toml", run=run, tests=tuple(tests), task=TASK, question=b"{}")
    return run_on(suite, candidate, baseline)


def run_on(suite: Suite, candidate: FakeSide, baseline: FakeSide | None, *, fail_fast: bool = False) -> EvalRecord:
    baselines = [] if baseline is None else [baseline]
    run = SuiteRun(
        fail_fast=fail_fast,
        identity=suite_id(suite, {"data": candidate.data.fingerprint}),
        settings=suite.run,
        candidate=candidate,  # type: ignore[arg-type]
        baselines=baselines,  # type: ignore[arg-type]
        datasets={"data": candidate.data},
        deadline=WallTime(None),
        root=Path(),
        failing=sampled_limits(suite.tests, baselines=len(baselines)),
    )
    return run_compiled(suite, run)


def rows(record: EvalRecord) -> dict[str, str]:
    return {result.name: result.decision for result in record.results}


def test_a_limit_is_a_count_of_examples() -> None:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.01), accuracy=Limit(max_drop=0.005, min=0.89))
    at_limit = run_suite("smoke", settings, *pair(negative=10, positive=5))
    assert at_limit.decision == "pass"
    flips = next(result for result in at_limit.results if result.name == "negative flips")
    assert flips.value == 0.01
    assert flips.limit == "max 1.0 %"
    assert flips.detail == "10 of 1,000 examples went from right to wrong"
    accuracy = at_limit.results[0]
    assert (accuracy.baseline, accuracy.value, accuracy.limit) == (0.9, 0.895, "min 89.0 %, -0.5 pt")
    assert at_limit.examples == 1000

    assert rows(run_suite("smoke", settings, *pair(negative=11, positive=11))) == {
        "accuracy": "pass",
        "negative flips": "fail",
    }
    assert rows(run_suite("smoke", settings, *pair(negative=10, positive=4)))["accuracy"] == "fail"


def test_regressions_that_accuracy_cannot_see_are_refused() -> None:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.01), accuracy=Limit(max_drop=0.0))
    record = run_suite("smoke", settings, *pair(negative=30, positive=40))
    assert rows(record) == {"accuracy": "pass", "negative flips": "fail"}
    assert record.decision == "fail"


def test_without_a_baseline_relative_limits_wait_and_absolute_ones_bite() -> None:
    settings = EvalSettings(
        task="t", negative_flips=Limit(max=0.01), kl=Limit(max=0.1), accuracy=Limit(min=0.5, max_drop=0.01)
    )
    candidate, _ = pair()
    first = run_suite("smoke", settings, candidate, None)
    assert set(rows(first).values()) == {"baseline"}
    assert (first.decision, first.baseline) == ("baseline", None)
    poor, _ = pair(wrong=900)
    assert run_suite("smoke", settings, poor, None).decision == "fail"


@pytest.mark.parametrize(
    ("level", "row", "decision"), [("block", "fail", "fail"), ("warn", "warn", "warn"), ("info", "info", "pass")]
)
def test_levels(level: str, row: str, decision: str) -> None:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.0, level=level))  # type: ignore[arg-type]
    record = run_suite("smoke", settings, *pair(negative=1))
    assert rows(record) == {"negative flips": row}
    assert record.decision == decision


def test_divergence_is_measured_and_limited() -> None:
    candidate, baseline = pair(negative=100)
    exact = float(0.1 * 0.85 * np.log(0.9 / 0.05))  # a tenth of the rows swaps 0.9 and 0.05
    for limit, decision in ((exact * 1.001, "pass"), (exact * 0.999, "fail")):
        record = run_suite("drift", EvalSettings(task="t", kl=Limit(max=limit)), candidate, baseline)
        assert record.decision == decision
        assert record.results[0].value == pytest.approx(exact, rel=1e-5)
        assert record.results[0].unit == "nats"


def test_nan_is_wrong_and_never_a_pass() -> None:
    candidate, baseline = pair()
    candidate.rows[500:520] = np.nan
    settings = EvalSettings(task="t", kl=Limit(max=10.0), negative_flips=Limit(max=0.01), accuracy=Limit(max_drop=0.01))
    record = run_suite("smoke", settings, candidate, baseline)
    assert set(rows(record).values()) == {"fail"}
    assert record.results[2].detail == "not finite on 20 of 1,000 examples"
    assert decode(EvalRecord, encode(record)) == record


def test_what_cannot_be_compared_is_an_error() -> None:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.01), kl=Limit(max=0.1))
    candidate, baseline = pair()
    candidate.error = UsageError("no tensor `classifier.weight`")
    assert run_suite("smoke", settings, candidate, baseline).decision == "error"

    candidate, baseline = pair()
    for side in (candidate, baseline):
        side.data = dataset(np.full(1000, -1))
    assert rows(run_suite("smoke", settings, candidate, baseline)) == {"negative flips": "error", "kl": "pass"}

    candidate, baseline = pair()
    candidate.rows = np.full((1000, 4), np.log(0.25), dtype=np.float32)
    record = run_suite("drift", EvalSettings(task="t", kl=Limit(max=0.1)), candidate, baseline)
    assert record.results[0].detail == "the candidate has 4 classes, the baseline 3"
    assert record.decision == "error"

    empty = dataset(np.zeros(0, dtype=np.int64))
    nothing = FakeSide(NEW, empty, np.zeros((0, 3), dtype=np.float32))
    assert run_suite("smoke", settings, nothing, None).decision == "error"
    assert unavailable("smoke", NEW, OLD, "data/test.jsonl is missing").decision == "error"


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("sampling", ["random", "adaptive"])
def test_drawing_decides_with_few_examples(sampling: str, known: bool) -> None:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.02), sampling=sampling)  # type: ignore[arg-type]
    candidate, baseline = pair(4000, wrong=800, known=known)
    clean = run_suite("smoke", settings, candidate, baseline)
    assert clean.decision == "pass"
    assert clean.examples == len(candidate.asked) < 300
    assert f"0 of the {clean.examples} examples drawn" in clean.results[0].detail
    assert known or candidate.asked == baseline.asked

    candidate, baseline = pair(4000, wrong=800, negative=200, known=known)
    bad = run_suite("smoke", settings, candidate, baseline)
    assert bad.decision == "fail"
    assert len(candidate.asked) < 1500
    assert "proven at alpha 0.05" in bad.results[0].detail


def test_failing_fast_draws_fragile_examples_first() -> None:
    suite = compiled("smoke", EvalSettings(task="t", negative_flips=Limit(max=0.02), sampling="adaptive"))
    asked = {}
    for negative in (0, 130):
        for fast in (False, True):
            candidate, baseline = pair(4000, wrong=0, negative=negative, known=True)
            # The last 600 are fragile; what flips is among them.
            baseline.rows[3400:] = log_probs(np.arange(3400, 4000) % 3, sure=0.5)
            record = run_on(suite, candidate, baseline, fail_fast=fast)
            assert record.decision == ("fail" if negative else "pass")
            asked[negative, fast] = candidate.asked
    assert len(asked[130, True]) <= len(asked[130, False]) and min(asked[130, False]) < 3400 <= min(asked[130, True])
    assert len(asked[0, False]) < 600 < len(asked[0, True]) and set(range(3400, 4000)) < asked[0, True]


def test_drawing_agrees_with_the_full_run_where_it_is_clear() -> None:
    for negative in (0, 10, 150, 300):
        decisions = set()
        for sampling in ("full", "random", "adaptive"):
            settings = EvalSettings(task="t", negative_flips=Limit(max=0.03), sampling=sampling)  # type: ignore[arg-type]
            decisions.add(run_suite("s", settings, *pair(3000, negative=negative, known=True)).decision)
        assert len(decisions) == 1


def test_accuracy_is_decided_by_few_examples_or_measured_in_full() -> None:
    draws = EvalSettings(
        task="t", negative_flips=Limit(max=0.02), accuracy=Limit(min=0.7, max_drop=0.02), sampling="random"
    )
    candidate, baseline = pair(4000, wrong=800, known=True)
    record = run_suite("smoke", draws, candidate, baseline)
    assert record.decision == "pass"
    assert record.examples < 600
    assert record.results[0].detail.endswith("proven at alpha 0.05")

    floor = EvalSettings(task="t", negative_flips=Limit(max=0.02), accuracy=Limit(min=0.85), sampling="random")
    record = run_suite("smoke", floor, candidate, baseline)
    assert record.decision == record.results[0].decision == "fail" and record.examples < 3000

    # What is no mean over examples needs every one, and is then exact.
    other = EvalSettings(task="t", negative_flips=Limit(max=0.02), kl=Limit(max=0.5), sampling="adaptive")
    record = run_suite("smoke", other, candidate, baseline)
    assert record.examples == 4000
    assert all(result.value is not None for result in record.results)


def test_a_fall_that_gains_do_not_make_up_for_is_found_and_one_that_they_do_is_none() -> None:
    settings = EvalSettings(task="t", accuracy=Limit(max_drop=0.02), sampling="adaptive")
    kept = run_suite("s", settings, *pair(4000, wrong=800, negative=160, positive=160))
    assert kept.decision == "pass" and kept.examples < 4000
    fallen = run_suite("s", settings, *pair(4000, wrong=800, negative=400, positive=80))
    assert fallen.decision == "fail" and fallen.examples < 2000
    line = fallen.results[0]
    assert line.value is not None and line.baseline is not None and line.value < line.baseline - 0.02


def test_clusters_are_drawn_whole_and_slices_until_each_is_decided() -> None:
    candidate, baseline = pair(4000, wrong=800, negative=0)
    for side in (candidate, baseline):
        side.data = replace(side.data, clusters=np.arange(4000) // 8)
    record = run_tests([NfrTest(name="flips", data="data", max=0.02)], candidate, baseline)
    assert record.decision == "pass" and 0 < record.examples < 2400 and record.examples % 8 == 0
    assert {position // 8 * 8 + rest for position in candidate.asked for rest in range(8)} == candidate.asked

    candidate, baseline = pair(4000, wrong=800, negative=160)
    for side in (candidate, baseline):
        side.data = replace(side.data, slices={"tail": tuple("ny"[number >= 3000] for number in range(4000))})
    test = NfrTest(name="flips", data="data", max=0.2, slice_max=0.05, slice_min_n=50)
    record = run_tests([test], candidate, baseline)
    broken = [line for line in record.results if line.slice]
    assert [(line.slice, line.decision, line.total) for line in broken] == [("tail=y", "fail", 1000)]
    assert record.examples < 4000 and "1 of 2 slices" in record.results[-1].detail
    full = run_tests([test], candidate, baseline, sampling="full")
    assert [line.slice for line in full.results if line.slice] == ["tail=y"] and full.examples == 4000
    # What holds is not given the figure of what broke; where nothing holds, no line says "pass".
    assert "1 of 2 slices" in full.results[-1].detail and (full.results[-1].value or 0.0) <= 0.05
    test = NfrTest(name="flips", data="data", max=0.2, slice_max=0.0, slice_min_n=50)
    candidate.data = baseline.data = replace(candidate.data, slices={"all": ("x",) * 4000})
    for sampling in ("full", "random"):
        lines = run_tests([test], candidate, baseline, sampling=sampling).results
        assert [line.decision for line in lines] == ["pass", "fail"]


def test_a_proven_failure_stops_and_leaves_the_rest_open() -> None:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.01), kl=Limit(max=9.0), sampling="random")
    record = run_suite("smoke", settings, *pair(4000, negative=800))
    assert rows(record) == {"negative flips": "fail", "kl": "inconclusive"}
    assert record.decision == "fail"
    assert record.examples < 400


def test_a_limited_suite_is_a_fixed_part_of_the_data() -> None:
    settings = EvalSettings(task="t", accuracy=Limit(min=0.0), examples=50)
    first, _ = pair()
    second, _ = pair(negative=300)
    assert run_suite("smoke", settings, first, None).examples == 50
    run_suite("smoke", settings, second, None)
    assert first.asked == second.asked
    assert len(first.asked) == 50


def test_suite_id_names_the_question() -> None:
    smoke = compiled("a", EvalSettings(task="t", accuracy=Limit(min=0.5)))
    data = {"data": "f" * 64}
    ids = {
        suite_id(smoke, data),
        suite_id(replace(smoke, name="b"), data),
        suite_id(compiled("a", EvalSettings(task="t", accuracy=Limit(min=0.6))), data),
        suite_id(smoke, {"data": "0" * 64}),
        suite_id(smoke, data, {"evals/leak.py": "0" * 64}),
    }
    assert len(ids) == 5
    moved = EvalSettings(task="t", accuracy=Limit(min=0.5), data="elsewhere.jsonl")
    assert suite_id(compiled("a", moved), data) in ids


def test_decisions_combine_to_the_worst() -> None:
    assert worst_decision(["pass", "pass"]) == "pass"
    assert worst_decision(["pass", "baseline"]) == "baseline"
    assert worst_decision(["warn", "baseline", "inconclusive"]) == "inconclusive"
    assert worst_decision(["error", "inconclusive", "warn"]) == "error"
    assert worst_decision(["error", "fail"]) == "fail"
    assert worst_decision([]) == "error"
