"""Protected branches end to end: real keys, a bare remote, pushes that are refused with their reasons, and others."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from modelgit.environment import Environment
from modelgit.objects import CheckResult, ComparedWith, EvalRecord, Note
from modelgit.objects.attestations import make_test_result, write_test_result
from modelgit.repo import Repository
from modelgit.repo.gates.suites import suite_ids
from modelgit.repo.layout import RepositoryPaths
from modelgit.repo.notes import KnownNote, _keep, attach_verdicts
from modelgit.repo.reviews.ref_policies import decide_ref
from modelgit.repo.statistics import kept_statistics
from modelgit.repo.weights import weights_tree

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private keys of the pipeline, of an owner and of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ci", "owner", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return {name: folder / name for name in ("ci", "owner", "stranger")}


def line(keys: dict[str, Path], name: str) -> str:
    public = " ".join(keys[name].with_suffix(".pub").read_text().split()[:2])
    return f'{name}@example.org namespaces="mgit-eval" {public}\n'


class Team:
    """A repository with a protected `main` on a bare remote."""

    def __init__(self, mgit: Any, files: Any, keys: dict[str, Path], policy: str, *, suite: str = "") -> None:
        self.mgit, self.files, self.keys = mgit, files, keys
        self.root: Path = mgit.directory
        self.origin = self.root.parent / "origin"
        (self.root / "bot").mkdir()
        (self.root / "bot/config.json").write_text("{}")
        (self.root / "evals").mkdir()
        (self.root / "evals/allowed_signers").write_text(line(keys, "ci") + line(keys, "owner"))
        if suite:
            self.suite(suite)
        self.weights(0)
        mgit("init")
        mgit("track", "bot")
        self.settings = (self.root / "mgit.toml").read_text()
        (self.root / "mgit.toml").write_text(self.settings + policy)
        mgit("commit", "-m", "base")
        mgit("remote", "add", "origin", str(self.origin))
        mgit("push")

    def weights(self, seed: int) -> None:
        (self.root / "bot/model.safetensors").write_bytes(self.files.of_arrays(self.files.floats(seed)))

    def suite(self, text: str, *, data: str = '{"text": "a", "label": "yes"}\n') -> None:
        (self.root / "evals/smoke.toml").write_text(text)
        (self.root / "evals/test.jsonl").write_text(data)

    def commit(self, message: str = "change") -> None:
        self.mgit("commit", "-m", message)

    def remote(self) -> list[bytes]:
        """Everything that the remote holds."""
        return [
            path.relative_to(self.origin).as_posix().encode() + path.read_bytes()
            for path in sorted(self.origin.rglob("*"))
            if path.is_file()
        ]

    def refused(self, rule: str, *options: str) -> str:
        """A push that must be refused for `rule`, with the remote as it was; what was said."""
        before = self.remote()
        ran = self.mgit("push", "origin", *options, code=1)
        assert self.remote() == before
        assert f"    {rule}: " in ran.err, ran.err
        assert "error: the policy of origin/main refuses the push" in ran.err
        assert "nothing was changed" in ran.err
        return str(ran.err)

    def approve(self, *options: str, name: str = "owner", code: int = 0) -> Any:
        return self.mgit(
            "approve",
            "--base",
            "origin/main",
            "-m",
            "looked at it",
            "--sign",
            str(self.keys[name]),
            *options,
            code=code,
        )


GUARDED = """
[policy.guard]
max_patch_bytes = 20000
exact = true
approval = { by = ["owner@example.org"] }
override = { by = ["owner@example.org"] }
"""


@pytest.fixture
def team(mgit: Any, files: Any, keys: dict[str, Path]) -> Team:
    return Team(mgit, files, keys, GUARDED)


def test_what_keeps_the_policy_is_let_in(team: Team) -> None:
    team.weights(1)
    team.commit()
    ran = team.mgit("push")
    assert "  policy guard of main: kept (advisory: the remote cannot enforce it)" in ran.err.splitlines()
    team.mgit("switch", "-c", "free")
    (team.root / "bot/modeling.py").write_text("x = 1\n")
    team.commit()
    assert "policy" not in team.mgit("push", "origin", "free").err


def test_code_needs_an_owner(team: Team) -> None:
    (team.root / "bot/modeling.py").write_text("import os\n")
    (team.root / "bot/config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Bot"}}))
    team.commit()
    said = team.refused("approval")
    assert "code (bot/modeling.py), which needs the approval of owner@example.org" in said
    assert "bot/config.json: modeling.Bot" in said
    team.approve(name="ci")
    assert "signed by ci@example.org" in team.refused("approval")
    assert "nobody would believe" in team.approve(name="stranger", code=2).err
    approved = team.approve().err
    assert "as owner@example.org" in approved and "  code: bot/modeling.py" in approved
    pushed = team.mgit("push").err
    assert "policy guard of main: kept" in pushed and "  2 approvals sent" in pushed
    team.mgit("clone", str(team.origin), str(team.root.parent / "copy"))
    again = team.mgit("check", "HEAD", "--base", "HEAD~1", "--no-suites", "--json", cwd=team.root.parent / "copy")
    sections = {item["name"]: item for item in json.loads(again.out)["sections"]}
    assert "approval by owner@example.org" in sections["signatures"]["summary"]


def test_an_approval_lapses_with_another_commit(team: Team) -> None:
    (team.root / "bot/modeling.py").write_text("import os\n")
    team.commit()
    team.approve()
    (team.root / "bot/modeling.py").write_text("import os, sys\n")
    team.commit("and more")
    team.refused("approval")


def test_an_approval_is_for_one_branch(team: Team) -> None:
    (team.root / "mgit.toml").write_text(
        team.settings + GUARDED.replace("max_patch", 'branches = ["main", "release/*"]\nmax_patch')
    )
    team.commit("protects releases, too")
    team.approve()
    team.mgit("push", "origin", "main", "main:release/1")  # two protected branches with one tip
    (team.root / "bot/modeling.py").write_text("import os\n")
    team.commit("code")
    team.approve()
    before = team.remote()
    ran = team.mgit("push", "origin", "main:release/1", code=1)
    assert team.remote() == before
    error, hint = ran.err.splitlines()[-2:]
    assert error == (
        "error: the policy of origin/release/1 refuses the push: the update changes code (bot/modeling.py), which needs"
        " the approval of owner@example.org; the approval is for main, and not for release/1; nothing was changed"
    )
    command = hint.removeprefix("hint: owner@example.org runs `mgit ").removesuffix("`")
    assert command.endswith("--base origin/release/1 -m REASON")
    team.mgit(*command.split(), "--sign", str(team.keys["owner"]))
    team.mgit("push", "origin", "main:release/1", "main")


def test_an_override_is_for_one_branch(team: Team, files: Any) -> None:
    team.mgit("push", "origin", "main:other")
    big = {"layers.0.weight": np.random.default_rng(5).standard_normal((200, 64)).astype("<f4")}
    (team.root / "bot/model.safetensors").write_bytes(files.of_arrays(big))
    team.commit()
    assert "no policy of origin/other protects other" in team.mgit(
        "approve", "--base", "origin/other", "-m", "x", "--override", "--sign", str(team.keys["owner"]), code=1
    ).err  # fmt: skip
    assert "is no branch, so say which one" in team.mgit(
        "approve", "--base", "HEAD~1", "-m", "x", "--override", "--sign", str(team.keys["owner"]), code=2
    ).err  # fmt: skip
    # The same policy, asked about a branch that is not there yet: leave for it is no leave for main.
    (team.root / "mgit.toml").write_text(team.settings + GUARDED.replace("max_patch", 'branches = ["*"]\nmax_patch'))
    team.commit("all branches")
    team.approve()
    team.approve("--override")
    team.mgit("push")
    team.mgit("switch", "-c", "next")
    team.weights(7)
    (team.root / "bot/model.safetensors").write_bytes(
        files.of_arrays({"layers.0.weight": np.random.default_rng(6).standard_normal((200, 64)).astype("<f4")})
    )
    team.commit("big again")
    assert "for next (policy guard) as owner@example.org" in team.approve("--branch", "next", "--override").err
    said = team.refused("override", "next:main")
    assert "an override does not count: the approval is for next, and not for main" in said
    team.mgit("push", "origin", "next")


def test_a_patch_cannot_take_the_policy_away(team: Team) -> None:
    (team.root / "mgit.toml").write_text(team.settings)
    team.commit("free for all")
    assert "the gate itself (mgit.toml)" in team.refused("approval")
    (team.root / "mgit.toml").write_text(team.settings + GUARDED)
    (team.root / "evals/allowed_signers").write_text(line(team.keys, "ci") + line(team.keys, "stranger"))
    team.commit("other keys")
    assert "evals/allowed_signers" in team.refused("approval")


def test_sizes(team: Team, files: Any) -> None:
    big = {"layers.0.weight": np.random.default_rng(5).standard_normal((200, 64)).astype("<f4")}
    (team.root / "bot/model.safetensors").write_bytes(files.of_arrays(big))
    team.commit()
    assert "and policy guard allows 19.5 KiB" in team.refused("patch-size")


def test_a_protected_branch_moves_forward_only(team: Team) -> None:
    team.weights(3)
    team.commit()
    team.mgit("push")
    team.refused("deletion", "main", "--delete")
    team.mgit("switch", "-c", "aside", "HEAD~1")
    team.weights(5)
    team.commit()
    team.refused("rewrite", "aside:main", "--force-with-lease")
    team.mgit("push", "origin", "aside")
    team.mgit("push", "origin", "aside", "--delete")


def test_an_owner_overrides_and_the_push_says_so(team: Team, files: Any) -> None:
    big = {"layers.0.weight": np.random.default_rng(5).standard_normal((200, 64)).astype("<f4")}
    (team.root / "bot/model.safetensors").write_bytes(files.of_arrays(big))
    team.commit()
    team.refused("patch-size")
    assert "needs approval" in team.approve(code=1).err
    team.approve("--override", name="ci")
    team.refused("patch-size")
    team.approve("--override")
    said = team.mgit("push").err
    assert "policy guard of main: overridden by owner@example.org: looked at it (advisory)" in said
    assert "patch-size: " in said


def test_a_new_branch_is_judged_by_the_default_one(team: Team) -> None:
    for name, rest in (("bot/modeling.py", "x"),):
        (team.root / name).write_text(rest)
    (team.root / "mgit.toml").write_text(team.settings + GUARDED.replace("max_patch", 'branches = ["m*"]\nmax_patch'))
    team.commit("protects more")
    team.approve()
    team.mgit("push")
    (team.root / "bot/more.py").write_text("y")
    team.commit("code")
    before = team.remote()
    ran = team.mgit("push", "origin", "main:more", code=1)
    assert team.remote() == before
    assert "the policy of origin/more refuses the push" in ran.err


def test_policies_that_cannot_be_read_stop_a_push(team: Team) -> None:
    (team.root / "mgit.toml").write_text(team.settings + GUARDED)
    assert "max_patch" in team.mgit("config", "list").out
    (team.root / "mgit.toml").write_text(team.settings + GUARDED.replace("max_patch_bytes", "max_path_bytes"))
    assert "did you mean `policy.guard.max_patch_bytes`" in team.mgit("status", code=2).err


SUITE = """
schema = 1
task = "bot"

