"""Whether an update of a branch may land: one answer for each policy of the branch, each refusal with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from modelgit.amounts import size_text
from modelgit.objects.policies import ApprovalKind, BranchPolicy
from modelgit.policy.base import (
    BranchUpdate,
    PolicyDecision,
    Refusal,
    SignedApproval,
    SignedVerdict,
)
from modelgit.policy.suites import required_suites

__all__ = ["decide_update", "policies_of"]

_KIND_WORDS: Mapping[ApprovalKind, str] = {
    "code": "code",
    "auto_map": "classes that config files name",
    "tokenizer": "the tokenizer",
    "chat_template": "the chat template",
    "gate": "the gate itself",
}
_SHOWN = 3


def policies_of(policies: Mapping[str, BranchPolicy], branch: str) -> dict[str, BranchPolicy]:
    """The policies that hold for a branch, by name: those with a pattern (`main`, `release/*`) that matches it."""
    return {
        name: policy
        for name, policy in sorted(policies.items())
        if any(fnmatchcase(branch, pattern) for pattern in policy.branches)
    }


def decide_update(
    policies: Mapping[str, BranchPolicy],
    update: BranchUpdate,
    *,
    verdicts: Sequence[SignedVerdict] = (),
    approvals: Sequence[SignedApproval] = (),
) -> list[PolicyDecision]:
    """What the policies of the branch say, each in turn; none for a branch without any.

    `policies` are those of the commit `update.against`, never those that are pushed.  Every rule is looked at, so that
    somebody who is refused learns of everything at once.
    """
    return [
        _decide(name, policy, update, verdicts, approvals)
        for name, policy in policies_of(policies, update.branch).items()
    ]


def _decide(
    name: str,
    policy: BranchPolicy,
    update: BranchUpdate,
    verdicts: Sequence[SignedVerdict],
    approvals: Sequence[SignedApproval],
) -> PolicyDecision:
    refusals = list(_moves(policy, update))
    notes: list[str] = []
    if update.new is None:
        return PolicyDecision(name, tuple(refusals))
    refusals += _readable(update)
    refusals += _sizes(name, policy, update)
    refusals += _approvals(policy, update, approvals)
    if policy.require:
        if policy.skip_if_weights_unchanged and update.keeps_weights_and_gate:
            notes.append("neither weights nor gate change, so no suite is asked for")
        else:
            refusals += required_suites(policy, update, verdicts)
    overridden = _override(policy, update, approvals) if refusals else ""
    return PolicyDecision(name, tuple(refusals), overridden, tuple(notes))


def _moves(policy: BranchPolicy, update: BranchUpdate) -> Iterator[Refusal]:
    if policy.allow_rewrite or update.old is None:
        return
    if update.new is None:
        yield Refusal(
            "deletion",
            f"{update.branch} is protected and cannot be deleted",
            "`allow_rewrite = true` in its policy would let it go",
        )
    elif not update.forward:
        verb = f"pull {update.remote}" if update.remote else "merge"  # `mgit check --base main` names no remote
        yield Refusal(
            "rewrite",
            f"{update.branch} is protected: it moves forward only, and {update.new.short} does not come from its tip",
            f"`mgit {verb} {update.branch}` merges it, `mgit revert` takes commits back",
        )


def _readable(update: BranchUpdate) -> Iterator[Refusal]:
    if update.unreadable:
        yield Refusal(
            "unreadable",
            f"nobody could push to {update.branch} after this: {update.unreadable}",
            "correct mgit.toml, commit, push again",
        )


def _sizes(name: str, policy: BranchPolicy, update: BranchUpdate) -> Iterator[Refusal]:
    facts = update.facts
    if policy.max_patch_bytes is not None and facts.bytes_added > policy.max_patch_bytes:
        yield Refusal(
            "patch-size",
            f"the patch is {size_text(facts.bytes_added)}, and policy {name} allows"
            f" {size_text(policy.max_patch_bytes)}",
            "`mgit commit --density` keeps the important part of a dense change",
        )
    if policy.max_model_bytes is not None and facts.raw_bytes > policy.max_model_bytes:
        yield Refusal(
            "model-size",
            f"the files come to {size_text(facts.raw_bytes)}, and policy {name} allows"
            f" {size_text(policy.max_model_bytes)}",
            "`mgit du` shows what takes the space",
        )
    if policy.max_changed is not None:
        if facts.values_changed is None:
            yield Refusal(
                "patch-density",
                f"how many values change was not counted, and policy {name} limits it",
                "`mgit push` and `mgit check` count them",
            )
        elif facts.values_changed > policy.max_changed * facts.values:
            share = facts.values_changed / max(1, facts.values)
            yield Refusal(
                "patch-density",
                f"{share:.2%} of all values change, and policy {name} allows {policy.max_changed:.2%}",
                "`mgit commit --density` keeps the important part of a dense change",
            )
    if policy.exact and facts.lossy:
        count = len(facts.lossy)
        yield Refusal(
            "lossy",
            f"commit {facts.lossy[0].short}{f' and {count - 1} more' if count > 1 else ''} of a lossy patch,"
            f" and policy {name} takes exact ones only",
            "commit the weights without `--density`",
        )


def _approvals(policy: BranchPolicy, update: BranchUpdate, approvals: Sequence[SignedApproval]) -> Iterator[Refusal]:
    rule = policy.approval
    if not rule.by or update.new is None:
        return
    for kind in rule.of:
        changed = update.changes(kind)
        if not changed:
            continue
        given = [item for item in approvals if kind in item.of and not item.override]
        problems = [_unfit(item, update, rule.by) for item in given]
        if None in problems:
            continue
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        reason = f"; {problems[0]}" if problems else ""
        yield Refusal(
            "approval",
            f"the update changes {_KIND_WORDS[kind]} ({', '.join(changed[:_SHOWN])}{more}),"
            f" which needs the approval of {' or '.join(rule.by)}{reason}",
            f"one of them runs `mgit approve {update.new.short} --base {update.base} -m REASON`",
        )


def _override(policy: BranchPolicy, update: BranchUpdate, approvals: Sequence[SignedApproval]) -> str:
    """Who lets the update in against all refusals, and why; "" for nobody."""
    for item in approvals:
        if item.override and item.reason.strip() and _unfit(item, update, policy.override.by) is None:
            who = next(name for name in item.signers if name in policy.override.by)
            return f"{who}: {item.reason.strip()}"
    return ""


def _unfit(item: SignedApproval, update: BranchUpdate, by: Sequence[str]) -> str | None:
    """Why an approval does not count for this update; None when it does."""
    if item.commit != update.new:
        return f"the approval is of {item.commit.short}"
    if item.base != update.against:
        return "the approval was given for another tip of the branch"
    if item.problem:
        return f"the approval does not count: {item.problem}"
    if not item.signers:
        return "the approval is not signed"
    if not set(item.signers) & set(by):
        return f"the approval is signed by {item.signers[0]}"
    return None
