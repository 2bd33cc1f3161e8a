"""Policies as pure decisions: each refusal, alone, with its reason; and what is let through."""

from __future__ import annotations

from typing import Any

import pytest

from modelgit.objects import CommitId, PatchFacts
from modelgit.objects.policies import APPROVAL_KINDS, ApprovalRule, OverrideRule, RefPolicy, Requirement
from modelgit.policy.base import Earlier, PolicyDecision, RefChange, SignedApproval, SignedVerdict, SuiteVersions
from modelgit.policy.decide import decide_update, policies_of

TIP, NEW, OTHER = (CommitId.of(text) for text in (b"tip", b"new", b"other"))
CI, OWNER = "ci@example.org", "owner@example.org"
SMOKE = SuiteVersions("b3:suite", "b3:suite")
POLICY = RefPolicy(
    branches=("main", "release/*"),
    require=(Requirement(suite="smoke"),),
    signers=(CI,),
    approval=ApprovalRule(by=(OWNER,)),
    override=OverrideRule(by=(OWNER,)),
)
UPDATE = RefChange(
    ref="heads/main",
    remote="origin",
    old=TIP,
    new=NEW,
    against=TIP,
    base="origin/main",
    weights_old="old",
    weights_new="new",
    suites={"smoke": SMOKE},
)
GOOD = SignedVerdict("smoke", "b3:suite", "new", ("old",), "pass", "push", (CI,))
APPROVED = SignedApproval(NEW, TIP, "heads/main", ("guard",), APPROVAL_KINDS, "looked at it", signers=(OWNER,))


def decide(
    update: RefChange = UPDATE,
    *,
    verdicts: tuple[SignedVerdict, ...] = (GOOD,),
    approvals: tuple[SignedApproval, ...] = (),
    **changes: Any,
) -> PolicyDecision:
    import msgspec

    policy = msgspec.structs.replace(POLICY, **changes)
    (decision,) = decide_update({"guard": policy}, update, verdicts=verdicts, approvals=approvals)
    return decision


def rules(decision: PolicyDecision) -> list[str]:
    assert all(item.message and item.hint for item in decision.refusals)
    return [item.rule for item in decision.refusals]


def test_a_valid_record_lets_the_update_in() -> None:
    assert decide() == PolicyDecision("guard")


@pytest.mark.parametrize(
    ("verdicts", "rule", "words"),
    [
        ((), "no-record", "no record of suite smoke is about the pushed weights"),
        ((GOOD._replace(suite="other"),), "no-record", "no record of suite smoke is about the pushed weights"),
        ((GOOD._replace(weights="elsewhere"),), "other-weights", "other weights"),
        ((GOOD._replace(signers=(), problem="its signature does not match"),), "forged", "does not match"),
        ((GOOD._replace(signers=()),), "signer", "not signed"),
        ((GOOD._replace(signers=("dev@example.org",)),), "signer", "only ci@example.org may"),
        ((GOOD._replace(suite_id="b3:another"),), "other-suite", "another version"),
        ((GOOD._replace(baselines=("older",)),), "stale-baseline", "does not compare with"),
        ((GOOD._replace(baselines=()),), "stale-baseline", "does not compare with"),
        ((GOOD._replace(decision="fail"),), "verdict", "is fail, not pass"),
        ((GOOD._replace(decision="inconclusive"),), "verdict", "is inconclusive"),
        ((GOOD._replace(decision="error"),), "verdict", "is error"),
        ((GOOD._replace(decision="warn"),), "verdict", "is warn"),
        ((GOOD._replace(decision="baseline"),), "verdict", "is baseline"),
        ((GOOD._replace(decision="pending"),), "pending", "is pending"),
    ],
)
def test_refusals_of_records(verdicts: tuple[SignedVerdict, ...], rule: str, words: str) -> None:
    decision = decide(verdicts=verdicts)
    assert rules(decision) == [rule]
    assert words in decision.refusals[0].message
    assert not decision.allowed


def test_the_record_that_comes_nearest_gives_the_reason() -> None:
    stale = GOOD._replace(baselines=("older",))
    decision = decide(verdicts=(GOOD._replace(signers=()), stale, GOOD._replace(suite_id="b3:x")))
    assert rules(decision) == ["stale-baseline"]
    assert decide(verdicts=(stale, GOOD)).allowed