[data.test]
path = "evals/test.jsonl"

[[test]]
name = "flips"
kind = "nfr"
data = "test"
max = 0.01
"""

REQUIRES = """
[task.bot]
model = "bot"
adapter = "bert-classifier"
labels = ["no", "yes"]

[policy.guard]
require = [{ suite = "smoke" }]
signers = ["ci@example.org"]
override = { by = ["owner@example.org"] }
"""


class GatedTeam(Team):
    """A team whose policy requires the suite `smoke`, and which makes records of it without running any model."""

    def repository(self) -> Repository:
        values = {**self.mgit.values, "HOME": str(self.root.parent / "home")}
        return Repository.open(self.root, environment=Environment.capture(values=values, cwd=self.root))

    def verdict(self, repo: Repository, law: str, against: str) -> EvalRecord:
        """The verdict of the suite of `law` on HEAD against a commit, as a run of it would give."""
        head, tip = repo.resolve("HEAD"), repo.resolve(against)
        before = repo.commit_at(tip).manifest
        return EvalRecord(
            candidate=repo.commit_at(head).manifest,
            baseline=before,
            suite="smoke",
            suite_id=suite_ids(repo, repo.manifest_of(repo.resolve(law)))["smoke"],
            results=(CheckResult(name="flips", decision="pass", test="flips"),),
            decision="pass",
            seconds=0.1,
            weights=weights_tree(repo, repo.manifest_of(head)),
            baselines=(
                ComparedWith(
                    name="parent", manifest=before, weights=weights_tree(repo, repo.manifest_at(before)), commit=tip
                ),
            ),
            stage="commit",
        )

    def record(
        self, *, key: str | None = "ci", law: str = "HEAD", against: str = "origin/main", **changes: Any
    ) -> KnownNote:
        """Attach a verdict on HEAD to its weights."""
        with self.repository() as repo:
            record = msgspec.structs.replace(self.verdict(repo, law, against), **changes)
            signing = None if key is None else self.keys[key]
            [known] = attach_verdicts(repo, repo.resolve("HEAD"), [record], key=signing)
            return known


FAILED: dict[str, Any] = {
    "decision": "fail",
    "results": (CheckResult(name="flips", decision="fail", test="flips", value=0.2, limit="max 1.0 %"),),
}


@pytest.fixture
def gated(mgit: Any, files: Any, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> GatedTeam:
    # No model runs in these tests: the gate of commits is not what is tested.
    monkeypatch.setattr("modelgit.repo.gates.gate.evaluate_manifest", lambda *_, **__: [])
    team = GatedTeam(mgit, files, keys, REQUIRES, suite=SUITE)
    team.weights(1)
    team.commit()
    return team


def test_a_signed_record_of_these_weights_lets_the_push_in(gated: GatedTeam) -> None:
    assert "no record of suite smoke is about the pushed weights" in gated.refused("no-record")
    gated.record()
    assert "policy guard of main: kept" in gated.mgit("push").err
    (gated.root / "bot/README.md").write_text("words")
    gated.commit("words")
    assert "neither weights nor gate change" in gated.mgit("push").err
    gated.weights(2)
    gated.commit("again")
    gated.refused("no-record")  # the record was of other weights
    assert gated.mgit("clone", str(gated.origin), str(gated.root.parent / "copy")).code == 0
    copy = gated.root.parent / "copy"
    found = json.loads(gated.mgit("check", "--base", "HEAD~2", "--no-suites", "--json", cwd=copy).out)
    sections = {item["name"]: item["summary"] for item in found["sections"]}
    assert sections["signatures"] == "signed: smoke by ci@example.org"


@pytest.mark.parametrize(
    ("options", "rule", "words"),
    [
        ({"key": None}, "signer", "it is not signed"),
        ({"key": "owner"}, "signer", "signed by owner@example.org, and only ci@example.org may sign it"),
        ({"suite_id": "b3:" + 64 * "0"}, "other-suite", "another version of the suite than that of main"),
        ({"baselines": ()}, "stale-baseline", "does not compare with"),
        (FAILED, "verdict", "is fail, not pass"),
        ({"decision": "inconclusive"}, "verdict", "is inconclusive, not pass"),
        ({"decision": "baseline"}, "verdict", "is baseline, not pass"),
    ],
)
def test_records_that_do_not_count(gated: GatedTeam, options: dict[str, Any], rule: str, words: str) -> None:
    gated.record(**options)
    assert words in gated.refused(rule)
    gated.record()
    gated.mgit("push")


def test_a_server_can_decide_the_same_on_its_own(gated: GatedTeam) -> None:
    gated.record()
    gated.mgit("push")
    environment = Environment.capture(values=gated.mgit.values, cwd=gated.root)
    with Repository(RepositoryPaths(gated.origin, worktree=None), environment) as bare:
        new = bare.view().refs["heads/main"]
        [old] = bare.parents_of(new)
        notes = kept_statistics(bare).notes
        known: dict[str, Any] = {"ref": "heads/main", "remote": "", "old": old, "new": new, "against": old}
        known |= {"base": "main", "tags": {}}
        allowed = decide_ref(bare, **known, store=bare.store, notes=notes)
        assert allowed is not None and allowed.allowed
        refused = decide_ref(bare, **known, store=bare.store, notes=())
        assert refused is not None and [item.rule for item in refused.decisions[0].refusals] == ["no-record"]
        assert refused.update.facts.bytes_added > 0


def test_a_forged_record_does_not_count(gated: GatedTeam) -> None:
    failing = gated.record(**FAILED)
    with gated.repository() as repo:
        record = gated.verdict(repo, "HEAD", "origin/main")
        result = make_test_result(record, time_s=failing.checked.result.time_s, commit=repo.resolve("HEAD"))
        forged = Note(
            kind="test-result",
            statement=write_test_result(result),
            signature=failing.note.signature,
            record=result.record,
        )
        _keep(repo, [(forged, result.weights, record)], "forged")
    gated.refused("verdict")
    # Of the two, the one that comes nearest gives the reason; alone, the forged one does.
    with gated.repository() as repo:
        kept = kept_statistics(repo).notes
        repo.publish(lambda view: view, "drop", keep=lambda record: msgspec.structs.replace(record, notes=kept[1:]))
    assert "its signature does not match: statement or signature were altered" in gated.refused("forged")


def test_a_record_against_an_older_tip_is_stale(gated: GatedTeam) -> None:
    gated.record()
    gated.mgit("push")
    gated.weights(2)
    gated.commit("another")
    gated.record(against="origin/main~1")
    assert "the tip of main that it would replace" in gated.refused("stale-baseline")


def test_a_patch_cannot_edit_its_own_gate(gated: GatedTeam) -> None:
    gated.suite(SUITE.replace("0.01", "1.0"))
    gated.commit("a wider limit")
    gated.record(law="HEAD")
    said = gated.refused("other-suite")
    assert "another version of the suite than that of main" in said
    assert "--suite smoke --suites-from origin/main --baseline origin/main --record --sign` runs that version" in said
    gated.record(law="origin/main")
    gated.mgit("push")
    gated.suite(SUITE, data='{"text": "b", "label": "no"}\n')
    gated.weights(3)
    gated.commit("easier data")
    gated.record(law="HEAD")
    gated.refused("other-suite")
    (gated.root / "evals/smoke.toml").unlink()
    gated.commit("no suite at all")
    gated.refused("other-suite")


def test_the_gate_is_not_edited_in_two_steps_either(gated: GatedTeam) -> None:
    gated.mgit("undo")
    (gated.root / "data").mkdir()
    (gated.root / "data/test.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    (gated.root / "evals/smoke.toml").write_text(SUITE.replace("evals/test", "data/test"))
    gated.mgit("track", "data")
    gated.commit("data elsewhere")
    gated.record(law="HEAD")
    gated.record(law="origin/main")
    gated.mgit("push")
    (gated.root / "data/test.jsonl").write_text('{"text": "b", "label": "no"}\n')
    gated.commit("easier data, the same weights")
    gated.refused("other-suite")
    found = json.loads(gated.mgit("check", "--base", "origin/main", "--no-suites", "--json").out)
    assert found["facts"]["gate"] == ["data/test.jsonl"]


def test_policies_and_keys_do_not_travel_with_the_patch(gated: GatedTeam) -> None:
    (gated.root / "mgit.toml").write_text(gated.settings)
    (gated.root / "evals/allowed_signers").write_text(line(gated.keys, "stranger").replace("stranger@", "ci@"))
    gated.commit("my own rules")
    gated.record(key="stranger", law="origin/main")
    assert "is not in evals/allowed_signers" in gated.refused("forged")


def test_an_owner_overrides_a_failing_suite(gated: GatedTeam) -> None:
    gated.record(**FAILED)
    gated.refused("verdict")
    gated.approve("--override")
    assert "overridden by owner@example.org: looked at it" in gated.mgit("push").err


RELEASES = (
    REQUIRES
    + """
