"""What a log makes of notes: the word that counts, who vouches for it, and the compatibility budget."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_fields

from modelgit.errors import NothingToDo
from modelgit.objects import CheckResult, CommitId, ComparedWith, Decision, EvalRecord, KeptNote, NoteId
from modelgit.repo import Repository
from modelgit.repo.gates.compat import CompatReport, SuiteChange, compatibility
from modelgit.repo.history.log import log
from modelgit.repo.notes import attach_verdicts, keep_notes
from modelgit.repo.reviews.attested import Attestations
from modelgit.repo.reviews.last_words import last_word
from modelgit.repo.weights import weights_tree
from modelgit.store.metadata import write_record


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (openssh-client)")
    path = tmp_path_factory.mktemp("keys") / "ci"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def allow(repo: Repository, key: Path, options: str = 'namespaces="mgit-eval"') -> None:
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (repo.worktree / "evals").mkdir(exist_ok=True)
    (repo.worktree / "evals/allowed_signers").write_text(f"ci@example.org {options} {public}\n")


def verdict(
    repo: Repository, commit: CommitId, before: CommitId, *checks: CheckResult,
    decision: Decision = "pass", name: str = "parent", suite_id: str = "1",
) -> EvalRecord:  # fmt: skip
    manifest = repo.manifest_of(before)
    against = ComparedWith(
        name=name, manifest=repo.commit_at(before).manifest, weights=weights_tree(repo, manifest), commit=before
    )
    return EvalRecord(
        candidate=repo.commit_at(commit).manifest, baseline=against.manifest, suite="compat", suite_id=suite_id,
        results=checks, decision=decision, seconds=1.0, alpha=0.05, baselines=(against,),
    )  # fmt: skip


def flips(
    share: float, *, total: int = 1000, examples: int = 1000, against: str = "parent", **more: object
) -> CheckResult:
    values: dict[str, object] = {"decision": "pass", "limit": "max 2 %", **more}
    return CheckResult(
        name="negative flips", test="flips", value=share, against=against, examples=examples, total=total, **values
    )  # type: ignore[arg-type]


def chain(repo: Repository, files, steps: int) -> list[CommitId]:
    """Commits with other weights each, the first of them tagged."""
    arrays = files.floats()
    commits = [repo.resolve("HEAD")]
    for _ in range(steps):
        arrays["layers.0.weight"] = np.nextafter(arrays["layers.0.weight"], 1).astype("<f4")
        (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        commits.append(repo.commit("step").id)
    return commits


def tag(repo: Repository, commit: CommitId, name: str = "v1") -> None:
    repo.publish(lambda view: replace_fields(view, refs={**view.refs, f"tags/{name}": commit}), f"tag: {name}")


def test_a_log_takes_the_newest_note_that_counts(bot: Repository, key: Path) -> None:
    [entry] = log(bot)
    assert (entry.verdict, entry.signers, entry.attested) == ("baseline", (), ())
    head = bot.resolve("HEAD")
    allow(bot, key)
    attach_verdicts(bot, head, [verdict(bot, head, head, flips(0.5), decision="fail")])
    [entry] = log(bot)
    assert (entry.verdict, entry.signers) == ("fail", ())
    attach_verdicts(bot, head, [verdict(bot, head, head, flips(0.0))], key=key)
    [entry] = log(bot)
    assert (entry.verdict, entry.signers) == ("pass", ("ci@example.org",))
    assert [note.decision for note in entry.attested] == ["pass", "fail"]
    # The key is taken off the list: the signature no longer says anything, and the older note counts again.
    (bot.worktree / "evals/allowed_signers").write_text("# nobody\n")
    [entry] = log(bot)
    assert (entry.verdict, entry.signers) == ("fail", ())
    assert entry.attested[0].problem.endswith("is not in evals/allowed_signers")
    assert not entry.attested[0].counts


def test_a_verified_signature_is_remembered_and_its_key_asked_for_every_time(
    bot: Repository, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = bot.resolve("HEAD")
    allow(bot, key)
    attach_verdicts(bot, head, [verdict(bot, head, head, flips(0.0))], key=key)
    assert next(log(bot)).signers == ("ci@example.org",)
    monkeypatch.setattr("modelgit.repo.notes.matches", lambda *_, **__: pytest.fail("runs the program again"))
    assert next(log(bot)).signers == ("ci@example.org",)
    allow(bot, key, 'namespaces="mgit-eval",valid-before="20200101"')
    assert next(log(bot)).attested[0].problem == "the key of ci@example.org expired on 2020-01-01"


def test_an_unsigned_note_from_elsewhere_changes_no_verdict(bot: Repository) -> None:
    head = bot.resolve("HEAD")
    [known] = attach_verdicts(bot, head, [verdict(bot, head, head, flips(0.5), decision="fail")])
    with bot.session() as session:
        other = write_record(session, NoteId, known.note)
        session.seal()
        far = KeptNote(id=other, kind="test-result", about=known.kept.about, time_ms=1, origin="origin")
        bot.publish(lambda view: view, "x", keep=lambda record: replace_fields(record, notes=()))
        keep_notes(bot, [far], "fetch", session=session)
    [entry] = log(bot)
    assert entry.verdict == "baseline"
    assert [(note.counts, note.origin) for note in entry.attested] == [(False, "origin")]


def test_pending_is_worse_than_a_pass_and_ends_with_a_note(bot: Repository) -> None:
    head = bot.resolve("HEAD")
    commit = bot.commit_at(head)
    pending = replace_fields(
        commit, verdicts=(*commit.verdicts, replace_fields(commit.verdicts[0], suite="compat", decision="pending"))
    )
    assert last_word(pending, ()) == ("pending", ())
    attach_verdicts(bot, head, [verdict(bot, head, head, flips(0.0))])
    with Attestations(bot) as attestations:
        assert last_word(pending, attestations.of(head))[0] == "pass"


def test_the_budget_adds_up_what_is_recorded(bot: Repository, files) -> None:
    with pytest.raises(NothingToDo, match="no tag lies behind HEAD"):
        compatibility(bot)
    commits = chain(bot, files, 3)
    tag(bot, commits[0])
    bot.commit("only words", allow_empty=True)
    parents = dict(zip(commits[1:], commits, strict=False))
    attach_verdicts(bot, commits[1], [verdict(bot, commits[1], commits[0], flips(0.004))])
    attach_verdicts(bot, commits[2], [verdict(bot, commits[2], parents[commits[2]], flips(0.001, examples=200))])
    [line] = compatibility(bot).lines
    assert line.bound is None
    assert [step.bound for step in line.steps] == [0.004, 0.02, None, 0.0]
    assert [step.how for step in line.steps] == ["measured", "proven", "", "same weights"]
    attach_verdicts(bot, commits[3], [verdict(bot, commits[3], commits[2], flips(0.003))])
    report = compatibility(bot)
    assert (report.tag, report.tagged, report.commits) == ("v1", commits[0], 4)
    [line] = report.lines
    assert line.bound == pytest.approx(0.027)
    assert (line.suite, line.test, line.metric, line.alpha) == ("compat", "flips", "negative flips", 0.05)
    assert line.direct is None
    direct = flips(0.0025, against="tag:v*", limit="max 3 %")
    attach_verdicts(bot, commits[3], [verdict(bot, commits[3], commits[0], direct, name="tag:v*")])
    [line] = compatibility(bot).lines
    assert (line.direct, line.direct_how, line.budget) == (0.0025, "measured", "max 3 %")


def test_figures_against_other_weights_or_of_another_suite_are_not_added(bot: Repository, files) -> None:
    commits = chain(bot, files, 2)
    tag(bot, commits[0])
    attach_verdicts(bot, commits[1], [verdict(bot, commits[1], commits[0], flips(0.004))])
    # "parent" of this verdict is another commit; a slice, a broken sample and another suite do not count either.
    attach_verdicts(bot, commits[2], [verdict(bot, commits[2], commits[0], flips(0.001))])
    attach_verdicts(bot, commits[2], [verdict(bot, commits[2], commits[1], flips(0.001, slice="lang=en"))])
    broken = flips(0.05, examples=90, decision="fail")
    attach_verdicts(bot, commits[2], [verdict(bot, commits[2], commits[1], broken, decision="fail")])
    [line] = compatibility(bot).lines
    assert [step.bound for step in line.steps] == [0.004, None]
    assert not compatibility(bot).changes
    attach_verdicts(bot, commits[2], [verdict(bot, commits[2], commits[1], flips(0.001), suite_id="2")])
    [line] = compatibility(bot).lines
    assert [step.bound for step in line.steps] == [None, 0.001]
    assert compatibility(bot).changes == (SuiteChange("compat", commits[2]),)
    # Asked again by the suite as it is now, the older step counts, and nothing is missing.
    attach_verdicts(bot, commits[1], [verdict(bot, commits[1], commits[0], flips(0.002), suite_id="2")])
    report = compatibility(bot)
    assert [step.bound for step in report.lines[0].steps] == [0.002, 0.001] and not report.changes


def test_the_bound_holds_on_a_chain_of_random_models(bot: Repository, files) -> None:
    random = np.random.default_rng(0)
    outcomes = [random.random(500) < 0.8 for _ in range(4)]
    commits = chain(bot, files, 3)
    tag(bot, commits[0])
    for number in range(1, 4):
        share = float(np.mean(outcomes[number - 1] & ~outcomes[number]))
        record = verdict(bot, commits[number], commits[number - 1], flips(share, total=500, examples=500))
        attach_verdicts(bot, commits[number], [record])
    report: CompatReport = compatibility(bot)
    [line] = report.lines
    direct = float(np.mean(outcomes[0] & ~outcomes[3]))
    assert line.bound is not None
    assert direct <= line.bound <= 1
