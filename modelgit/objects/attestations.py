"""Test results as in-toto statements: which suite said what about which weights.

The form is that of the in-toto Statement v1 with the predicate "test result" v0.1
(https://github.com/in-toto/attestation, spec/predicates/test-result.md), so that other tools can read it; what only
mgit needs stands under `modelgit`.
"""

from __future__ import annotations

from typing import Final
from typing import Literal as OneOf

import msgspec

from modelgit.errors import IntegrityError, UsageError
from modelgit.objects.canonical import encode
from modelgit.objects.evaluations import CheckResult, Decision, EvalRecord
from modelgit.objects.ids import CommitId, EvalRecordId, ManifestId
from modelgit.objects.statements import Plain, read_statement, time_of, time_text, write_statement

__all__ = [
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "SUITE_DIGEST",
    "WEIGHTS_DIGEST",
    "Against",
    "Measured",
    "ModelgitBlock",
    "ResourceDescriptor",
    "TestResult",
    "TestResultPredicate",
    "make_test_result",
    "read_test_result",
    "sums_up",
    "write_test_result",
]

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
WEIGHTS_DIGEST = "mgitWeightsTree"
SUITE_DIGEST = "mgitSuite"

_RESULTS: dict[str, OneOf["PASSED", "WARNED", "FAILED"]] = {
    "pass": "PASSED",
    "baseline": "PASSED",
    "info": "WARNED",
    "warn": "WARNED",
    "fail": "FAILED",
    "inconclusive": "FAILED",
    "error": "FAILED",
}
_RANK = {"PASSED": 0, "WARNED": 1, "FAILED": 2}


class ResourceDescriptor(Plain, frozen=True, kw_only=True):
    """A thing by name and digests, as in-toto calls it."""

    name: str
    digest: dict[str, str]


class Against(Plain, frozen=True, kw_only=True):
    """A baseline: as the suite calls it, the commit that this meant, its manifest, its weights tree."""

    name: str
    manifest: str
    weights: str
    commit: str | None = None


class Measured(Plain, frozen=True, kw_only=True):
    """One line of the verdict: `n` examples of `of` were used, `broken` of them speak against the candidate.

    `value` and `baseline` are in `unit` ("" for ratios).
    """

    name: str
    decision: Decision
    test: str = ""
    against: str = ""
    slice: str = ""
    value: float | None = None
    baseline: float | None = None
    unit: str = ""
    limit: str = ""
    n: int = 0
    of: int = 0
    broken: int = 0


class ModelgitBlock(Plain, frozen=True, kw_only=True):
    """What only mgit needs.

    `record` is the id of the full verdict, `manifest` and `commit` say at which state it was taken; `budget` is the
    wall time that the suite had, `seconds` what it took, `alpha` the bound on a wrong early verdict.  `acceptances` are
    the ids of the notes that excused broken examples.
    """

    version: OneOf[1]
    decision: Decision
    record: str
    manifest: str
    time: str
    checks: tuple[Measured, ...] = ()
    baselines: tuple[Against, ...] = ()
    commit: str | None = None
    stage: str = ""
    examples: int = 0
    alpha: float | None = None
    seed: int = 0
    sampling: str = ""
    budget: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = {}
    acceptances: tuple[str, ...] = ()
    override: str | None = None


class TestResultPredicate(Plain, frozen=True, kw_only=True):
    """The predicate: the result, the suite, and its tests by how they went."""

    __test__ = False  # not a test of ours

    result: OneOf["PASSED", "WARNED", "FAILED"]
    configuration: tuple[ResourceDescriptor, ...]
    passed: tuple[str, ...] = msgspec.field(name="passedTests")
    warned: tuple[str, ...] = msgspec.field(name="warnedTests")
    failed: tuple[str, ...] = msgspec.field(name="failedTests")
    modelgit: ModelgitBlock


