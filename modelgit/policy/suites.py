"""Whether the suites that a policy requires have passed: on these weights, against this tip, by this suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from modelgit.objects.policies import RefPolicy, Requirement
from modelgit.policy.base import Earlier, RefChange, Refusal, SignedVerdict, SuiteVersions

__all__ = ["required_suites"]

_STAGES = ("commit", "push", "release")
_SHOWN = 12


class _Asked(NamedTuple):
    """One version of a suite that a policy requires of an update, and what its verdict must compare with."""

    policy: RefPolicy
    requirement: Requirement
    update: RefChange
    earlier: Earlier
    suite_id: str = ""


def required_suites(
    name: str, policy: RefPolicy, update: RefChange, verdicts: Sequence[SignedVerdict]
) -> Iterator[Refusal]:
    """A refusal for each suite that the policy `name` requires, and each version of it, that no verdict satisfies."""
    for requirement in policy.require:
        versions = update.suites.get(requirement.suite, SuiteVersions(None, None))
        if not versions.required:
            yield Refusal(
                "unknown-suite",
                f"{update.shown} requires suite {requirement.suite}, which neither {update.base} nor the pushed commit"
                " has",
                f"add evals/{requirement.suite}.toml, or an owner overrides with a signed reason",
            )
        for suite_id in versions.required:
            refusal = _missing(_Asked(policy, requirement, update, update.earlier(name), suite_id), verdicts)
            if refusal is not None:
                yield refusal


def _missing(asked: _Asked, verdicts: Sequence[SignedVerdict]) -> Refusal | None:
    """None when a verdict satisfies the requirement, otherwise why the one that comes nearest does not."""
    # What cannot be read does not say which suite it is of: it may be this one.
    suite = asked.requirement.suite
    about = [item for item in verdicts if item.suite in (suite, "")]
    if not about:
        if suite in asked.update.pending:
            return _refusal(asked, "pending", f"suite {suite} is still pending for the pushed weights")
        return _refusal(asked, "no-record", f"no record of suite {suite} is about the pushed weights")
    reached: tuple[int, Refusal] | None = None
    for verdict in about:
        found = _fault(asked, verdict)
        if found is None:
            return None
        if reached is None or found[0] > reached[0]:
            reached = found
    return reached[1] if reached else None


_Check = tuple[str, Callable[[], str | None]]


def _fault(asked: _Asked, verdict: SignedVerdict) -> tuple[int, Refusal] | None:
    """How many checks a verdict passes, and the first that it does not; None when it passes all."""
    policy, requirement, update, earlier, suite_id = asked
    whose = f"the record of suite {requirement.suite}"

    def other_weights() -> str | None:
        if verdict.weights == update.weights_new:
            return None
        return f"{whose} is about other weights ({verdict.weights[:_SHOWN]}, not {update.weights_new[:_SHOWN]})"

    def forged() -> str | None:
        return f"{whose} does not count: {verdict.problem}" if verdict.problem else None

    def stranger() -> str | None:
        if not verdict.signers:
            return f"{whose} does not count: it is not signed"
        if policy.signers and not set(policy.signers) & set(verdict.signers):
            return f"{whose} is signed by {verdict.signers[0]}, and only {_listed(policy.signers)} may sign it"
        return None

    def other_suite() -> str | None:
        if verdict.suite_id == suite_id:
            return None
        which = _which(update, requirement.suite, suite_id)
        return f"{whose} is of another version of the suite than {which} ({_short(verdict.suite_id)})"

    def early_stage() -> str | None:
        if _rank(verdict.stage) >= _rank(requirement.stage):
            return None
        return f"{whose} is of stage {verdict.stage or 'commit'}, and {update.shown} requires {requirement.stage}"

    def stale() -> str | None:
        if policy.baseline_must_be == "any" or earlier.weights in verdict.baselines:
            return None
        if not earlier.weights and (update.is_tag or not verdict.baselines):
            return None
        if update.is_tag:
            return f"{whose} does not compare with {earlier.name}, the protected tag behind {update.shown}"
        return f"{whose} does not compare with {update.against.short}, the tip of {update.shown} that it would replace"

    def failed() -> str | None:
        # A first verdict has nothing to compare with: good enough only where there is nothing to compare with.
        if verdict.decision == "baseline" and not earlier.weights:
            return None
        if verdict.decision == "pass" or (verdict.decision == "warn" and requirement.verdict == "warn"):
            return None
        return f"the verdict of suite {requirement.suite} is {verdict.decision}, not {requirement.verdict}"

    checks: tuple[_Check, ...] = (
        ("other-weights", other_weights),
        ("forged", forged),
        ("signer", stranger),
        ("other-suite", other_suite),
        ("stage", early_stage),
        ("stale-baseline", stale),
        ("pending" if verdict.decision == "pending" else "verdict", failed),
    )
    for passed, (rule, check) in enumerate(checks):
        message = check()
        if message is not None:
            return passed, _refusal(asked, rule, message)
    return None


def _refusal(asked: _Asked, rule: str, message: str) -> Refusal:
    _, requirement, update, earlier, suite_id = asked
    versions = update.suites[requirement.suite]
    # Where both sides have a version of their own, each must be run.
    law = f" --suites-from {update.base}" if suite_id == versions.tip != versions.pushed else ""
    baseline = f" --baseline {earlier.name}" if earlier.name else ""
    command = f"mgit eval {_name(update)} --suite {requirement.suite}{law}{baseline}"
    run = f"`{command} --record --sign`"
    push = "mgit push --tags" if update.is_tag else "mgit push"
    hints = {
        "no-record": f"{run} makes it, `{push}` sends it",
        "pending": f"{run} on a machine that can run it, then `{push}`",
        "other-weights": f"{run} makes one about these weights",
        "forged": f"{run} with a key that evals/allowed_signers lists",
        "signer": f"{run} with such a key, or let the pipeline that holds it run it",
        "other-suite": f"{run} runs that version",
        "stage": f'set stage = "{requirement.stage}" in the suite on {update.base}, then {run}',
        "stale-baseline": f"{run}, then `{push}`" if update.is_tag else f"`mgit pull`, then {run}",
        "verdict": f"`{command}` shows what broke",
    }
    return Refusal(rule, message, hints[rule])


def _which(update: RefChange, suite: str, suite_id: str) -> str:
    versions = update.suites[suite]
    tip = f"that of {update.base if update.is_tag else update.shown}"
    return tip if suite_id == versions.tip else "the one that the pushed commit brings"


def _name(update: RefChange) -> str:
    return update.new.short if update.new is not None else "REV"


def _rank(stage: str) -> int:
    return _STAGES.index(stage) if stage in _STAGES else 0


def _short(suite_id: str) -> str:
    return suite_id.removeprefix("b3:")[:_SHOWN]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
