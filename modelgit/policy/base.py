"""What a policy decides on, and what it says: records that hold nothing but facts, checked by whoever gathered them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from modelgit.objects import CommitId, Decision, PatchFacts
from modelgit.objects.policies import ApprovalKind
from modelgit.objects.refs import TAGS, short_ref

__all__ = [
    "Earlier",
    "PolicyDecision",
    "RefChange",
    "Refusal",
    "SignedApproval",
    "SignedVerdict",
    "SuiteVersions",
    "shown_ref",
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
    """Leave of the `policies` for `ref` to move to a commit with changes of the kinds `of` over `base`.

    With `override`, whatever is missing.  `ref` is "" where the statement names none, as old ones do.
    """

    commit: CommitId
    base: CommitId | None
    ref: str
    policies: tuple[str, ...]
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


class Earlier(NamedTuple):
    """What a verdict must compare with: a tip or a tag as a command takes it, and its weights ("" for none)."""

    name: str = ""
    weights: str = ""


class RefChange(NamedTuple):
    """One branch or tag of a remote ("": of this repository) that is to move; `ref` is its full name.

    `old` is the commit that is replaced (None: the ref is new), `new` the pushed one (None: it is deleted).  `against`
    is the commit whose files hold the policy, which a command knows as `base`: the replaced tip of a branch, and that
    of the remote's default branch for tags and for new branches.
    `weights_old` (of `against`) and `weights_new` are weights trees, "" where there is no model.  `behind` has, by the
    name of a policy, the newest tag behind a new one that this policy protects, too.  `pending` names the suites that
    the pushed commit left to another machine, `unreadable` says why its settings cannot be read.
    """

    ref: str
    remote: str
    old: CommitId | None
    new: CommitId | None
    against: CommitId
    base: str
    forward: bool = True
    weights_old: str = ""
    weights_new: str = ""
    facts: PatchFacts = PatchFacts()
    suites: Mapping[str, SuiteVersions] = {}
    behind: Mapping[str, Earlier] = {}
    pending: tuple[str, ...] = ()
    unreadable: str = ""

    @property
    def is_tag(self) -> bool:
        """Whether it is a tag."""
        return self.ref.startswith(TAGS)

    @property
    def shown(self) -> str:
        """The ref in a sentence: `main`, `tag v1.0`."""
        return shown_ref(self.ref)

    @property
    def keeps_weights_and_gate(self) -> bool:
        """Whether neither the weights, nor the settings of the gate, nor a suite with its data and code differ."""
        same_suites = all(versions.tip == versions.pushed for versions in self.suites.values())
        return self.weights_new == self.weights_old and not self.facts.gate and same_suites

    def changes(self, kind: ApprovalKind) -> tuple[str, ...]:
        """The files (of `auto_map`: the classes) that changed in a way that may need approval."""
        changed: tuple[str, ...] = getattr(self.facts, kind)
        return changed

    def earlier(self, policy: str) -> Earlier:
        """What a verdict must compare with: the tip that is replaced, or the protected tag behind a new one."""
        return self.behind.get(policy, Earlier()) if self.is_tag else Earlier(self.base, self.weights_old)


def shown_ref(ref: str) -> str:
    """A ref in a sentence: `heads/main` as `main`, `tags/v1.0` as `tag v1.0`."""
    return f"tag {short_ref(ref)}" if ref.startswith(TAGS) else short_ref(ref)


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