[policy.release]
tags = ["v*"]
require = [{ suite = "smoke", stage = "release" }]
signers = ["ci@example.org"]
override = { by = ["owner@example.org"] }
"""
)


@pytest.fixture
def releasing(mgit: Any, files: Any, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> GatedTeam:
    monkeypatch.setattr("modelgit.repo.gates.gate.evaluate_manifest", lambda *_, **__: [])
    suite = SUITE.replace('task = "bot"', 'task = "bot"\n[run]\nstage = "release"')
    return GatedTeam(mgit, files, keys, RELEASES, suite=suite)


def tag_refused(team: Team, rule: str, *options: str) -> str:
    before = team.remote()
    ran = team.mgit("push", "origin", "main", "--tags", *options, code=1)
    assert team.remote() == before
    assert f"    {rule}: " in ran.err, ran.err
    assert "error: the policy of origin/main refuses tag v" in ran.err
    return str(ran.err)


def test_a_protected_tag_needs_a_release_verdict(releasing: GatedTeam) -> None:
    team = releasing
    team.mgit("tag", "notes-1")
    team.mgit("push", "--tags")  # no policy is about it
    team.mgit("tag", "v1.0")
    said = tag_refused(team, "no-record")
    assert "--suites-from origin/main --record --sign` makes it, `mgit push --tags` sends it" in said
    team.record(against="HEAD", stage="release", key="owner")
    tag_refused(team, "signer")
    team.record(against="HEAD")
    assert "is of stage commit, and tag v1.0 requires release" in tag_refused(team, "stage")
    report = json.loads(team.mgit("check", "v1.0", "--base", "origin/main", "--no-suites", "--json", code=None).out)
    sections = {item["name"]: item for item in report["sections"]}
    assert sections["tag policy"]["outcome"] == "fail"
    assert sections["tag policy"]["findings"][0]["rule"] == "policy/stage"
    team.record(against="HEAD", stage="release")
    report = json.loads(team.mgit("check", "v1.0", "--base", "origin/main", "--no-suites", "--json", code=None).out)
    sections = {item["name"]: item for item in report["sections"]}
    assert sections["tag policy"]["summary"] == "release would let tag v1.0 in"
    assert "smoke by ci@example.org" in sections["signatures"]["summary"]
    assert "  policy release of tag v1.0: kept (advisory" in team.mgit("push", "--tags").err
    # The next release must be compared with this one, which the tip need not be.
    for seed in (1, 2):
        team.weights(seed)
        team.commit()
        team.record()
        team.mgit("push", "origin", "main")
    team.mgit("tag", "v1.1")
    team.record(stage="release")
    assert "does not compare with v1.0, the protected tag behind tag v1.1" in tag_refused(team, "stale-baseline")
    team.record(stage="release", against="v1.0")
    team.mgit("push", "--tags")


def test_a_protected_tag_stays(releasing: GatedTeam) -> None:
    team = releasing
    team.mgit("tag", "v1.0")
    team.record(against="HEAD", stage="release")
    team.mgit("push", "--tags")
    said = team.mgit("push", "origin", "--delete", "v1.0", code=1).err
    assert "error: the policy of origin/main refuses tag v1.0: tag v1.0 is protected and cannot be deleted" in said
    team.weights(1)
    team.commit()
    team.mgit("tag", "-f", "v1.0")
    assert "origin has a tag v1.0 already" in team.mgit("push", "--tags", code=5).err
    team.mgit("tag", "notes")
    team.record()
    team.mgit("tag", "-d", "v1.0")
    team.mgit("push", "--tags")
    team.mgit("push", "origin", "--delete", "notes")
    copy = team.root.parent / "copy"
    team.mgit("clone", str(team.origin), str(copy))
    found = json.loads(team.mgit("tag", "--json", cwd=copy).out)["tags"]
    assert [item["name"] for item in found] == ["v1.0"]


def test_an_owner_overrides_for_one_tag(releasing: GatedTeam) -> None:
    team = releasing
    team.mgit("tag", "v1.0")
    team.mgit("tag", "v1.0.1")
    tag_refused(team, "no-record")
    approved = team.approve("--tag", "v1.0", "--override").err
    assert "for tag v1.0 (policy release) as owner@example.org" in approved
    said = tag_refused(team, "override")
    assert "policy release of tag v1.0:" not in said
    assert "an override does not count: the approval is for tag v1.0, and not for tag v1.0.1" in said
    team.mgit("tag", "-d", "v1.0.1")
    said = team.mgit("push", "--tags").err
    assert "policy release of tag v1.0: overridden by owner@example.org: looked at it" in said
