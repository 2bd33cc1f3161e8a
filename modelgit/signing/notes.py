"""Whether a note is to be believed: what it says, about what, and who signed it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from modelgit.errors import IntegrityError, MissingExtraError
from modelgit.objects.acceptances import Acceptance, read_acceptance
from modelgit.objects.approvals import Approval, read_approval
from modelgit.objects.attestations import TestResult, read_test_result
from modelgit.objects.notes import Note
from modelgit.objects.statements import time_of
from modelgit.signing.armor import fingerprint, read_armor
from modelgit.signing.program import NAMESPACE, matches
from modelgit.signing.signers import SIGNERS_FILE, AllowedSigner, AllowedSigners

__all__ = ["CheckedNote", "SignatureCheck", "Verify", "check_note", "check_signature"]

_CLOCK_SKEW_S = 600


class Verify(Protocol):
    """Whether a signature was made over exactly a statement with the key of a line (see `program.matches`)."""

    def __call__(self, statement: str, signature: str, signer: AllowedSigner, *, namespace: str) -> bool:
        """Raises MissingExtraError where that cannot be found out."""


class SignatureCheck(NamedTuple):
    """Who signed (every name that the key is listed for, none if it does not count), and why not, as a sentence."""

    principals: tuple[str, ...] = ()
    problem: str = ""
    key: str = ""


class CheckedNote(NamedTuple):
    """A note after the check: what it says (None when it cannot be read), who signed, and what is wrong.

    `problem` is about the statement itself; `signature.problem` says why nobody vouches for it.
    """

    result: TestResult | None = None
    acceptance: Acceptance | None = None
    approval: Approval | None = None
    signature: SignatureCheck = SignatureCheck()
    problem: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that speaks against it, a sentence each; empty for a note that counts."""
        return tuple(filter(None, (self.problem, self.signature.problem)))


def check_note(
    note: Note,
    signers: AllowedSigners | None,
    *,
    now_s: float,
    about: str | None = None,
    at_s: float | None = None,
    namespace: str = NAMESPACE,
    verify: Verify = matches,
) -> CheckedNote:
    """Check a note against the allowed signers (None: there is no file of them).

    `about` is the weights tree that a test result, the suite that an acceptance, or the commit that an approval must be
    about.  A key must be valid
    at `at_s` (seconds since 1970): the moment at which the note says it was made, unless given; whoever lets something
    in should give the present.  `verify` does the mathematics.  Nothing is raised: what cannot be checked counts not.
    """
    result: TestResult | None = None
    acceptance: Acceptance | None = None
    approval: Approval | None = None
    problem = ""
    made_s = now_s
    try:
        if note.kind == "test-result":
            result = read_test_result(note.statement)
            made_s = result.time_s
            if note.record != result.record:
                problem = "the statement is of another verdict than the one that is kept with it"
            elif about is not None and result.weights != about:
                problem = f"the statement is about other weights ({result.weights[:12]}, not {about[:12]})"
        elif note.kind == "acceptance":
            acceptance = read_acceptance(note.statement)
            made_s = time_of(acceptance.time)
            if about is not None and acceptance.suite != about:
                problem = f"the acceptance is for suite {acceptance.suite[:60]!a}, not {about}"
        else:
            approval = read_approval(note.statement)
            made_s = time_of(approval.time)
            if about is not None and approval.commit != about:
                problem = f"the approval is of commit {approval.commit}, not {about}"
        if not problem and made_s > now_s + _CLOCK_SKEW_S:
            problem = "the statement says that it was made in the future"
    except IntegrityError as error:
        problem = error.message
    moment = made_s if at_s is None else at_s
    checked = check_signature(note.statement, note.signature, signers, at_s=moment, namespace=namespace, verify=verify)
    return CheckedNote(result, acceptance, approval, checked, problem)


def check_signature(
    statement: str,
    signature: str,
    signers: AllowedSigners | None,
    *,
    at_s: float,
    namespace: str = NAMESPACE,
    verify: Verify = matches,
) -> SignatureCheck:
    """Who signed `statement`, if a line of the allowed signers lets the key sign in `namespace` at `at_s`."""
    if not signature:
        return SignatureCheck(problem="it is not signed")
    try:
        parts = read_armor(signature)
    except IntegrityError as error:
        return SignatureCheck(problem=error.message)
    key = fingerprint(parts.key)
    if parts.namespace != namespace:
        return SignatureCheck(problem=f"it is signed for {parts.namespace[:40]!a}, not for {namespace!a}", key=key)
    if signers is None:
        return SignatureCheck(problem=f"there is no {SIGNERS_FILE} that says whose key {key} is", key=key)
    lines = signers.of_key(parts.key)
    if not lines:
        unread = f" (line {signers.unread[0]} cannot be read)" if signers.unread else ""
        return SignatureCheck(problem=f"its key {key} is not in {SIGNERS_FILE}{unread}", key=key)
    good = [line for line in lines if line.problem(namespace, at_s) is None]
    if not good:
        return SignatureCheck(problem=lines[0].problem(namespace, at_s) or "", key=key)
    try:
        right = verify(statement, signature, good[0], namespace=namespace)
    except (MissingExtraError, IntegrityError) as error:
        return SignatureCheck(problem=f"its signature cannot be checked: {error.message}", key=key)
    if not right:
        return SignatureCheck(problem="its signature does not match: statement or signature were altered", key=key)
    return SignatureCheck(tuple(dict.fromkeys(name for line in good for name in line.principals)), key=key)
