"""Notes that a repository keeps: verdicts attached to weights after the fact, and examples that may break."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from blake3 import blake3

from modelgit.errors import IntegrityError, NothingToDo, UsageError
from modelgit.objects import CommitId, EvalRecord, EvalRecordId, KeptNote, Manifest, Note, NoteId
from modelgit.objects.acceptances import Acceptance, read_acceptance, write_acceptance
from modelgit.objects.approvals import Approval, write_approval
from modelgit.objects.attestations import make_test_result, sums_up, write_test_result
from modelgit.objects.graph import ancestors
from modelgit.objects.policies import ApprovalKind
from modelgit.objects.statements import time_text
from modelgit.repo.contents import file_bytes
from modelgit.repo.statistics import kept_statistics
from modelgit.repo.weights import WeightsOfCommits, weights_tree
from modelgit.signing.notes import CheckedNote, Verify, check_note, check_signature
from modelgit.signing.program import NAMESPACE, matches, sign
from modelgit.signing.signers import SIGNERS_FILE, AllowedSigner, AllowedSigners
from modelgit.store.base import ObjectStore
from modelgit.store.checked_files import read_checked, write_checked
from modelgit.store.metadata import read_record, write_record
from modelgit.store.session import PackSession
from modelgit.store.side_records import with_notes

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "KnownNote",
    "SeenSignatures",
    "add_acceptance",
    "add_approval",
    "all_notes",
    "allowed_signers",
    "attach_verdicts",
    "check_kept",
    "check_signing_key",
    "keep_notes",
    "kept_notes",
    "signing_key",
    "travelling_notes",
]

_MAX_SIGNERS_BYTES = 1 << 20
_MAGIC = b"mgitsig1"


class KnownNote(NamedTuple):
    """A kept note after the check; `record` is the verdict of a test result, None where it is not that one."""

    kept: KeptNote
    note: Note
    checked: CheckedNote
    record: EvalRecord | None = None

    @property
    def counts(self) -> bool:
        """Whether it is to be believed here: an allowed signer vouches for it, or it was made in this clone."""
        if self.checked.problem:
            return False
        return bool(self.checked.signature.principals) or (not self.kept.origin and not self.note.signature)


class SeenSignatures:
    """Signatures that were found to match, kept in a cache: a log of signed commits runs a program for new ones only.

    Whether the key is allowed and valid is asked every time.  For what is shown; whoever lets something in runs the
    program.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = read_checked(path, _MAGIC) or b""
        self._good = {content[at : at + 32] for at in range(0, len(content), 32)}
        self._fresh = False

    def matches(self, statement: str, signature: str, signer: AllowedSigner, *, namespace: str) -> bool:
        """As `signing.program.matches`."""
        parts = (statement.encode(), signature.encode(errors="replace"), signer.key, namespace.encode())
        name = blake3(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()
        if name not in self._good:
            if not matches(statement, signature, signer, namespace=namespace):
                return False
            self._good.add(name)
            self._fresh = True
        return True

    def write(self) -> None:
        """Keep what is new."""
        if self._fresh:
            write_checked(self._path, _MAGIC, b"".join(sorted(self._good)))


def all_notes(repo: Repository) -> tuple[KeptNote, ...]:
    """Every note that is kept, the oldest first; none where the list is damaged, which stops no work: `fsck` tells."""
    try:
        return kept_statistics(repo).notes
    except IntegrityError:
        return ()


def kept_notes(repo: Repository, *, kind: str, about: str = "") -> list[KeptNote]:
    """The notes of a kind that are kept (about certain weights or a suite), the newest first."""
    notes = reversed(all_notes(repo))
    return [item for item in notes if item.kind == kind and about in ("", item.about)]


def allowed_signers(
    repo: Repository, manifest: Manifest | None = None, *, store: ObjectStore | None = None
) -> AllowedSigners | None:
    """The allowed signers that `manifest` records, or else those of the work tree, as with settings; None without any.

    Raises IntegrityError when the recorded file is missing from the store or absurdly long.
    """
    if manifest is not None:
        entry = manifest.file(SIGNERS_FILE)
        if entry is None:
            return None
        data = file_bytes(repo, entry.digest, store=store, limit=_MAX_SIGNERS_BYTES)
        return AllowedSigners.parse(data.decode("utf-8", errors="replace"))
    if repo.paths.worktree is None:
        return None
    place = repo.paths.worktree / SIGNERS_FILE
    try:
        if not place.is_file():  # a pipe would wait for ever
            return allowed_signers(repo, repo.manifest_of(repo.head()))
        with place.open("rb") as file:
            data = file.read(_MAX_SIGNERS_BYTES + 1)
    except OSError:
        return allowed_signers(repo, repo.manifest_of(repo.head()))
    return AllowedSigners.parse(data.decode("utf-8", errors="replace"))


def check_kept(
    repo: Repository,
    kept: KeptNote,
    signers: AllowedSigners | None,
    *,
    store: ObjectStore | None = None,
    now_s: float | None = None,
    at_s: float | None = None,
    verify: Verify = matches,
) -> KnownNote:
    """Read and check one note.

    `at_s` is when the key must be valid: at the moment that the note names, unless given.  Raises IntegrityError when
    an object is missing or damaged.
    """
    where = store or repo.store
    note = read_record(where, kept.id, Note)
    now = time.time() if now_s is None else now_s
    checked = check_note(note, signers, now_s=now, about=kept.about, at_s=at_s, verify=verify)
    record = None
    if checked.result is not None and not checked.problem and note.record is not None:
        record = read_record(where, note.record, EvalRecord)
        if not sums_up(checked.result, record):
            record = None
            checked = checked._replace(problem="the statement does not say what its verdict says")
    if kept.kind != note.kind:
        checked = checked._replace(problem=f"it is listed as a {kept.kind} and is a {note.kind}")
    return KnownNote(kept, note, checked, record)


def signing_key(repo: Repository, given: str | None = None) -> Path | None:
    """The file of the signing key: the one given, or that of the settings; `~` is the user's home.

    Raises UsageError when `given` is "" (the configured one is asked for) and none is configured.
    """
    text = given or repo.settings.user.signing_key
    if not text:
        if given is None:
            return None
        raise UsageError("no signing key is configured", hint="`mgit config set --user user.signing_key PATH` names it")
    if text == "~" or text.startswith("~/"):
        return repo.environment.home / text[2:]
    return repo.environment.cwd / text


def check_signing_key(repo: Repository, key: Path) -> None:
    """Raise UsageError for a key that cannot sign, or whose signature nobody would believe.

    A key on a token is not tried: it would have to be touched twice.
    """
    try:
        on_token = key.with_name(f"{key.name}.pub").read_text(encoding="ascii", errors="replace").startswith("sk-")
    except OSError:
        on_token = False
    if not on_token:
        _signed("mgit: may this key sign?", key, allowed_signers(repo), time.time())


def attach_verdicts(
    repo: Repository,
    commit: CommitId,
    records: Sequence[EvalRecord],
    *,
    key: Path | None = None,
    budgets: Mapping[str, str] | None = None,
) -> list[KnownNote]:
    """Keep verdicts on the weights of `commit` as notes, signed with `key` if there is one.

    `budgets` are the wall times that suites had, by name.

    Raises NothingToDo when there is none to keep, UsageError for one that is pending or of other weights, or when the
    key may not sign (see `sign_statement`).
    """
    if not records:
        raise NothingToDo("no suite ran, so that there is no verdict to record", hint="`mgit config list` shows suites")
    manifest = repo.manifest_of(commit)
    weights = weights_tree(repo, manifest)
    signers = allowed_signers(repo)
    now = time.time()
    made: list[tuple[EvalRecord, Note]] = []
    for record in records:
        if record.weights not in ("", weights):
            raise UsageError(f"the verdict of suite {record.suite} is of other weights than those of {commit.short}")
        named = msgspec.structs.replace(record, weights=weights)
        result = make_test_result(named, time_s=now, commit=commit, budget=(budgets or {}).get(record.suite, ""))
        statement = write_test_result(result)
        signature = _signed(statement, key, signers, now)
        made.append((named, Note(kind="test-result", statement=statement, signature=signature, record=result.record)))
    kept = _keep(repo, [(note, weights, record) for record, note in made], f"eval: record {commit.short}")
    return [check_kept(repo, item, signers) for item in kept]


def add_acceptance(
    repo: Repository,
    suite: str,
    test: str,
    examples: Iterable[str],
    *,
    reason: str,
    expires_s: float | None = None,
    key: Path | None = None,
) -> KnownNote:
    """Keep leave for examples of a test to break; `expires_s` is a moment, in seconds since 1970.

    Raises UsageError without a reason or examples, or when the key may not sign.
    """
    if not reason.strip():
        raise UsageError("an acceptance needs a reason", hint="`-m 'why these may break'`")
    ids = tuple(sorted(set(examples)))
    if not ids:
        raise UsageError("an acceptance names the examples that may break", hint="`--examples ID,ID`")
    now = time.time()
    acceptance = Acceptance(
        statement_type="mgit:acceptance:v1",
        suite=suite,
        test=test,
        examples=ids,
        reason=reason.strip(),
        author=str(repo.signature()),
        time=time_text(now),
        expires=None if expires_s is None else time_text(expires_s),
    )
    statement = write_acceptance(acceptance)
    signers = allowed_signers(repo)
    note = Note(kind="acceptance", statement=statement, signature=_signed(statement, key, signers, now))
    [kept] = _keep(repo, [(note, suite, None)], f"eval: accept {len(ids)} of {test}")
    return check_kept(repo, kept, signers)


def add_approval(
    repo: Repository,
    commit: CommitId,
    base: CommitId,
    kinds: Sequence[ApprovalKind],
    *,
    ref: str,
    policies: Iterable[str],
    reason: str,
    override: bool = False,
    key: Path,
) -> KnownNote:
    """Keep leave, signed with `key`, for `ref` to move from `base` to `commit` with changes of the `kinds`.

    `ref` is the full name of a branch or a tag, `policies` name those of it that the leave is for.  Raises UsageError
    without a reason, or when the key may not sign.
    """
    if not reason.strip():
        raise UsageError("an approval needs a reason", hint="`-m 'what was looked at'`")
    now = time.time()
    approval = Approval(
        statement_type="mgit:approval:v2",
        commit=str(commit),
        base=str(base),
        of=tuple(kinds),
        reason=reason.strip(),
        author=str(repo.signature()),
        time=time_text(now),
        override=override,
        ref=ref,
        policies=tuple(sorted(set(policies))),
    )
    statement = write_approval(approval)
    signers = allowed_signers(repo)
    note = Note(kind="approval", statement=statement, signature=_signed(statement, key, signers, now))
    [kept] = _keep(repo, [(note, str(commit), None)], f"approve {commit.short}")
    return check_kept(repo, kept, signers)


def _signed(statement: str, key: Path | None, signers: AllowedSigners | None, now_s: float) -> str:
    """A signature that others will believe.

    Raises UsageError when the allowed signers do not list the key: what nobody believes is better noticed by whoever
    signs than by whoever is refused.
    """
    if key is None:
        return ""
    signature = sign(statement, key)
    problem = check_signature(statement, signature, signers, at_s=now_s).problem
    if problem:
        line = f'NAME@EXAMPLE.ORG namespaces="{NAMESPACE}" ssh-...'
        raise UsageError(
            f"nobody would believe a signature with {key}: {problem}",
            hint=f"add a line `{line}` with the public key to {SIGNERS_FILE}, and commit it",
        )
    return signature


def _keep(repo: Repository, notes: Iterable[tuple[Note, str, EvalRecord | None]], description: str) -> list[KeptNote]:
    now = time.time_ns() // 1_000_000
    kept: list[KeptNote] = []
    session = repo.session()
    try:
        for note, about, record in notes:
            if record is not None:
                write_record(session, EvalRecordId, record)
            object_id = write_record(session, NoteId, note)
            kept.append(KeptNote(id=object_id, kind=note.kind, about=about, time_ms=now))
        session.seal()
    except BaseException:
        session.abort()
        raise
    keep_notes(repo, kept, description, session=session)
    return kept


def keep_notes(repo: Repository, notes: Sequence[KeptNote], description: str, *, session: PackSession) -> None:
    """List notes in the root; their packs are in `session`, sealed."""
    repo.publish(lambda view: view, description, session=session, keep=lambda record: with_notes(record, notes))


def travelling_notes(
    repo: Repository,
    notes: Iterable[KeptNote],
    tips: Iterable[CommitId],
    *,
    store: ObjectStore | None = None,
) -> list[KeptNote]:
    """Those of `notes` that go with the commits `tips`: about weights and commits in their history, and acceptances.

    Of acceptances that are here (in `store`) only those go that are signed and hold: others count nowhere else.
    """
    results, approvals, found = [], [], []
    now = time.time()
    for item in notes:
        if item.kind == "test-result":
            results.append(item)
        elif item.kind == "approval":
            approvals.append(item)
        elif store is None or _travels(read_record(store, item.id, Note), now):
            found.append(item)
    if results:
        with WeightsOfCommits(repo) as trees:
            wanted = {item.about for item in results}
            known = trees.commits_by_weights(ancestors(tips, repo.parents_of), wanted)
        found += [item for item in results if item.about in known]
    if approvals:
        history = {str(commit) for commit in ancestors(tips, repo.parents_of)}
        found += [item for item in approvals if item.about in history]
    return found


def _travels(note: Note, now_s: float) -> bool:
    try:
        return bool(note.signature) and read_acceptance(note.statement).holds(now_s)
    except IntegrityError:
        return False
