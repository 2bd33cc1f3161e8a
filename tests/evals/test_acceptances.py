"""Accepted examples do not count as broken, drawn or in full, and the verdict names who let them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from modelgit.config.schema import EvalSettings, Limit
from modelgit.config.suites import PinTest
from modelgit.evals.base import KINDS, SuiteRun
from modelgit.evals.runner import WallTime, run_suite, sampled_limits, suite_id
from modelgit.objects import EvalRecord
from tests.evals.fakes import Told, dataset, examples_of, suite_run
from tests.evals.test_gate import FakeSide, compiled, pair

NOTE = "b3:" + "5" * 64


def evaluated(
    sides: tuple[FakeSide, FakeSide], accepted: list[int], *, sampling: str, test: str, clustered: bool = False
) -> EvalRecord:
    settings = EvalSettings(task="t", negative_flips=Limit(max=0.01), sampling=sampling)  # type: ignore[arg-type]
    suite = compiled("smoke", settings)
    candidate, baseline = sides
    if clustered:
        clusters = np.arange(len(candidate.data)) // 2
        candidate.data = baseline.data = dataclasses.replace(candidate.data, clusters=clusters)
    run = SuiteRun(
        identity=suite_id(suite, {"data": candidate.data.fingerprint}),
        settings=suite.run,
        candidate=candidate,  # type: ignore[arg-type]
        baselines=[baseline],  # type: ignore[list-item]
        datasets={"data": candidate.data},
        deadline=WallTime(None),
        root=Path(),
        failing=sampled_limits(suite.tests, baselines=1),
        accepted={test: {str(number): NOTE for number in accepted}},
    )
    return run_suite(suite, run)


@pytest.mark.parametrize("sampling", ["full", "random", "adaptive"])
@pytest.mark.parametrize("known", [False, True])
def test_what_is_accepted_does_not_count(sampling: str, known: bool) -> None:
    flipped = list(range(970, 1000))
    refused = evaluated(pair(negative=30, known=known), [], sampling=sampling, test="negative flips")
    assert (refused.decision, refused.accepted) == ("fail", ())
    passed = evaluated(pair(negative=30, known=known), flipped[:25], sampling=sampling, test="negative flips")
    assert passed.decision == "pass"
    assert passed.accepted == (NOTE,)
    assert not {flip.example for flip in passed.flips} & {str(number) for number in flipped[:25]}
    too_few = evaluated(pair(negative=30, known=known), flipped[:5], sampling=sampling, test="negative flips")
    assert too_few.decision == "fail"


def test_what_is_accepted_does_not_count_where_clusters_are_drawn() -> None:
    flipped = list(range(970, 1000))
    sides = pair(negative=30)
    passed = evaluated(sides, flipped[:28], sampling="random", test="negative flips", clustered=True)
    assert (passed.decision, passed.accepted) == ("pass", (NOTE,))
    refused = evaluated(pair(negative=30), [], sampling="random", test="negative flips", clustered=True)
    assert refused.decision == "fail"


def test_a_pin_that_is_accepted_may_be_wrong() -> None:
    data = dataset(examples_of(["good", "baad"], [0, 1]))
    said = {"good": (0.9, 0.05, 0.05), "baad": (0.9, 0.05, 0.05)}
    for accepted, decision in (({}, "fail"), ({"bugs": {"e1": NOTE}}, "pass"), ({"bugs": {"e0": NOTE}}, "fail")):
        run = suite_run(Told(said), data=data, accepted=accepted)
        [line] = KINDS.get("pin")(PinTest(name="bugs", data="data"), run)
        assert line.decision == decision
        assert run.excused == ({NOTE} if decision == "pass" else set())


def test_an_acceptance_of_another_test_or_of_what_did_not_break_changes_nothing() -> None:
    refused = evaluated(pair(negative=30), list(range(1000)), sampling="full", test="other")
    assert (refused.decision, refused.accepted) == ("fail", ())
    unused = evaluated(pair(negative=5), [0, 1, 2], sampling="full", test="negative flips")
    assert (unused.decision, unused.accepted) == ("pass", ())
