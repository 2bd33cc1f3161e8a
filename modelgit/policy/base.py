"""What a policy decides on, and what it says: records that hold nothing but facts, checked by whoever gathered them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from modelgit.objects import CommitId, Decision, PatchFacts
from modelgit.objects.policies import ApprovalKind

__all__ = [
    "BranchUpdate",
    "PolicyDecision",
    "Refusal",
    "SignedApproval",
    "SignedVerdict",
    "SuiteVersions",
]


class SignedVerdict(NamedTuple):
    """The verdict of a suite as its statement has it, and who vouches for it.

    `weights` is the tree that the statement is about, `baselines` those that it compares with.  `signers` are the
    principals of the key that signed, as the protected tip's allowed signers name them; nobody when `problem` says why
    the statement is not to be believed.
    """

    suite: str
    suite_id: str
    weights: str
    baselines: tuple[str, ...]
    decision: Decision
    stage: str = ""
    signers: tuple[str, ...] = ()
    problem: str = ""


class SignedApproval(NamedTuple):
    """Leave for one commit to replace one tip with changes of the kinds `of`; with `override`, whatever is missing."""

    commit: CommitId
    base: CommitId | None
    of: tuple[str, ...]
    reason: str
    override: bool = False
    signers: tuple[str, ...] = ()
    problem: str = ""


class SuiteVersions(NamedTuple):
    """The id of a suite as the protected tip has it, and as the pushed commit has it; None where it has none."""

    tip: str | None
    pushed: str | None

    @property
    def required(self) -> tuple[str, ...]:
        """The ids that must have passed: a patch that changes a suite passes both, so that it cannot edit its gate."""
        return tuple(dict.fromkeys(item for item in self if item is not None))


class BranchUpdate(NamedTuple):
    """One branch of a remote ("": of this repository) that is to move.

    `old` is the tip that is replaced (None: the branch is new), `new` the pushed one (None: it is deleted).  `against`
    is the commit whose files hold the policy: `old`, or the tip of the remote's default branch for a new branch.
    `weights_old` (of `against`) and `weights_new` are weights trees, "" where there is no model.  `pending` names the
    suites that the pushed commit left to another machine, `unreadable` says why its settings cannot be read.
    """

    branch: str
    remote: str
    old: CommitId | None
    new: CommitId | None
    against: CommitId
    forward: bool = True
    weights_old: str = ""
    weights_new: str = ""
    facts: PatchFacts = PatchFacts()
    suites: Mapping[str, SuiteVersions] = {}
    pending: tuple[str, ...] = ()
    unreadable: str = ""

    @property
    def base(self) -> str:
        """The replaced tip, as a command takes it."""
        if self.old is None:
            return self.against.short
        return f"{self.remote}/{self.branch}" if self.remote else self.branch

    @property
    def keeps_weights_and_gate(self) -> bool:
        """Whether neither the weights, nor the settings of the gate, nor a suite with its data and code differ."""
        same_suites = all(versions.tip == versions.pushed for versions in self.suites.values())
        return self.weights_new == self.weights_old and not self.facts.gate and same_suites

    def changes(self, kind: ApprovalKind) -> tuple[str, ...]:
        """The files (of `auto_map`: the classes) that changed in a way that may need approval."""
        changed: tuple[str, ...] = getattr(self.facts, kind)
        return changed


class Refusal(NamedTuple):
    """Why an update may not land: a stable name of the reason, a sentence, and what to type."""

    rule: str
    message: str
    hint: str


class PolicyDecision(NamedTuple):
    """What one policy says: refusals, none for leave.

    `overridden` is who let it in against them, and why; `notes` are sentences about what was not asked, and why.
    """

    policy: str
    refusals: tuple[Refusal, ...] = ()
    overridden: str = ""
    notes: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the update may land."""
        return not self.refusals or bool(self.overridden)
