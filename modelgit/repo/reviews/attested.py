"""What notes say of commits, and who vouches for it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from modelgit.errors import IntegrityError
from modelgit.objects import CommitId, KeptNote
from modelgit.repo.notes import KnownNote, SeenSignatures, allowed_signers, check_kept, kept_notes
from modelgit.repo.reviews.last_words import Attested
from modelgit.repo.weights import WeightsOfCommits

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository
    from modelgit.signing.signers import AllowedSigners

__all__ = ["Attestations", "attested_of"]


class Attestations:
    """The notes of a repository by weights tree, checked when they are asked for.

    Close it (`with`) to keep what was computed.  Nothing is computed for a repository without notes.
    """

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._notes: dict[str, list[KeptNote]] = {}
        for kept in kept_notes(repo, kind="test-result"):
            self._notes.setdefault(kept.about, []).append(kept)
        self._known: dict[str, list[KnownNote]] = {}
        self._weights = WeightsOfCommits(repo)
        self._seen = SeenSignatures(repo.paths.signatures)
        self._now_s = time.time()

    def __enter__(self) -> Attestations:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights.__exit__()
        self._seen.write()

    @cached_property
    def _signers(self) -> AllowedSigners | None:
        return allowed_signers(self._repo)

    def weights_of(self, commit: CommitId) -> str:
        """The weights tree of a commit."""
        return self._weights.of(commit)

    def notes_of(self, commit: CommitId) -> list[KnownNote]:
        """The notes about the weights of a commit, the newest first; those that cannot be read are left out."""
        if not self._notes:
            return []
        try:
            weights = self._weights.of(commit)
        except IntegrityError:
            return []  # a log shows what is there; `fsck` says what is not
        if weights not in self._known:
            self._known[weights] = list(self._read(self._notes.get(weights, ())))
        return self._known[weights]

    def _read(self, notes: Iterable[KeptNote]) -> Iterable[KnownNote]:
        for kept in notes:
            try:
                yield check_kept(self._repo, kept, self._signers, now_s=self._now_s, verify=self._seen.matches)
            except IntegrityError:
                continue

    def of(self, commit: CommitId) -> tuple[Attested, ...]:
        """What notes say of a commit, the newest first."""
        return tuple(attested_of(known) for known in self.notes_of(commit))


def attested_of(known: KnownNote) -> Attested:
    """What a checked note says, in a few words."""
    result = known.checked.result
    signed = known.note.signature != ""
    problem = known.checked.problem or (known.checked.signature.problem if signed else "")
    return Attested(
        note=known.kept.id,
        suite=result.suite if result is not None else "?",
        decision=result.decision if result is not None else "error",
        signers=known.checked.signature.principals if not known.checked.problem else (),
        counts=known.counts,
        problem=problem,
        time_s=result.time_s if result is not None else None,
        origin=known.kept.origin,
    )