def test_a_commit_that_is_pending() -> None:
    assert rules(decide(UPDATE._replace(pending=("smoke",)), verdicts=())) == ["pending"]


def test_warnings_and_other_baselines_where_the_policy_takes_them() -> None:
    lenient = {"require": (Requirement(suite="smoke", verdict="warn"),), "baseline_must_be": "any"}
    assert decide(verdicts=(GOOD._replace(decision="warn", baselines=("older",)),), **lenient).allowed
    assert not decide(verdicts=(GOOD._replace(decision="fail"),), **lenient).allowed


def test_any_listed_signer_where_none_is_named() -> None:
    assert decide(verdicts=(GOOD._replace(signers=("dev@example.org",)),), signers=()).allowed
    assert rules(decide(verdicts=(GOOD._replace(signers=()),), signers=())) == ["signer"]


def test_stages() -> None:
    release = (Requirement(suite="smoke", stage="release"),)
    assert rules(decide(require=release)) == ["stage"]
    assert decide(verdicts=(GOOD._replace(stage="release"),), require=release).allowed


def test_a_first_verdict_is_enough_only_where_there_was_no_model() -> None:
    first = GOOD._replace(decision="baseline", baselines=())
    assert decide(UPDATE._replace(weights_old=""), verdicts=(first,)).allowed
    assert not decide(verdicts=(first,)).allowed


def test_a_patch_cannot_edit_its_own_gate() -> None:
    edited = UPDATE._replace(suites={"smoke": SuiteVersions("b3:suite", "b3:edited")})
    mine = GOOD._replace(suite_id="b3:edited")
    assert rules(decide(edited, verdicts=(mine,))) == ["other-suite"]
    assert rules(decide(edited, verdicts=(GOOD,))) == ["other-suite"]
    assert decide(edited, verdicts=(GOOD, mine)).allowed
    removed = UPDATE._replace(suites={"smoke": SuiteVersions("b3:suite", None)})
    assert rules(decide(removed, verdicts=())) == ["no-record"]
    assert rules(decide(UPDATE._replace(suites={}))) == ["unknown-suite"]


def test_unchanged_weights_need_no_suite_unless_the_gate_changes() -> None:
    same = UPDATE._replace(weights_new="old")
    skipped = decide(same, verdicts=())
    assert skipped.allowed
    assert "no suite is asked for" in skipped.notes[0]
    assert rules(decide(same, verdicts=(), skip_if_weights_unchanged=False)) == ["no-record"]
    easier = same._replace(suites={"smoke": SuiteVersions("b3:suite", "b3:easier")})
    assert rules(decide(easier, verdicts=())) == ["no-record", "no-record"]
    opened = same._replace(facts=PatchFacts(gate=("mgit.toml",)))
    assert rules(decide(opened, verdicts=(), approval=ApprovalRule())) == ["no-record"]
    assert sorted(rules(decide(opened, verdicts=()))) == ["approval", "no-record"]


@pytest.mark.parametrize(
    ("facts", "limit", "rule", "words"),
    [
        (PatchFacts(bytes_added=3 << 20), {"max_patch_bytes": 2 << 20}, "patch-size", "3.0 MiB, and policy guard"),
        (PatchFacts(raw_bytes=3 << 30), {"max_model_bytes": 2 << 30}, "model-size", "3.0 GiB"),
        (PatchFacts(values=100, values_changed=6), {"max_changed": 0.05}, "patch-density", "6.00%"),
        (PatchFacts(values=100), {"max_changed": 0.05}, "patch-density", "not counted"),
        (PatchFacts(lossy=(OTHER,)), {"exact": True}, "lossy", OTHER.short),
    ],
)
def test_budgets(facts: PatchFacts, limit: dict[str, Any], rule: str, words: str) -> None:
    update = UPDATE._replace(facts=facts)
    assert decide(update).allowed
    decision = decide(update, **limit)
    assert rules(decision) == [rule]
    assert words in decision.refusals[0].message


