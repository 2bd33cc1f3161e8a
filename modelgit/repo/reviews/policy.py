"""The parts of `mgit check` that are about trust: who vouches for the weights, and what the branch demands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from modelgit.errors import MgitError
from modelgit.objects import CheckSection, Commit, CommitId, Finding, PatchFacts
from modelgit.objects.refs import BRANCHES, TAGS, short_ref
from modelgit.repo.notes import allowed_signers, check_kept
from modelgit.repo.reviews.patch_facts import Tree
from modelgit.repo.reviews.ref_policies import RefDecision, decide_ref
from modelgit.repo.reviews.sections import section
from modelgit.repo.revisions import branch_of
from modelgit.repo.statistics import kept_statistics
from modelgit.repo.weights import weights_tree

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["policy_section", "signatures_section", "tag_section"]

# What a push will need and a check comes before: records are made of what was checked.
_LATER = frozenset(
    {"no-record", "pending", "other-weights", "signer", "other-suite", "stale-baseline", "rewrite", "override"}
)


def signatures_section(law: Tree, new: Tree, commit: CommitId, commits: Mapping[CommitId, Commit]) -> CheckSection:
    """The verdicts and approvals that this repository keeps about the update, checked against the signers of `law`."""
    repo = new.repo
    weights = weights_tree(repo, new.manifest, store=new.store)
    signers = allowed_signers(repo, law.manifest, store=law.store)
    findings: list[Finding] = []
    good: list[str] = []
    now = time.time()
    for kept in kept_statistics(repo).notes:
        if (kept.kind, kept.about) not in (("test-result", weights), ("approval", str(commit))):
            continue
        try:
            checked = check_kept(repo, kept, signers, now_s=now, at_s=now).checked
            what = checked.result.suite if checked.result is not None else "approval"
            reasons = checked.reasons
        except MgitError as error:
            what, reasons = kept.kind, (error.message,)
        if not reasons:
            good.append(f"{what} by {checked.signature.principals[0]}")
            continue
        for reason in reasons:
            message = f"the record of {what} about this update does not count: {reason}"
            findings.append(Finding(rule="signatures/record", level="warning", message=message))
    for commit_id, record in commits.items():
        if record.signature is not None:
            message = f"commit {commit_id.short} carries a signature, and mgit does not check those of commits"
            findings.append(Finding(rule="signatures/commit", level="warning", message=message, commit=commit_id))
    if good:
        return section("signatures", f"signed: {', '.join(good)}", findings)
    if findings:
        return section("signatures", "nobody vouches for this update", findings)
    return CheckSection(name="signatures", outcome="skip", summary="no record about this update yet", seconds=0.0)


def policy_section(
    repo: Repository, base: str, base_commit: CommitId, commit: CommitId, facts: PatchFacts
) -> CheckSection:
    """What the policies of the branch that `base` stands for say; a record that is still to be made only warns."""
    remote, branch = branch_of(repo, base)
    if not branch:
        return CheckSection(name="policy", outcome="skip", summary=f"{base} is no branch", seconds=0.0)
    found = decide_ref(
        repo,
        ref=f"{BRANCHES}{branch}",
        remote=remote,
        old=base_commit,
        new=commit,
        against=base_commit,
        base=base,
        tags={},
        store=repo.store,
        notes=kept_statistics(repo).notes,
        facts=facts,
    )
    if found is None:
        return CheckSection(name="policy", outcome="skip", summary=f"{branch} has no policy", seconds=0.0)
    return _decided("policy", found)


def tag_section(repo: Repository, base: str, base_commit: CommitId, ref: str, commit: CommitId) -> CheckSection | None:
    """What the policies of `base` say of the tag `ref`, which names `commit` here; None where none protects it.

    What tags a remote has is not known: those that are here stand for them.
    """
    here = {short_ref(name): at for name, at in repo.view().refs.items() if name.startswith(TAGS) and name != ref}
    found = decide_ref(
        repo,
        ref=ref,
        remote=branch_of(repo, base)[0],
        old=None,
        new=commit,
        against=base_commit,
        base=base,
        tags=here,
        store=repo.store,
        notes=kept_statistics(repo).notes,
    )
    return None if found is None else _decided("tag policy", found)


def _decided(name: str, found: RefDecision) -> CheckSection:
    findings: list[Finding] = []
    notes: list[str] = []
    shown = found.update.shown
    for decision in found.decisions:
        notes += decision.notes
        if decision.overridden:
            notes.append(f"overridden by {decision.overridden}")
        for refusal in decision.refusals:
            soft = refusal.rule in _LATER or bool(decision.overridden)
            findings.append(
                Finding(
                    rule=f"policy/{refusal.rule}",
                    level="warning" if soft else "error",
                    message=refusal.message,
                    hint=refusal.hint,
                )
            )
    if not findings:
        words = f"{', '.join(decision.policy for decision in found.decisions)} would let {_it(found)} in"
        return section(name, "; ".join([words, *notes]))
    lasting = any(finding.level == "error" for finding in findings)
    if found.update.is_tag:
        words = f"{found.update.base} would not let {shown} in" if lasting else f"before {shown} is let in"
    else:
        words = f"{shown} would not take it" if lasting else f"before {shown} takes it"
    return section(name, "; ".join([words, *notes]), findings)


def _it(found: RefDecision) -> str:
    return found.update.shown if found.update.is_tag else "it"
