"""Verdicts and acceptances as notes: found by the weights, kept by collections, carried by pushes and fetches."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_fields

from modelgit.errors import UsageError
from modelgit.objects import EvalRecord, EvalRecordId, KeptNote, NoteId
from modelgit.remotes.directory import DirectoryTransport
from modelgit.remotes.notes import MovedNotes
from modelgit.repo import Repository
from modelgit.repo.exchange.cloning import clone
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.sync import fetch, push
from modelgit.repo.gates.evaluate import evaluate
from modelgit.repo.notes import (
    KnownNote,
    add_acceptance,
    allowed_signers,
    attach_verdicts,
    check_kept,
    kept_notes,
    signing_key,
)
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.repo.weights import WeightsOfCommits, weights_tree
from modelgit.store.metadata import read_record, write_record

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (openssh-client)")
    path = tmp_path_factory.mktemp("keys") / "ci"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def allow(repo: Repository, key: Path) -> None:
    """List the key in the work tree."""
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (repo.worktree / "evals").mkdir(exist_ok=True)
    (repo.worktree / "evals/allowed_signers").write_text(f'ci@example.org namespaces="mgit-eval" {public}\n')


def tree(repo: Repository, revision: str = "HEAD") -> str:
    return weights_tree(repo, repo.manifest_of(repo.resolve(revision)))


def notes_about(repo: Repository, weights: str) -> list[KnownNote]:
    kept = kept_notes(repo, kind="test-result", about=weights)
    return [check_kept(repo, item, allowed_signers(repo)) for item in kept]


def test_the_weights_tree_covers_what_a_model_does_and_nothing_else(repo: Repository, files) -> None:
    bot = repo.worktree / "models/bot"
    tensors = {name: ("F32", array.shape, array.tobytes()) for name, array in files.floats().items()}
    files.sharded(bot, tensors, 1)
    (bot / "tokenizer.json").write_text("{}")
    repo.track("models/bot")
    repo.commit("base")
    before = tree(repo)
    assert len(before) == 64
    files.sharded(bot, tensors, 2)
    (bot / "README.md").write_text("a model")
    (bot / "LICENSE.txt").write_text("free")
    (repo.worktree / "mgit.toml").write_text((repo.worktree / "mgit.toml").read_text() + "# a comment\n")
    repo.commit("other shards, words")
    assert tree(repo) == before
    index = bot / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(json.dumps({"weight_map": dict(list(json.loads(text)["weight_map"].items())[1:])}))
    repo.commit("an index that leaves one out", gate="warn")
    assert tree(repo) != before
    index.write_text(text)
    repo.commit("as it was")
    assert tree(repo) == before
    for name, text in (
        ("tokenizer.json", '{"a": 1}'),
        ("chat_template.jinja", "{{ x }}"),
        ("config.json", "{}"),
        ("license_model.py", "x = 1"),
    ):
        (bot / name).write_text(text)
        repo.commit(f"another {name}")
        assert tree(repo) != before
        before = tree(repo)
    arrays = files.floats()
    arrays["layers.0.weight"] = np.nextafter(arrays["layers.0.weight"], 1).astype("<f4")
    files.sharded(bot, {name: ("F32", array.shape, array.tobytes()) for name, array in arrays.items()}, 1)
    repo.commit("one bit of each value")
    assert tree(repo) != before
    for _ in ("computed", "read from the cache"):
        with WeightsOfCommits(repo) as trees:
            found = trees.commits_by_weights([repo.resolve("HEAD"), repo.resolve("HEAD~1")], [before, "00"])
            assert found == {before: repo.resolve("HEAD~1")}


def record(repo: Repository, revision: str = "HEAD") -> list[EvalRecord]:
    return evaluate(repo, revision)


def test_a_verdict_is_attached_to_the_weights_and_survives_collection(bot: Repository) -> None:
    [known] = attach_verdicts(bot, bot.resolve("HEAD"), record(bot))
    assert known.counts
    assert known.checked.reasons == ("it is not signed",)
    bot.commit("the same weights, other words", allow_empty=True)
    [found] = notes_about(bot, tree(bot))
    assert found.kept.id == known.kept.id
    assert found.record is not None
    assert found.record.weights == tree(bot)
    collect(bot, prune_now=True)
    assert read_record(bot.store, found.note.record, EvalRecord) == found.record
    report = fsck(bot)
    assert report.is_sound
    assert len(kept_notes(bot, kind="test-result")) == 1


def test_a_lost_note_is_found_by_fsck(bot: Repository) -> None:
    attach_verdicts(bot, bot.resolve("HEAD"), record(bot))
    newest = max((bot.paths.directory / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    bot.store.lookup.refresh()
    assert any("note b3:" in finding.subject or "note" in finding.problem for finding in fsck(bot).findings)


def test_a_signed_verdict_names_its_signer_where_the_key_is_allowed(bot: Repository, key: Path) -> None:
    commit = bot.resolve("HEAD")
    with pytest.raises(UsageError, match=r"nobody would believe a signature .* no evals/allowed_signers"):
        attach_verdicts(bot, commit, record(bot), key=key)
    assert kept_notes(bot, kind="test-result") == []
    allow(bot, key)
    [known] = attach_verdicts(bot, commit, record(bot), key=key)
    assert known.checked.signature.principals == ("ci@example.org",)
    bot.commit("signers")
    signers = allowed_signers(bot, bot.manifest_of(bot.head()))
    assert signers is not None
    assert len(signers.lines) == 1


def test_verdicts_of_other_weights_are_not_attached(bot: Repository, files: Callable[..., object]) -> None:
    [known] = attach_verdicts(bot, bot.resolve("HEAD"), record(bot))
    (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(3)))  # type: ignore[attr-defined]
    bot.commit("other weights")
    assert known.record is not None
    with pytest.raises(UsageError, match="is of other weights"):
        attach_verdicts(bot, bot.resolve("HEAD"), [known.record])
    assert notes_about(bot, tree(bot)) == []


@needs_ssh
def test_an_acceptance_is_kept_signed_and_refused_without_a_reason(bot: Repository, key: Path) -> None:
    for wrong in ({"reason": "  ", "examples": ["a"]}, {"reason": "why", "examples": []}):
        with pytest.raises(UsageError):
            add_acceptance(bot, "compat", "flips", wrong["examples"], reason=wrong["reason"])  # type: ignore[arg-type]
    allow(bot, key)
    known = add_acceptance(bot, "compat", "flips", ["b", "a", "a"], reason="new policy", key=key)
    assert known.checked.acceptance is not None
    assert known.checked.acceptance.examples == ("a", "b")
    assert known.checked.signature.principals == ("ci@example.org",)
    assert [item.about for item in kept_notes(bot, kind="acceptance")] == ["compat"]


def test_the_signing_key_is_that_of_the_settings(bot: Repository) -> None:
    assert signing_key(bot) is None
    with pytest.raises(UsageError, match="no signing key is configured"):
        signing_key(bot, "")
    bot.paths.config.write_text('[user]\nsigning_key = "~/.ssh/ci"\n')
    bot.forget_settings()
    assert signing_key(bot) == bot.environment.home / ".ssh/ci"
    assert signing_key(bot, "other") == bot.environment.cwd / "other"


def pair(bot: Repository, make_repo: Callable[..., Repository]) -> Repository:
    """`bot` with a remote, and a clone of what it pushed."""
    add_remote(bot, "origin", str(bot.worktree.parent / "origin.mgit"))
    push(bot)
    return clone("origin.mgit", "clone", environment=replace(bot.environment, cwd=bot.worktree.parent))


def test_notes_travel_with_the_weights_that_they_are_about(
    bot: Repository, make_repo: Callable[..., Repository], key: Path, files
) -> None:
    allow(bot, key)
    bot.commit("signers")
    clone_ = pair(bot, make_repo)
    try:
        attach_verdicts(bot, bot.resolve("HEAD"), record(bot), key=key)
        add_acceptance(bot, "compat", "flips", ["a"], reason="signed", key=key)
        add_acceptance(bot, "compat", "flips", ["b"], reason="unsigned")
        bot.switch("side", create=True)
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(5)))
        bot.commit("only here")
        attach_verdicts(bot, bot.resolve("HEAD"), record(bot))
        sent = push(bot, branches=["main"])
        assert sent.updates == ()
        assert sorted(item.kind for item in sent.notes) == ["acceptance", "test-result"]
        assert push(bot, branches=["main"]).notes == ()
        fetched = fetch(clone_)
        assert [item.origin for item in fetched.notes.notes] == ["origin", "origin"]
        assert fetched.notes.refused == ()
        assert fetch(clone_).notes == MovedNotes()
        [known] = notes_about(clone_, tree(clone_))
        assert known.counts
        assert known.checked.signature.principals == ("ci@example.org",)
        # An unsigned note of somebody else is kept, shown, and believed by nobody.
        push(bot, branches=["side"])
        fetch(clone_)
        [other] = notes_about(clone_, tree(clone_, "origin/side"))
        assert not other.counts
        assert fsck(clone_).is_sound
    finally:
        clone_.close()


def test_a_push_moves_refs_and_notes_in_one_step(bot: Repository, make_repo: Callable[..., Repository]) -> None:
    add_remote(bot, "origin", str(bot.worktree.parent / "origin.mgit"))
    attach_verdicts(bot, bot.resolve("HEAD"), record(bot))
    push(bot)
    far = DirectoryTransport(bot.worktree.parent / "origin.mgit")
    state = far.root()
    versions = sorted((bot.worktree.parent / "origin.mgit/root").iterdir())
    assert len(versions) == 2, "made, then moved once"
    assert [item.origin for item in far.statistics(state).notes] == ["Ada <ada@example.org>"]
    far.close()


def test_a_lie_of_a_remote_is_named_and_stops_nothing(
    bot: Repository, make_repo: Callable[..., Repository], files
) -> None:
    clone_ = pair(bot, make_repo)
    try:
        [known] = attach_verdicts(bot, bot.resolve("HEAD"), record(bot))
        assert known.record is not None
        first = tree(bot)
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(5)))
        bot.commit("other weights")
        lie = KeptNote(id=known.kept.id, kind="test-result", about=tree(bot), time_ms=1)
        bot.publish(lambda view: view, "lie", keep=lambda record: replace_fields(record, notes=(lie,)))
        push(bot)
        fetched = fetch(clone_)
        assert len(fetched.moved) == 1
        assert fetched.notes.notes == ()
        [sentence] = fetched.notes.refused
        assert sentence == (
            f"refuses note {known.kept.id.short} from origin: it is about other weights than the list says"
        )
        assert kept_notes(clone_, kind="test-result") == []
        # Listed under the right weights, with a verdict that says something else than the statement.
        worse = replace_fields(known.record, decision="pass", seconds=99.0)
        with bot.session() as session:
            note = replace_fields(known.note, record=write_record(session, EvalRecordId, worse))
            forged = KeptNote(id=write_record(session, NoteId, note), kind="test-result", about=first, time_ms=1)
            session.seal()
            bot.publish(
                lambda view: view, "lie", session=session, keep=lambda record: replace_fields(record, notes=(forged,))
            )
        push(bot)
        refused = " ".join(fetch(clone_).notes.refused)
        assert "does not say what its verdict says" in refused
    finally:
        clone_.close()