def test_a_budget_that_is_just_kept() -> None:
    facts = PatchFacts(bytes_added=2, raw_bytes=2, values=100, values_changed=5)
    assert decide(UPDATE._replace(facts=facts), max_patch_bytes=2, max_model_bytes=2, max_changed=0.05).allowed


@pytest.mark.parametrize("kind", APPROVAL_KINDS)
def test_changes_that_need_approval(kind: str) -> None:
    update = UPDATE._replace(facts=PatchFacts(**{kind: ("some/file",)}))
    assert decide(update, approval=ApprovalRule()).allowed
    refused = decide(update)
    assert rules(refused) == ["approval"]
    assert "some/file" in refused.refusals[0].message
    assert decide(update, approvals=(APPROVED,)).allowed
    assert decide(update, approval=ApprovalRule(by=(OWNER,), of=())).allowed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"commit": OTHER}, OTHER.short),
        ({"base": OTHER}, "another tip"),
        ({"base": None}, "another tip"),
        ({"ref": "heads/release/1"}, "the approval is for release/1, and not for main"),
        ({"ref": "tags/main"}, "the approval is for tag main, and not for main"),
        ({"ref": ""}, "the approval names no branch: an older mgit made it"),
        ({"policies": ("size",)}, "the approval is for the policy size, and not for guard"),
        ({"signers": ("dev@example.org",)}, "signed by dev@example.org"),
        ({"signers": ()}, "not signed"),
        ({"signers": (), "problem": "its key is unknown"}, "its key is unknown"),
    ],
)
def test_approvals_that_do_not_count(change: dict[str, Any], words: str) -> None:
    update = UPDATE._replace(facts=PatchFacts(code=("bot/modeling.py",)))
    refused = decide(update, approvals=(APPROVED._replace(**change),))
    assert rules(refused) == ["approval"]
    assert words in refused.refusals[0].message
    assert not decide(update, approvals=(APPROVED._replace(of=("tokenizer",)),)).allowed


def test_an_owner_overrides_with_a_reason() -> None:
    override = APPROVED._replace(of=(), override=True, reason="hotfix, gate is down")
    failing = (GOOD._replace(decision="fail"),)
    decision = decide(verdicts=failing, approvals=(override,))
    assert rules(decision) == ["verdict"]
    assert decision.allowed
    assert decision.overridden == f"{OWNER}: hotfix, gate is down"
    for bad in (
        override._replace(reason="  "),
        override._replace(override=False),
        override._replace(commit=OTHER),
        override._replace(base=OTHER),
        override._replace(ref="heads/release/1"),
        override._replace(policies=("other",)),
        override._replace(signers=(CI,)),
        override._replace(problem="altered"),
    ):
        refused = decide(verdicts=failing, approvals=(bad,))
        assert not refused.allowed
        assert rules(refused) == (["verdict", "override"] if bad.override else ["verdict"])
    assert not decide(verdicts=failing, approvals=(override,), override=OverrideRule()).allowed
    assert decide(approvals=(override,)).overridden == ""


def test_protected_branches_are_neither_deleted_nor_rewritten() -> None:
    deleted = UPDATE._replace(new=None, forward=False)
    assert rules(decide(deleted)) == ["deletion"]
    assert rules(decide(UPDATE._replace(forward=False))) == ["rewrite"]
    assert decide(deleted, allow_rewrite=True).allowed
    assert decide(UPDATE._replace(forward=False), allow_rewrite=True).allowed
    assert rules(decide(UPDATE._replace(forward=False), allow_rewrite=True, verdicts=())) == ["no-record"]
    assert decide(UPDATE._replace(old=None)).allowed


def test_which_refs_a_policy_is_about() -> None:
    everything = ("heads/main", "heads/v1", "tags/main", "tags/v1")

    def about(policy: RefPolicy) -> list[str]:
        return [ref for ref in everything if policy.protects(ref)]

    assert about(RefPolicy()) == ["heads/main"]
    assert about(RefPolicy(tags=("v*",))) == ["tags/v1"]
    assert about(RefPolicy(branches=("main",), tags=("v*",))) == ["heads/main", "tags/v1"]
    assert about(RefPolicy(branches=(), tags=())) == []


