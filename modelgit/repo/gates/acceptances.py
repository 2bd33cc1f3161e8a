"""Acceptances as the runner and the command line see them: which examples of a suite may break now, and who says so."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.config.suite_files import duration_s
from modelgit.config.suites import CheckListTest, NfrTest, PinTest
from modelgit.errors import IntegrityError, UsageError
from modelgit.objects import NoteId
from modelgit.repo.notes import KnownNote, add_acceptance, allowed_signers, check_kept, kept_notes

if TYPE_CHECKING:
    from modelgit.evals.suites import Suite
    from modelgit.repo.repository import Repository
    from modelgit.signing.signers import AllowedSigners

__all__ = ["ListedAcceptance", "accept", "accepted_examples", "list_acceptances"]


class ListedAcceptance(NamedTuple):
    """An acceptance that is kept: what it lets break, and whether it counts; `problem` says why not."""

    note: NoteId
    suite: str
    test: str
    examples: tuple[str, ...]
    reason: str
    author: str
    time: str
    expires: str | None
    signers: tuple[str, ...]
    counts: bool
    problem: str = ""


def accept(
    repo: Repository,
    test: str,
    examples: Collection[str],
    *,
    reason: str,
    suite: str | None = None,
    expires: str | None = None,
    key: Path | None = None,
) -> KnownNote:
    """Let examples of a test of the work tree's suites break, for a reason and, with `expires` ("30d"), for a while.

    Raises UsageError when the test is unknown, occurs in several suites, or does not look at single examples, and for
    ids that its data do not have.
    """
    from modelgit.evals.base import data_name
    from modelgit.repo.gates.sides import read_dataset
    from modelgit.repo.gates.suites import worktree_suites

    now = time.time()
    expires_s = None if expires is None else now + duration_s(expires, where="`--expires`")
    found = _suite_with(worktree_suites(repo).suites(), test, suite)
    table = next(item for item in found.tests if item.name == test)
    if not isinstance(table, NfrTest | PinTest | CheckListTest):
        raise UsageError(
            f"test `{test}` of suite {found.name} does not count single examples, so that none can be accepted",
            hint="acceptances are for tests of the kinds nfr, pin, mft, inv and dir",
        )
    source = found.data[data_name(table) or ""]
    known = {item.id for item in read_dataset(repo, repo.store, repo.manifest_of(repo.head()), source).examples}
    unknown = sorted(set(examples) - known)
    if unknown:
        raise UsageError(
            f"{source.path} has no example {unknown[0][:60]!a}", hint="`mgit eval --show flips` lists what broke"
        )
    return add_acceptance(repo, found.name, test, examples, reason=reason, expires_s=expires_s, key=key)


def _suite_with(suites: Collection[Suite], test: str, suite: str | None) -> Suite:
    found = [item for item in suites if suite in (None, item.name) and any(one.name == test for one in item.tests)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(item.name for item in found)
        raise UsageError(f"test `{test}` is in several suites: {names}", hint="`--suite NAME` says which")
    known = ", ".join(dict.fromkeys(one.name for item in suites if suite in (None, item.name) for one in item.tests))
    raise UsageError(f"no suite has a test `{test}`", hint=f"known: {known or 'none'}")


def list_acceptances(repo: Repository) -> list[ListedAcceptance]:
    """Every acceptance that is kept, the newest first; those that cannot be read are left out."""
    signers = allowed_signers(repo)
    now = time.time()
    found = []
    for kept in kept_notes(repo, kind="acceptance"):
        try:
            known = check_kept(repo, kept, signers, now_s=now)
        except IntegrityError:
            continue
        said = known.checked.acceptance
        if said is None:
            continue
        problem = known.checked.problem
        if not problem and not known.counts:
            problem = known.checked.signature.problem
        if not problem and not said.holds(now):
            problem = "it has lapsed"
        found.append(
            ListedAcceptance(
                note=kept.id,
                suite=said.suite,
                test=said.test,
                examples=said.examples,
                reason=said.reason,
                author=said.author,
                time=said.time,
                expires=said.expires,
                signers=known.checked.signature.principals,
                counts=not problem,
                problem=problem,
            )
        )
    return found


def accepted_examples(
    repo: Repository, suite: str, *, signers: AllowedSigners | None, now_s: float | None = None
) -> dict[str, dict[str, str]]:
    """The examples, by test and id, that may break in a suite now, each with the id of the acceptance.

    An acceptance counts when it has not lapsed, and one of `signers` vouches for it or it was made in this clone.
    """
    now = time.time() if now_s is None else now_s
    found: dict[str, dict[str, str]] = {}
    for kept in kept_notes(repo, kind="acceptance", about=suite):
        try:
            known = check_kept(repo, kept, signers, now_s=now)
        except IntegrityError:
            continue
        said = known.checked.acceptance
        if said is not None and known.counts and said.holds(now):
            for example in said.examples:
                found.setdefault(said.test, {}).setdefault(example, str(kept.id))
    return found
