"""Whether an update of a branch or a tag may land: an answer for each policy, each refusal with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from modelgit.amounts import size_text
from modelgit.objects.policies import ApprovalKind, RefPolicy
from modelgit.objects.refs import short_ref
from modelgit.policy.base import PolicyDecision, RefChange, Refusal, SignedApproval, SignedVerdict, shown_ref
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


def policies_of(policies: Mapping[str, RefPolicy], ref: str) -> dict[str, RefPolicy]:
    """The policies that hold for a ref (`heads/main`, `tags/v1.0`), by name, sorted."""
    return {name: policy for name, policy in sorted(policies.items()) if policy.protects(ref)}


def decide_update(
    policies: Mapping[str, RefPolicy],
    update: RefChange,
    *,
    verdicts: Sequence[SignedVerdict] = (),
    approvals: Sequence[SignedApproval] = (),
) -> list[PolicyDecision]:
    """What the policies of the branch or tag say, each in turn; none for one without any.

    `policies` are those of the commit `update.against`, never those that are pushed.  Every rule is looked at, so that
    somebody who is refused learns of everything at once.
    """
    return [
        _decide(name, policy, update, verdicts, approvals) for name, policy in policies_of(policies, update.ref).items()
    ]


def _decide(
    name: str,
    policy: RefPolicy,
    update: RefChange,
    verdicts: Sequence[SignedVerdict],
    approvals: Sequence[SignedApproval],
) -> PolicyDecision:
    refusals = list(_moves(policy, update))
    notes: list[str] = []
    if update.new is None:
        return PolicyDecision(name, tuple(refusals))
    refusals += _readable(update)
    refusals += _sizes(name, policy, update)
    refusals += _approvals(name, policy, update, approvals)
    if policy.require:
        # A tag says that a model was measured and found good enough, whoever has the same weights already.
        if policy.skip_if_weights_unchanged and update.keeps_weights_and_gate and not update.is_tag:
            notes.append("neither weights nor gate change, so no suite is asked for")
        else:
            refusals += required_suites(name, policy, update, verdicts)
    if not refusals:
        return PolicyDecision(name, notes=tuple(notes))
    overridden, problems = _override(name, policy, update, approvals)
    if problems and not overridden:
        refusals.append(
            Refusal("override", f"an override does not count: {problems[0]}", _approve(update, policy, "--override "))
        )
    return PolicyDecision(name, tuple(refusals), overridden, tuple(notes))


def _moves(policy: RefPolicy, update: RefChange) -> Iterator[Refusal]:
    if policy.allow_rewrite or update.old is None:
        return
    if update.new is None:
        yield Refusal(
            "deletion",
            f"{update.shown} is protected and cannot be deleted",
            "`allow_rewrite = true` in its policy would let it go",
        )
    elif update.is_tag:
        yield Refusal(
            "rewrite",
            f"{update.shown} is protected and stays at {update.old.short}: others rely on what it named",
            f"`mgit tag NAME {update.new.short}` with a name of its own",
        )
    elif not update.forward:
        verb = f"pull {update.remote}" if update.remote else "merge"  # `mgit check --base main` names no remote
        yield Refusal(
            "rewrite",
            f"{update.shown} is protected: it moves forward only, and {update.new.short} does not come from its tip",
            f"`mgit {verb} {update.shown}` merges it, `mgit revert` takes commits back",
        )


def _readable(update: RefChange) -> Iterator[Refusal]:
    if update.unreadable:
        yield Refusal(
            "unreadable",
            f"nobody could push to {update.shown} after this: {update.unreadable}",
            "correct mgit.toml, commit, push again",
        )


def _sizes(name: str, policy: RefPolicy, update: RefChange) -> Iterator[Refusal]:
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


def _approvals(
    name: str, policy: RefPolicy, update: RefChange, approvals: Sequence[SignedApproval]
) -> Iterator[Refusal]:
    rule = policy.approval
    if not rule.by or update.new is None:
        return
    for kind in rule.of:
        changed = update.changes(kind)
        if not changed:
            continue
        given = [item for item in approvals if kind in item.of and not item.override]
        problems = [_unfit(item, name, update, rule.by) for item in given]
        if None in problems:
            continue
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        reason = f"; {problems[0]}" if problems else ""
        yield Refusal(
            "approval",
            f"the update changes {_KIND_WORDS[kind]} ({', '.join(changed[:_SHOWN])}{more}),"
            f" which needs the approval of {' or '.join(rule.by)}{reason}",
            _approve(update, policy),
        )


def _approve(update: RefChange, policy: RefPolicy, options: str = "") -> str:
    """How the approval that is missing is given, and by whom."""
    if update.is_tag:
        options = f"--tag {short_ref(update.ref)} {options}"
    elif update.old is None:
        options = f"--branch {short_ref(update.ref)} {options}"
    who = policy.override.by if "--override" in options else policy.approval.by
    revision = "REV" if update.new is None else update.new.short
    whose = "one of them" if len(who) > 1 else who[0]
    return f"{whose} runs `mgit approve {revision} --base {update.base} {options}-m REASON`"


def _override(
    name: str, policy: RefPolicy, update: RefChange, approvals: Sequence[SignedApproval]
) -> tuple[str, list[str]]:
    """Who lets the update in against all refusals, and why ("" for nobody); and why others may not."""
    problems: list[str] = []
    for item in approvals if policy.override.by else ():
        if not item.override:
            continue
        problem = _unfit(item, name, update, policy.override.by)
        if problem is None and item.reason.strip():
            who = next(signer for signer in item.signers if signer in policy.override.by)
            return f"{who}: {item.reason.strip()}", []
        problems.append(problem or "it gives no reason")
    return "", problems


def _unfit(item: SignedApproval, policy: str, update: RefChange, by: Sequence[str]) -> str | None:
    """Why an approval does not count for this update under a policy; None when it does."""
    if item.commit != update.new:
        return f"the approval is of {item.commit.short}"
    if not item.ref:
        return "the approval names no branch: an older mgit made it"
    if item.ref != update.ref:
        return f"the approval is for {shown_ref(item.ref)}, and not for {update.shown}"
    if policy not in item.policies:
        return f"the approval is for the policy {' and '.join(item.policies)}, and not for {policy}"
    if item.base != update.against:
        return "the approval was given for another tip of the branch"
    if item.problem:
        return f"the approval does not count: {item.problem}"
    if not item.signers:
        return "the approval is not signed"
    if not set(item.signers) & set(by):
        return f"the approval is signed by {item.signers[0]}"
    return None