TAG = UPDATE._replace(
    ref="tags/v2", old=None, weights_old="new", suites={"smoke": SuiteVersions("b3:suite", None)}
)  # fmt: skip
RELEASED: dict[str, Any] = {"tags": ("v*",), "require": (Requirement(suite="smoke", stage="release"),)}


def test_a_protected_tag_needs_a_record_though_its_weights_are_the_tip_s() -> None:
    refused = decide(TAG, verdicts=(), **RELEASED)
    assert rules(refused) == ["no-record"]
    assert refused.refusals[0].hint == (
        f"`mgit eval {NEW.short} --suite smoke --suites-from origin/main --record --sign` makes it,"
        " `mgit push --tags` sends it"
    )
    early = decide(TAG, **RELEASED)
    assert rules(early) == ["stage"]
    assert "and tag v2 requires release" in early.refusals[0].message
    assert decide(TAG, verdicts=(GOOD._replace(stage="release"),), **RELEASED).allowed


def test_a_release_is_compared_with_the_one_before() -> None:
    after = TAG._replace(behind={"guard": Earlier("v1", "first")})
    good = GOOD._replace(stage="release")
    stale = decide(after, verdicts=(good,), **RELEASED)
    assert rules(stale) == ["stale-baseline"]
    assert "does not compare with v1, the protected tag behind tag v2" in stale.refusals[0].message
    assert "--suites-from origin/main --baseline v1 --record" in stale.refusals[0].hint
    assert decide(after, verdicts=(good._replace(baselines=("old", "first")),), **RELEASED).allowed
    assert decide(after, verdicts=(good,), baseline_must_be="any", **RELEASED).allowed
    first = good._replace(decision="baseline", baselines=())
    assert decide(TAG, verdicts=(first,), **RELEASED).allowed
    assert not decide(after, verdicts=(first,), baseline_must_be="any", **RELEASED).allowed


def test_protected_tags_stay() -> None:
    moved = decide(TAG._replace(old=OTHER), verdicts=(GOOD._replace(stage="release"),), **RELEASED)
    assert rules(moved) == ["rewrite"]
    assert moved.refusals[0].message == f"tag v2 is protected and stays at {OTHER.short}: others rely on what it named"
    gone = TAG._replace(old=OTHER, new=None)
    assert rules(decide(gone, **RELEASED)) == ["deletion"]
    assert decide(gone, allow_rewrite=True, **RELEASED).allowed


def test_approvals_of_tags_name_the_tag() -> None:
    update = TAG._replace(facts=PatchFacts(code=("bot/modeling.py",)))
    good = (GOOD._replace(stage="release"),)
    refused = decide(update, verdicts=good, approvals=(APPROVED,), **RELEASED)
    assert "the approval is for main, and not for tag v2" in refused.refusals[0].message
    assert f"`mgit approve {NEW.short} --base origin/main --tag v2 -m REASON`" in refused.refusals[0].hint
    assert decide(update, verdicts=good, approvals=(APPROVED._replace(ref="tags/v2"),), **RELEASED).allowed


def test_settings_that_nobody_could_read_are_not_let_in() -> None:
    assert rules(decide(UPDATE._replace(unreadable="mgit.toml, line 3: not valid TOML"))) == ["unreadable"]


def test_policies_hold_for_the_branches_that_they_name() -> None:
    policies = {"guard": POLICY, "size": RefPolicy(branches=("*",), max_patch_bytes=1)}
    assert not policies_of({"guard": POLICY}, "heads/feature")
    assert decide_update({"guard": POLICY}, UPDATE._replace(ref="heads/feature")) == []
    update = UPDATE._replace(ref="heads/release/2", facts=PatchFacts(bytes_added=2))
    found = {item.policy: rules(item) for item in decide_update(policies, update, verdicts=(GOOD,))}
    assert found == {"guard": [], "size": ["patch-size"]}


def test_everything_is_said_at_once() -> None:
    update = UPDATE._replace(facts=PatchFacts(bytes_added=9, code=("a.py",), lossy=(NEW,)), forward=False)
    assert rules(decide(update, verdicts=(), max_patch_bytes=1, exact=True)) == [
        "rewrite",
        "patch-size",
        "lossy",
        "approval",
        "no-record",
    ]
