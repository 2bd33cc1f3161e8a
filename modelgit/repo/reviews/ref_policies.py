"""Policies of protected branches and tags: read from the tip that counts, decided on what both sides have."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from modelgit.amounts import counted
from modelgit.errors import CheckFailed, MgitError, RemoteError, UsageError
from modelgit.objects import Commit, CommitId, KeptNote, PatchFacts
from modelgit.objects.graph import ancestors, is_ancestor
from modelgit.objects.policies import RefPolicy
from modelgit.objects.refs import BRANCHES, TAGS, short_ref
from modelgit.policy.base import Earlier, PolicyDecision, RefChange, SignedApproval, SignedVerdict, SuiteVersions
from modelgit.policy.decide import decide_update, policies_of
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import RefUpdate, RemoteRoot, Transport
from modelgit.remotes.closure import new_commits
from modelgit.remotes.reading import CombinedStore
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.repo.notes import allowed_signers, check_kept
from modelgit.repo.reviews.patch_facts import Tree, gather_facts
from modelgit.repo.statistics import kept_statistics
from modelgit.repo.weights import weights_tree
from modelgit.store.base import ObjectStore
from modelgit.store.metadata import read_record

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["PushGuard", "PushRefused", "RefDecision", "decide_ref", "policies_at"]


class RefDecision(NamedTuple):
    """What the policies of one branch or tag say of an update."""

    update: RefChange
    decisions: tuple[PolicyDecision, ...]

    @property
    def allowed(self) -> bool:
        """Whether all of them let it in."""
        return all(decision.allowed for decision in self.decisions)


class PushRefused(CheckFailed):
    """A policy refuses a push; nothing was changed.  `refused` says why, ref by ref."""

    def __init__(self, message: str, *, hint: str | None = None, refused: Sequence[RefDecision] = ()) -> None:
        super().__init__(message, hint=hint)
        self.refused = tuple(refused)


def policies_at(tree: Tree) -> dict[str, RefPolicy]:
    """The policies that a tree's mgit.toml holds, by name; settings of this clone or its user have no say.

    Raises UsageError for a file, or a table of policies, that cannot be read.
    """
    text = tree.read(PROJECT_CONFIG).decode("utf-8-sig", errors="replace")
    try:
        table = tomllib.loads(text).get("policy", {})
        return msgspec.convert(table, dict[str, RefPolicy])
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{PROJECT_CONFIG} is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"[policy] in {PROJECT_CONFIG}: {error}") from None


def decide_ref(
    repo: Repository,
    *,
    ref: str,
    remote: str,
    old: CommitId | None,
    new: CommitId | None,
    against: CommitId,
    base: str,
    tags: Mapping[str, CommitId],
    store: ObjectStore,
    notes: Iterable[KeptNote],
    facts: PatchFacts | None = None,
    now_s: float | None = None,
    progress: Progress = SILENT,
) -> RefDecision | None:
    """What the policies of the commit `against` say of `ref` moving from `old` to `new`; None without any.

    `base` is what a command calls `against`, `tags` are the remote's, by name.  `store` has the commits of both sides,
    this repository the new ones; `notes` are those that either side keeps.  `facts` are gathered unless they are known.
    What a tag brings is what its commit brings over `against`: nothing that this has is judged again but the weights.
    Keys must be valid now.  Raises UsageError for policies or suites of the tip that cannot be read.
    """
    tip = Tree(repo, repo.manifest_at(_commit(store, against).manifest, store=store), store)
    policies = policies_of(policies_at(tip), ref)
    if not policies:
        return None
    update = RefChange(ref, remote, old, new, against, base)
    if new is None:
        return RefDecision(update, tuple(decide_update(policies, update)))
    commit = _commit(store, new)
    pushed = Tree(repo, repo.manifest_at(commit.manifest, store=store), store)
    if facts is None:
        known = update.is_tag and is_ancestor(new, against, lambda item: _commit(store, item).parents)
        facts = _facts(repo, pushed if known else tip, pushed, against, new, store, policies.values(), progress)
    required = {item.suite for policy in policies.values() for item in policy.require}
    versions, unreadable = _suites(tip, pushed, required)
    behind = {}
    if update.is_tag:
        # A tag makes nobody's law: it is judged by the suites of the tip, and whatever it has of its own decides on
        # nothing that comes later.
        versions = {name: SuiteVersions(item.tip, None if item.tip else item.pushed) for name, item in versions.items()}
        unreadable = ""
        behind = {name: _earlier(repo, policy, update, tags, store) for name, policy in policies.items()}
    update = update._replace(
        forward=old is None or is_ancestor(old, new, lambda item: _commit(store, item).parents),
        weights_old=_weights(tip),
        weights_new=_weights(pushed),
        facts=facts,
        suites=versions,
        behind=behind,
        pending=tuple(verdict.suite for verdict in commit.verdicts if verdict.decision == "pending"),
        unreadable=unreadable,
    )
    verdicts, approvals = _signed_notes(repo, tip, update, notes, time.time() if now_s is None else now_s)
    found = decide_update(policies, update, verdicts=verdicts, approvals=approvals)
    return RefDecision(update, tuple(found))


def _earlier(
    repo: Repository, policy: RefPolicy, update: RefChange, tags: Mapping[str, CommitId], store: ObjectStore
) -> Earlier:
    """The newest tag of the policy that lies behind the commit of a new one: the release that it comes after."""
    if update.new is None or not policy.require:
        return Earlier()
    before = set(ancestors(_commit(store, update.new).parents, lambda item: _commit(store, item).parents))
    found = [(name, commit) for name, commit in tags.items() if commit in before and policy.protects(TAGS + name)]
    if not found:
        return Earlier()
    name, commit = max(found, key=lambda item: (_commit(store, item[1]).committer.time_s, item[0]))
    tree = Tree(repo, repo.manifest_at(_commit(store, commit).manifest, store=store), store)
    return Earlier(name, _weights(tree))


class PushGuard:
    """Checks the moves of a push against the policies of the remote's branches and tags (see `remotes.sync.push`).

    `decisions` are what they said of the last moves.
    """

    def __init__(self, repo: Repository, transport: Transport, remote: str, *, progress: Progress = SILENT) -> None:
        self._repo = repo
        self._transport = transport
        self._remote = remote
        self._progress = progress
        self.decisions: list[RefDecision] = []

    def __call__(self, state: RemoteRoot, moves: Sequence[RefUpdate]) -> None:
        """Raise PushRefused unless every policy lets every move in; nothing was sent then."""
        store = CombinedStore(self._repo.store, self._transport, far_name=self._remote)
        default = f"{BRANCHES}{state.view.branch}"
        tags = {short_ref(ref): commit for ref, commit in state.view.refs.items() if ref.startswith(TAGS)}
        self.decisions = []
        notes: list[KeptNote] | None = None  # read once, and not at all for a remote without branches
        for move in moves:
            # Tags, and branches that are new, are judged by the tip of the default branch.
            ruling = move.name if move.name.startswith(BRANCHES) and move.expected is not None else default
            against = state.view.refs.get(ruling)
            if against is None or not move.name.startswith((BRANCHES, TAGS)):
                continue
            notes = self._notes(state) if notes is None else notes
            try:
                found = decide_ref(
                    self._repo,
                    ref=move.name,
                    remote=self._remote,
                    old=move.expected,
                    new=move.new,
                    against=against,
                    base=f"{self._remote}/{short_ref(ruling)}",
                    tags=tags,
                    store=store,
                    notes=notes,
                    progress=self._progress,
                )
            except UsageError as error:
                branch = short_ref(ruling)
                raise RemoteError(
                    f"the gate of {self._remote}/{branch} cannot be read: {error.message}",
                    hint=f"`pip install --upgrade modelgit`, or move {branch} to a readable commit on {self._remote}",
                ) from error
            if found is not None:
                self.decisions.append(found)
        refused = [item for item in self.decisions if not item.allowed]
        if refused:
            raise _refusal(refused, self._remote)

    def _notes(self, state: RemoteRoot) -> list[KeptNote]:
        there = self._transport.statistics(state).notes
        return list({item.id: item for item in (*there, *kept_statistics(self._repo).notes)}.values())


def _refusal(refused: Sequence[RefDecision], remote: str) -> PushRefused:
    found = [
        (item.update, refusal)
        for item in refused
        for decision in item.decisions
        if not decision.allowed
        for refusal in decision.refusals
    ]
    update, first = found[0]
    more = f" (and {counted(len(found) - 1, 'more reason')})" if len(found) > 1 else ""
    refuses = (
        f"the policy of {update.base} refuses {update.shown}"
        if update.is_tag
        else f"the policy of {remote}/{update.shown} refuses the push"
    )
    return PushRefused(
        f"{refuses}: {first.message}{more}; nothing was changed",
        hint=first.hint,
        refused=refused,
    )


def _commit(store: ObjectStore, commit: CommitId) -> Commit:
    return read_record(store, commit, Commit)


def _weights(tree: Tree) -> str:
    return weights_tree(tree.repo, tree.manifest, store=tree.store) if tree.manifest.models else ""


def _facts(
    repo: Repository,
    tip: Tree,
    pushed: Tree,
    against: CommitId,
    new: CommitId,
    store: ObjectStore,
    policies: Collection[RefPolicy],
    progress: Progress,
) -> PatchFacts:
    stop = set(ancestors([against], lambda item: _commit(store, item).parents))
    facts = gather_facts(tip, pushed, new_commits(store, [new], stop=stop), store=store)
    if all(policy.max_changed is None for policy in policies):
        return facts
    from modelgit.repo.reviews.tensors import compare_changed

    counted = compare_changed(tip, pushed, threads=repo.threads, progress=progress)
    return msgspec.structs.replace(facts, values_changed=counted.values_changed, dense=counted.dense)


def _suites(tip: Tree, pushed: Tree, names: Collection[str]) -> tuple[dict[str, SuiteVersions], str]:
    """The versions of the suites called `names` on both sides, and why the pushed settings cannot be read."""
    old, new, unreadable = _suite_ids(tip, names), {}, ""
    try:
        policies_at(pushed)
        new = _suite_ids(pushed, names)
    except UsageError as error:
        unreadable = error.message
    return {name: SuiteVersions(old.get(name), new.get(name)) for name in sorted({*old, *new})}, unreadable


def _suite_ids(tree: Tree, names: Collection[str]) -> dict[str, str]:
    if not names:
        return {}
    from modelgit.repo.gates.suites import suite_ids

    return suite_ids(tree.repo, tree.manifest, names=sorted(names), store=tree.store)


def _signed_notes(
    repo: Repository, tip: Tree, update: RefChange, notes: Iterable[KeptNote], now_s: float
) -> tuple[list[SignedVerdict], list[SignedApproval]]:
    """The notes about the pushed weights and the pushed commit, each checked against the tip's allowed signers."""
    signers = allowed_signers(repo, tip.manifest, store=tip.store)
    verdicts: list[SignedVerdict] = []
    approvals: list[SignedApproval] = []
    for kept in notes:
        if (kept.kind, kept.about) not in (("test-result", update.weights_new), ("approval", str(update.new))):
            continue
        try:
            known = check_kept(repo, kept, signers, store=tip.store, now_s=now_s, at_s=now_s)
        except MgitError as error:
            if kept.kind == "test-result":
                verdicts.append(SignedVerdict("", "", kept.about, (), "error", problem=error.message))
            continue
        checked = known.checked
        # That nobody signed is no fault of the statement: it is said in other words.
        problem = "; ".join(checked.reasons if known.note.signature else filter(None, [checked.problem]))
        if checked.result is not None:
            result = checked.result
            verdicts.append(
                SignedVerdict(
                    suite=result.suite,
                    suite_id=result.suite_id,
                    weights=result.weights,
                    baselines=tuple(item.weights for item in result.predicate.modelgit.baselines),
                    decision=result.decision,
                    stage=result.predicate.modelgit.stage,
                    signers=checked.signature.principals if not problem else (),
                    problem=problem,
                )
            )
        elif checked.approval is not None:
            approval = checked.approval
            approvals.append(
                SignedApproval(
                    commit=CommitId.parse(approval.commit),
                    base=CommitId.parse(approval.base),
                    ref=approval.ref,
                    policies=approval.policies,
                    of=approval.of,
                    reason=approval.reason,
                    override=approval.override,
                    signers=checked.signature.principals if not problem else (),
                    problem=problem,
                )
            )
        elif kept.kind == "test-result":
            verdicts.append(SignedVerdict("", "", kept.about, (), "error", problem=problem))
    return verdicts, approvals
