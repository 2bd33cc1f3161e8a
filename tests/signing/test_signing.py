"""Signatures with real keys: what is forged, altered, meant for something else or out of date is refused, and why."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from modelgit.errors import IntegrityError, MissingExtraError, UsageError
from modelgit.objects import CheckResult, CommitId, EvalRecord, ManifestId, Note
from modelgit.objects.acceptances import Acceptance, read_acceptance, write_acceptance
from modelgit.objects.approvals import Approval, read_approval, write_approval
from modelgit.objects.attestations import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    make_test_result,
    read_test_result,
    sums_up,
    write_test_result,
)
from modelgit.signing.armor import read_armor
from modelgit.signing.notes import CheckedNote, check_note
from modelgit.signing.program import sign
from modelgit.signing.signers import AllowedSigners

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")

NOW = 1_800_000_000.0
WEIGHTS = "5a" * 32
Keygen = Callable[..., Path]


@pytest.fixture(scope="module")
def keygen(tmp_path_factory: pytest.TempPathFactory) -> Keygen:
    """Makes ed25519 keys by name, each once."""
    folder = tmp_path_factory.mktemp("keys")

    def make(name: str, passphrase: str = "") -> Path:
        key = folder / name
        if not key.exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(key)]
            subprocess.run(command, check=True)
        return key

    return make


def public(key: Path) -> str:
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


def allow(key: Path, options: str = 'namespaces="mgit-eval"', who: str = "ci@example.org") -> AllowedSigners:
    return AllowedSigners.parse(f"# the machines\n{who} {options} {public(key)} a comment\n")


def verdict(decision: str = "pass", **changes: object) -> EvalRecord:
    check = CheckResult(
        name="negative flips", test="flips", decision=decision, value=0.005, limit="max 1.0 %",
        against="parent", examples=216, total=4000, broken=1,
    )  # fmt: skip
    record = EvalRecord(
        candidate=ManifestId.of(b"x"), baseline=None, suite="compat", suite_id="ab" * 32, results=(check,),
        decision=decision, examples=216, seconds=1.5, alpha=0.05, sampling="adaptive", weights=WEIGHTS,
    )  # fmt: skip
    return msgspec.structs.replace(record, **changes)


def note_of(record: EvalRecord, key: Path | None, *, namespace: str = "mgit-eval", time_s: float = NOW) -> Note:
    result = make_test_result(record, time_s=time_s, budget="60s")
    statement = write_test_result(result)
    signature = "" if key is None else sign(statement, key, namespace=namespace)
    return Note(kind="test-result", statement=statement, signature=signature, record=result.record)


def check(note: Note, signers: AllowedSigners | None, **options: object) -> CheckedNote:
    return check_note(note, signers, now_s=NOW, about=WEIGHTS, **options)  # type: ignore[arg-type]


def test_a_statement_is_in_toto_and_says_everything(keygen: Keygen) -> None:
    note = note_of(verdict("warn"), keygen("ci"))
    data = json.loads(note.statement)
    assert (data["_type"], data["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    assert data["subject"] == [{"name": "weights", "digest": {"mgitWeightsTree": WEIGHTS}}]
    predicate = data["predicate"]
    assert predicate["result"] == "WARNED"
    assert predicate["configuration"] == [{"name": "compat", "digest": {"mgitSuite": "ab" * 32}}]
    assert (predicate["passedTests"], predicate["warnedTests"], predicate["failedTests"]) == ([], ["flips"], [])
    assert predicate["modelgit"]["checks"][0]["n"] == 216
    assert predicate["modelgit"]["checks"][0]["of"] == 4000
    assert predicate["modelgit"]["budget"] == "60s"
    assert predicate["modelgit"]["time"] == "2027-01-15T08:00:00Z"
    result = read_test_result(note.statement)
    assert sums_up(result, verdict("warn"))
    assert not sums_up(result, verdict("pass"))
    # A limit that is only told is named among those that warn, and the verdict is a pass.
    told = verdict("pass", results=verdict("info").results)
    predicate = json.loads(note_of(told, None).statement)["predicate"]
    assert (predicate["result"], predicate["warnedTests"]) == ("PASSED", ["flips"])


@pytest.mark.parametrize("hidden", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1e", "\r"])
def test_a_comment_hides_no_signer(keygen: Keygen, hidden: str) -> None:
    line = f'ci@example.org namespaces="mgit-eval" {public(keygen("ci"))}'
    assert AllowedSigners.parse(f"# the machines{hidden}{line}\n").lines == ()
    assert len(AllowedSigners.parse(f"# the machines\r\n{line}\r\n").lines) == 1


def test_a_good_signature_names_its_signer(keygen: Keygen) -> None:
    checked = check(note_of(verdict(), keygen("ci")), allow(keygen("ci"), who="ci@example.org,build@example.org"))
    assert checked.reasons == ()
    assert checked.signature.principals == ("ci@example.org", "build@example.org")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", 'the line of ci@example.org in evals/allowed_signers does not say namespaces="mgit-eval"'),
        ('namespaces="git"', "the key of ci@example.org may sign git, not mgit-eval"),
        ('namespaces="mgit-eval",valid-before="20200101"', "the key of ci@example.org expired on 2020-01-01"),
        ('namespaces="mgit-eval",valid-after="20300101Z"', "is valid from 2030-01-01 on, and it was signed before"),
        ('cert-authority,namespaces="mgit-eval"', "line 2 cannot be read"),
        ('namespaces="mgit-eval",valid-before="soon"', "line 2 cannot be read"),
    ],
)
def test_a_line_must_say_what_it_trusts_a_key_for(keygen: Keygen, options: str, reason: str) -> None:
    [found] = check(note_of(verdict(), keygen("ci")), allow(keygen("ci"), options)).reasons
    assert reason in found


def test_an_expired_key_counts_for_what_it_signed_in_time_unless_the_present_decides(keygen: Keygen) -> None:
    note = note_of(verdict(), keygen("ci"), time_s=NOW - 86400)
    signers = allow(keygen("ci"), 'namespaces="mgit-eval",valid-before="20270115"')
    assert check(note, signers).signature.principals == ("ci@example.org",)
    [reason] = check(note, signers, at_s=NOW).reasons
    assert reason == "the key of ci@example.org expired on 2027-01-15"


def test_other_keys_namespaces_and_wildcards_are_refused(keygen: Keygen) -> None:
    good = note_of(verdict(), keygen("ci"))
    [unknown] = check(good, allow(keygen("stranger"))).reasons
    assert unknown.startswith("its key SHA256:")
    assert unknown.endswith(" is not in evals/allowed_signers")
    assert "line 2 cannot be read" in check(good, allow(keygen("ci"), who="*@example.org")).reasons[0]
    [other] = check(note_of(verdict(), keygen("ci"), namespace="git"), allow(keygen("ci"))).reasons
    assert other == "it is signed for 'git', not for 'mgit-eval'"
    [none] = check(note_of(verdict(), None), allow(keygen("ci"))).reasons
    assert none == "it is not signed"
    assert "there is no evals/allowed_signers" in check(good, None).reasons[0]


def test_forged_and_altered_notes_are_refused(keygen: Keygen) -> None:
    signers = allow(keygen("ci"))
    good, failing = note_of(verdict(), keygen("ci")), note_of(verdict("fail"), keygen("ci"))
    forged = msgspec.structs.replace(good, signature=failing.signature)
    assert check(forged, signers).reasons == ("its signature does not match: statement or signature were altered",)
    altered = msgspec.structs.replace(failing, statement=good.statement, record=good.record)
    assert check(altered, signers).signature.problem.startswith("its signature does not match")
    # A signature of a stranger under the public key of the machine.
    stolen = read_armor(good.signature).key
    assert stolen in __import__("base64").b64decode("".join(good.signature.split("\n")[1:-2]))
    for text in ("", "x", good.signature[:-60], good.signature.replace("U1NI", "AAAA", 1)):
        assert check(msgspec.structs.replace(good, signature=text), signers).signature.principals == ()


def test_a_statement_about_something_else_is_refused(keygen: Keygen) -> None:
    signers = allow(keygen("ci"))
    elsewhere = note_of(verdict(weights="77" * 32), keygen("ci"))
    assert check(elsewhere, signers).problem == "the statement is about other weights (777777777777, not 5a5a5a5a5a5a)"
    early = note_of(verdict(), keygen("ci"), time_s=NOW + 7 * 86400)
    assert check(early, signers).problem == "the statement says that it was made in the future"
    swapped = msgspec.structs.replace(note_of(verdict(), keygen("ci")), record=note_of(verdict("fail"), None).record)
    assert check(swapped, signers).problem.startswith("the statement is of another verdict")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace('"result":"FAILED"', '"result":"PASSED"'), "contradicts itself"),
        (lambda text: text.replace('["flips"]', "[]"), "contradicts itself"),
        (lambda text: text.replace("{", "{ ", 1), "not in canonical form"),
        (lambda text: text.replace('"subject":', '"subject":[],"subject":', 1), "not in canonical form"),
        (lambda text: text.replace("test-result/v0.1", "test-result/v9"), "not of the expected form"),
        (lambda text: text.replace('"_type":', '"extra":1,"_type":', 1), "not of the expected form"),
        (lambda text: text.replace("mgitWeightsTree", "sha256"), "not about one weights tree"),
        (lambda text: text.replace("2027-01-15T08", "2027-13-15T08"), "is not a time"),
        (lambda text: text[:-1], "not of the expected form"),
        (lambda text: "", "not of the expected form"),
    ],
)
def test_the_schema_is_strict(change: Callable[[str], str], reason: str) -> None:
    text = write_test_result(make_test_result(verdict("fail"), time_s=NOW))
    assert read_test_result(text).decision == "fail"
    with pytest.raises(IntegrityError, match=reason):
        read_test_result(change(text))


def test_what_has_not_run_or_is_of_nothing_cannot_be_stated() -> None:
    for record in (verdict("pending"), verdict(weights="")):
        with pytest.raises(UsageError, match="suite compat"):
            make_test_result(record, time_s=NOW)


def test_an_acceptance_needs_examples_and_a_reason_and_lapses() -> None:
    good = Acceptance(
        statement_type="mgit:acceptance:v1", suite="compat", test="flips", examples=("a", "b"),
        reason="new policy", author="Ada <ada@example.org>", time="2027-01-15T08:00:00Z",
        expires="2027-02-15T08:00:00Z",
    )  # fmt: skip
    assert read_acceptance(write_acceptance(good)) == good
    assert good.holds(NOW)
    assert not good.holds(NOW + 31 * 86400)
    for wrong in ({"examples": ()}, {"examples": ("b", "a")}, {"reason": " "}, {"test": ""}, {"expires": "soon"}):
        with pytest.raises(IntegrityError):
            read_acceptance(write_acceptance(msgspec.structs.replace(good, **wrong)))


def test_an_approval_is_for_a_ref_and_its_policies() -> None:
    commit = str(CommitId.of(b"commit"))
    good = Approval(
        statement_type="mgit:approval:v2", commit=commit, base=commit, of=("code",), reason="read it",
        author="Ada <ada@example.org>", time="2027-01-15T08:00:00Z", ref="tags/v1.0", policies=("guard", "size"),
    )  # fmt: skip
    assert read_approval(write_approval(good)) == good
    for wrong in (
        {"ref": ""}, {"ref": "v1.0"}, {"ref": "remotes/origin/main"}, {"ref": "heads/a b"}, {"policies": ()},
        {"policies": ("size", "guard")}, {"policies": ("guard", "guard")}, {"policies": ("",)}, {"reason": " "},
        {"of": ()}, {"base": "main"}, {"statement_type": "mgit:approval:v1"}, {"statement_type": "mgit:approval:v3"},
    ):  # fmt: skip
        with pytest.raises(IntegrityError, match="approval"):
            read_approval(write_approval(msgspec.structs.replace(good, **wrong)))
    old = msgspec.structs.replace(good, statement_type="mgit:approval:v1", ref="", policies=())
    assert read_approval(write_approval(old)).ref == ""  # it is read for good, and counts for nothing


def test_a_signature_that_cannot_be_checked_does_not_count(keygen: Keygen) -> None:
    def missing(*_: object, **__: object) -> bool:
        raise MissingExtraError("signatures need the program ssh-keygen, which is not installed")

    checked = check(note_of(verdict(), keygen("ci")), allow(keygen("ci")), verify=missing)
    assert checked.signature.principals == ()
    assert checked.reasons == (
        "its signature cannot be checked: signatures need the program ssh-keygen, which is not installed",
    )


def test_keys_that_cannot_sign_say_why(keygen: Keygen, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a passphrase, and no ssh agent holds it") as locked:
        sign("x", keygen("locked", "secret"))
    assert "ssh-add" in (locked.value.hint or "")
    with pytest.raises(UsageError, match="is not there"):
        sign("x", tmp_path / "nothing")
    (tmp_path / "text").write_text("no key")
    with pytest.raises(UsageError, match="is not a private ssh key"):
        sign("x", tmp_path / "text")
    with pytest.raises(MissingExtraError, match="no-such-keygen, which is not installed"):
        sign("x", keygen("ci"), program="no-such-keygen")