class TestResult(Plain, frozen=True, kw_only=True):
    """An in-toto statement about the weights tree `weights`, of the suite `suite` with id `suite_id`."""

    __test__ = False  # not a test of ours

    statement_type: OneOf["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: tuple[ResourceDescriptor, ...]
    predicate_type: OneOf["https://in-toto.io/attestation/test-result/v0.1"] = msgspec.field(name="predicateType")
    predicate: TestResultPredicate

    @property
    def weights(self) -> str:
        """The weights tree that it is about."""
        return self.subject[0].digest[WEIGHTS_DIGEST]

    @property
    def suite(self) -> str:
        """The name of the suite."""
        return self.predicate.configuration[0].name

    @property
    def suite_id(self) -> str:
        """The id of the suite: its file, its data, its code."""
        return self.predicate.configuration[0].digest[SUITE_DIGEST]

    @property
    def decision(self) -> Decision:
        """The last word, finer than the result."""
        return self.predicate.modelgit.decision

    @property
    def time_s(self) -> int:
        """When it was made, as whoever made it says; seconds since 1970."""
        return time_of(self.predicate.modelgit.time)

    @property
    def record(self) -> EvalRecordId:
        """The verdict that it sums up."""
        return EvalRecordId.parse(self.predicate.modelgit.record)


def make_test_result(
    record: EvalRecord, *, time_s: float, commit: CommitId | None = None, budget: str = ""
) -> TestResult:
    """The statement that sums up a verdict; `commit` is the one that it was taken for, if any.

    Raises UsageError for a verdict that is pending, or does not say which weights it is of.
    """
    if record.decision == "pending":
        raise UsageError(f"the verdict of suite {record.suite} is pending: there is nothing to state")
    if not record.weights:
        raise UsageError(f"the verdict of suite {record.suite} does not say which weights it is of")
    block = ModelgitBlock(
        version=1,
        decision=record.decision,
        record=str(EvalRecordId.of(encode(record))),
        manifest=str(record.candidate),
        time=time_text(time_s),
        checks=tuple(_measured(check) for check in record.results),
        baselines=tuple(
            Against(
                name=item.name,
                manifest=str(item.manifest),
                weights=item.weights,
                commit=None if item.commit is None else str(item.commit),
            )
            for item in record.baselines
        ),
        commit=None if commit is None else str(commit),
        stage=record.stage,
        examples=record.examples,
        alpha=record.alpha,
        seed=record.seed,
        sampling=record.sampling,
        budget=budget,
        seconds=record.seconds,
        versions=record.versions,
        acceptances=record.accepted,
        override=record.override,
    )
    return _statement(record.weights, record.suite, record.suite_id, block)


def write_test_result(result: TestResult) -> str:
    """The canonical JSON of a test result."""
    return write_statement(result)


def read_test_result(text: str) -> TestResult:
    """A test result from its JSON.

    Raises IntegrityError for one that does not fit the schema, has another subject than one weights tree, or
    contradicts itself: result and lists of tests must be those that follow from the block `modelgit`.
    """
    found = read_statement(TestResult, text, what="the statement")
    if len(found.subject) != 1 or found.subject[0].digest.keys() != {WEIGHTS_DIGEST}:
        raise IntegrityError("the statement is not about one weights tree")
    configuration = found.predicate.configuration
    if len(configuration) != 1 or configuration[0].digest.keys() != {SUITE_DIGEST}:
        raise IntegrityError("the statement does not name one suite")
    block = found.predicate.modelgit
    if block.decision == "pending":
        raise IntegrityError("the statement is of a suite that has not run")
    if _statement(found.weights, found.suite, found.suite_id, block) != found:
        raise IntegrityError("the statement contradicts itself: its result does not follow from its checks")
    try:
        EvalRecordId.parse(block.record)
        ManifestId.parse(block.manifest)
        for item in block.baselines:
            ManifestId.parse(item.manifest)
        for commit in (block.commit, *(item.commit for item in block.baselines)):
            if commit is not None:
                CommitId.parse(commit)
    except UsageError as error:
        raise IntegrityError(f"the statement names {error.message}") from None
    time_of(block.time)
    return found


def sums_up(result: TestResult, record: EvalRecord) -> bool:
    """Whether a statement says of a verdict what that says, and nothing else."""
    block = result.predicate.modelgit
    commit = None if block.commit is None else CommitId.parse(block.commit)
    try:
        return make_test_result(record, time_s=result.time_s, commit=commit, budget=block.budget) == result
    except UsageError:
        return False


def _measured(check: CheckResult) -> Measured:
    return Measured(
        name=check.name,
        decision=check.decision,
        test=check.test,
        against=check.against,
        slice=check.slice,
        value=check.value,
        baseline=check.baseline,
        unit=check.unit,
        limit=check.limit,
        n=check.examples,
        of=check.total,
        broken=check.broken,
    )


def _statement(weights: str, suite: str, suite_id: str, block: ModelgitBlock) -> TestResult:
    results: dict[str, str] = {}
    for check in block.checks:
        name, result = check.test or check.name, _RESULTS.get(check.decision, "FAILED")
        results[name] = max(results.get(name, "PASSED"), result, key=_RANK.__getitem__)

    def named(result: str) -> tuple[str, ...]:
        return tuple(sorted(name for name, found in results.items() if found == result))

    return TestResult(
        statement_type=STATEMENT_TYPE,
        subject=(ResourceDescriptor(name="weights", digest={WEIGHTS_DIGEST: weights}),),
        predicate_type=PREDICATE_TYPE,
        predicate=TestResultPredicate(
            result=_RESULTS[block.decision],
            configuration=(ResourceDescriptor(name=suite, digest={SUITE_DIGEST: suite_id}),),
            passed=named("PASSED"),
            warned=named("WARNED"),
            failed=named("FAILED"),
            modelgit=block,
        ),
    )
