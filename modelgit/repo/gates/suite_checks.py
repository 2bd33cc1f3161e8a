"""Suites under test: what cannot be meant, whether a broken model is seen, and how much is seen without cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from modelgit.config.suites import CheckListTest, ClassificationTest, NfrTest, RetrievalTest
from modelgit.errors import MgitError, UsageError
from modelgit.evals.base import Dataset, data_name
from modelgit.evals.checks import allowed_count
from modelgit.evals.metrics import count_flips
from modelgit.evals.predictions import predict
from modelgit.evals.sequential import FlipTest
from modelgit.models.kinds import PER_EXAMPLE_KINDS
from modelgit.objects import EvalRecord, Manifest
from modelgit.progress import SILENT, Progress
from modelgit.repo.gates.sides import LoadedModels, ManifestSide, read_dataset
from modelgit.repo.gates.suite_runs import EvalOptions, evaluate_manifest
from modelgit.repo.gates.suites import worktree_suites
from modelgit.repo.gates.zeroed import zeroed_copy

if TYPE_CHECKING:
    from modelgit.evals.suites import Suite
    from modelgit.repo.repository import Repository

__all__ = ["LintData", "LintFinding", "NoiseFloor", "Power", "SelfTest", "SuiteLint", "lint", "noise_floor", "selftest"]

# How many points of a suite are tried for the first that decides.
_STEPS = 256
# Another size of batches than predictions are made in: sums are then taken in another order.
_OTHER_BATCH = 17


class LintFinding(NamedTuple):
    """Something that is wrong ("error": the suite cannot run) or cannot be meant ("warning")."""

    level: str
    message: str


class LintData(NamedTuple):
    """A set of examples as it lies in the work tree."""

    name: str
    path: str
    examples: int
    labelled: int
    fingerprint: str


class Power(NamedTuple):
    """When a limit of `allowed` flips among `total` examples can be decided by drawing (None: never early).

    `passes` is the number of examples after which a model without any flip passes, `fails` that after which one with
    twice the allowed rate fails.
    """

    test: str
    total: int
    allowed: int
    passes: int | None
    fails: int | None


class SuiteLint(NamedTuple):
    """What there is to say about one suite without running it."""

    suite: str
    place: str
    findings: tuple[LintFinding, ...]
    data: tuple[LintData, ...]
    power: tuple[Power, ...]


class SelfTest(NamedTuple):
    """A suite on the same weights twice, and on weights of which `share` was set to zero."""

    suite: str
    share: float
    same: EvalRecord
    pruned: EvalRecord
    works: bool
    reason: str


class NoiseFloor(NamedTuple):
    """Of `total` examples, how many broke, were mended, or changed their label, without a cause."""

    suite: str
    data: str
    versus: str
    total: int
    negative: int
    positive: int
    changed: int


def lint(repo: Repository, names: Sequence[str] = ()) -> list[SuiteLint]:
    """Look at the suites of the work tree (or those named) and at their data; no model is run."""
    texts = worktree_suites(repo)
    found = []
    for name in names or sorted({*texts.files, *texts.settings.eval}):
        try:
            (suite,) = texts.suites([name])
        except MgitError as error:
            place = f"evals/{name}.toml" if name in texts.files else f"[eval.{name}]"
            message = f"{error.message}; {error.hint}" if error.hint else error.message
            found.append(SuiteLint(name, place, (LintFinding("error", message),), (), ()))
            continue
        found.append(_lint(repo, suite))
    return found


def _lint(repo: Repository, suite: Suite) -> SuiteLint:
    findings: list[LintFinding] = []
    datasets: dict[str, Dataset] = {}
    lines = []
    for name, source in suite.data.items():
        try:
            data = datasets[name] = read_dataset(repo, repo.store, Manifest(), source)
        except MgitError as error:
            findings.append(LintFinding("error", f"data {name}: {error.message}"))
            continue
        labelled = int(np.count_nonzero(data.labels >= 0))
        lines.append(LintData(name, source.path, len(data), labelled, data.fingerprint))
    power = []
    for test in suite.tests:
        key = data_name(test)
        if key is None or key not in datasets:
            continue
        findings += [LintFinding("warning", f"`{test.name}`: {words}") for words in _vacuous(test, datasets[key])]
        if isinstance(test, NfrTest) and test.max is not None:
            total = _labelled(datasets[key], suite.run.examples)
            if total:
                power.append(_power(test.name, total, test.max, suite.run.alpha))
    return SuiteLint(suite.name, suite.place, tuple(findings), tuple(lines), tuple(power))


def _labelled(data: Dataset, examples: int | None) -> int:
    """How many labelled examples take part; an estimate where only part of the data does."""
    count = int(np.count_nonzero(data.labels >= 0))
    return count if examples is None else min(count, round(examples * count / len(data)))


def _vacuous(test: object, data: Dataset) -> Iterator[str]:
    """Limits that are not zero and allow not even one example, and slices that no example falls in."""
    labelled = int(np.count_nonzero(data.labels >= 0))
    rates: dict[str, float | None] = {}
    total = labelled
    if isinstance(test, NfrTest):
        rates = {"max": test.max, **{f"max_vs {name}": rate for name, rate in test.max_vs.items()}}
    elif isinstance(test, ClassificationTest):
        limit = test.metrics.get("accuracy")
        rates = {} if limit is None else {"accuracy max_drop": limit.max_drop}
    elif isinstance(test, CheckListTest):
        rates, total = {"max_fail": test.max_fail}, len(data)
    elif isinstance(test, RetrievalTest):
        rates = {"max_drop": test.max_drop}
    if isinstance(test, NfrTest | ClassificationTest) and not labelled:
        yield "no example of its data has a label"
        return
    for name, rate in rates.items():
        if rate and not allowed_count(rate, total):
            yield f"{name} = {rate:g} of {total:,} examples is less than one: it allows none, as 0 does"
    if isinstance(test, NfrTest) and test.slice_max is not None:
        sizes = [size for values in data.slices.values() for size in _sizes(values)]
        if not sizes:
            yield "slice_max without `slices` in its data"
        elif max(sizes) < test.slice_min_n:
            yield f"no slice has {test.slice_min_n:,} examples; the largest has {max(sizes):,}"
        elif test.slice_max and not allowed_count(test.slice_max, max(sizes)):
            yield f"slice_max = {test.slice_max:g} of {max(sizes):,} examples, the largest slice, is less than one"


def _sizes(values: Sequence[str]) -> list[int]:
    return list(Counter(values).values())


def _power(test: str, total: int, rate: float, alpha: float) -> Power:
    allowed = allowed_count(rate, total)
    flips = FlipTest((total,), allowed, alpha_pass=alpha, alpha_fail=alpha)
    step = max(1, total // _STEPS)
    points = [*range(step, total, step)]
    passes = next((n for n in points if flips.decide((n,), (0,)) == "pass"), None)
    bad = min(1.0, 2 * max(rate, 1 / total))
    fails = next((n for n in points if flips.decide((n,), (round(bad * n),)) == "fail"), None)
    return Power(test, total, allowed, passes, fails)


def selftest(
    repo: Repository,
    revision: str = "HEAD",
    *,
    suites: Sequence[str] = (),
    share: float = 0.5,
    progress: Progress = SILENT,
) -> list[SelfTest]:
    """Run suites on a revision against itself, and on a copy with `share` of each weight matrix pruned.

    The copy is written to a pack that goes when this ends, however it ends, and to files where a test runs a program.
    A suite works when the first passes and the second fails.  Raises UsageError when there is no suite, or nothing to
    prune.
    """
    commit = repo.resolve(revision)
    manifest = repo.manifest_of(commit)
    if not worktree_suites(repo):
        raise UsageError("there are no suites to try", hint="write evals/NAME.toml, or [eval.NAME] in mgit.toml")
    options = EvalOptions(baselines=("parent",))
    same = evaluate_manifest(repo, repo.store, manifest, [commit], suites=suites, options=options, progress=progress)
    with repo.session() as session:
        try:
            copy = zeroed_copy(repo, session, manifest, share, progress=progress)
            pruned = evaluate_manifest(repo, session, copy, [commit], suites=suites, options=options, progress=progress)
        finally:
            session.abort()
    return [_judged(a, b, share) for a, b in zip(same, pruned, strict=True)]


def _judged(same: EvalRecord, pruned: EvalRecord, share: float) -> SelfTest:
    reason = ""
    if same.decision not in ("pass", "warn"):
        line = next(line for line in same.results if line.decision == same.decision)
        reason = f"the same weights do not pass: {line.name}{f': {line.detail}' if line.detail else ''}"
    elif pruned.decision == "warn":
        reason = "it only warns of the pruned model"
    elif pruned.decision == "error":
        reason = next((line.detail for line in pruned.results if line.decision == "error"), "")
    elif pruned.decision != "fail":
        reason = "its limits let the pruned model through"
    works = same.decision in ("pass", "warn") and pruned.decision == "fail"
    return SelfTest(same.suite, share, same, pruned, works, reason)


def noise_floor(
    repo: Repository,
    revision: str = "HEAD",
    *,
    suites: Sequence[str] = (),
    against: Sequence[str] = (),
    progress: Progress = SILENT,
) -> list[NoiseFloor]:
    """How many answers of a revision change when they are computed again in other batches, for each set of examples.

    And how many differ from those of the revisions `against`, which should be as good: trained by the same recipe with
    another seed.
    """
    manifest = repo.manifest_of(repo.resolve(revision))
    others = {name: repo.manifest_of(repo.resolve(name)) for name in against}
    found = []
    for suite in worktree_suites(repo).suites(suites):
        models = LoadedModels()
        with ExitStack() as stack:

            def side(name: str, manifest: Manifest, suite: Suite = suite) -> ManifestSide:
                return ManifestSide(
                    repo,
                    repo.store,
                    manifest,
                    name=name,
                    settings=suite.run,
                    models=models,  # noqa: B023  called in this turn of the loop only
                    stack=stack,
                    progress=progress,
                )

            one = side(revision, manifest)
            for name, source in suite.data.items():
                if source.task.kind not in PER_EXAMPLE_KINDS:
                    continue
                data = read_dataset(repo, repo.store, manifest, source)
                labels = one.predictions(data).labels
                everything = np.arange(len(data), dtype=np.int64)
                again = predict(
                    one.model(data),
                    one.encode(data, everything),
                    batch_size=_OTHER_BATCH,
                    device=suite.run.device,
                    progress=progress,
                )
                found.append(_floor(suite.name, name, "computed again", data, labels, again.argmax(axis=1)))
                for called, other in others.items():
                    theirs = side(called, other).predictions(data).labels
                    found.append(_floor(suite.name, name, f"against {called}", data, labels, theirs))
    return found


def _floor(suite: str, name: str, versus: str, data: Dataset, labels: np.ndarray, others: np.ndarray) -> NoiseFloor:
    flips = count_flips(labels == data.labels, others == data.labels)
    changed = int(np.count_nonzero(labels != others))
    return NoiseFloor(suite, name, versus, len(data), flips.negative, flips.positive, changed)
