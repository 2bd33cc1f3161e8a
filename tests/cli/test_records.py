"""Verdicts and acceptances from the command line: recorded, signed, shown, sent, refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Runner


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (openssh-client)")
    folder = tmp_path_factory.mktemp("keys")
    for name, passphrase in (("ci", ""), ("stranger", ""), ("locked", "secret")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return folder


def allow(mgit: Runner, key: Path) -> None:
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (mgit.directory / "evals").mkdir(exist_ok=True)
    (mgit.directory / "evals/allowed_signers").write_text(f'ci@example.org namespaces="mgit-eval" {public}\n')


@pytest.fixture
def bot(mgit: Runner, files) -> Runner:
    mgit("init")
    (mgit.directory / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    mgit("track", "bot.safetensors")
    mgit("commit", "-m", "base")
    return mgit


def test_a_verdict_is_attached_signed_shown_and_sent(bot: Runner, keys: Path) -> None:
    assert bot("eval", "--record", code=2).err.startswith("error: --record attaches verdicts to a commit: which one?")
    assert "--sign goes with --record" in bot("eval", "HEAD", "--sign", str(keys / "ci"), code=2).err
    assert "no signing key is configured" in bot("eval", "HEAD", "--record", "--sign", code=2).err
    refused = bot("eval", "HEAD", "--record", "--sign", str(keys / "ci"), code=2).err
    assert "nobody would believe a signature" in refused and "evals/allowed_signers" in refused
    allow(bot, keys / "ci")
    bot("config", "set", "--user", "user.signing_key", str(keys / "ci"))
    done = bot("eval", "HEAD", "--record")
    assert "signed ci@example.org" in done.err
    assert "baseline signed ci@example.org" in bot("log", "--oneline").out
    assert "attestations" in bot("show").out
    [commit] = json.loads(bot("log", "--json").out)["commits"]
    assert commit["signers"] == ["ci@example.org"]
    assert [(note["suite"], note["counts"], note["problem"]) for note in commit["attested"]] == [("builtin", True, "")]
    attached = json.loads(bot("eval", "HEAD", "--record", "--json").out)["attached"]
    assert attached[0]["signers"] == ["ci@example.org"]
    bot("remote", "add", "origin", str(bot.directory.parent / "origin.mgit"))
    assert re.search(r"[12] verdicts? sent", bot("push").err)  # equal statements are one note
    bot("clone", "origin.mgit", "copy", cwd=bot.directory.parent)
    copy = bot.directory.parent / "copy"
    assert "signed" not in bot("log", "--oneline", cwd=copy).out, "the clone has no allowed signers: nobody vouches"
    assert "there is no evals/allowed_signers" in bot("show", cwd=copy).out
    bot("commit", "-m", "signers")
    bot("push")
    bot("pull", cwd=copy)
    assert "baseline signed ci@example.org" in bot("log", "--oneline", cwd=copy).out


def test_keys_that_cannot_sign_stop_before_anything_runs(bot: Runner, keys: Path) -> None:
    allow(bot, keys / "ci")
    locked = bot("eval", "HEAD", "--record", "--sign", str(keys / "locked"), code=2)
    assert "has a passphrase, and no ssh agent holds it" in locked.err and "ssh-add" in locked.err
    assert locked.out == ""
    stranger = bot("eval", "HEAD", "--record", "--sign", str(keys / "stranger"), code=2)
    assert "is not in evals/allowed_signers" in stranger.err
    assert json.loads(bot("log", "--json").out)["commits"][0]["attested"] == []


def test_compat_says_what_is_missing(bot: Runner) -> None:
    assert "no tag lies behind HEAD" in bot("log", "--compat", code=1).err
    bot("tag", "v1")
    assert "since tag v1" in bot("log", "--compat").out
    assert json.loads(bot("log", "--compat", "--json").out)["tag"] == "v1"
    assert "goes with none of" in bot("log", "--compat", "--graph", code=2).err


SETTINGS = """
[track]
paths = ["models/bot", "data"]

[task.tone]
model = "models/bot"
adapter = "bert-classifier"
head = "heads.tone"
train = "data/tone.train.jsonl"
test = "data/tone.test.jsonl"
labels = ["kind", "rude"]

[eval.tone]
task = "tone"
negative_flips = { max = 0.0 }

[gate]
when = "push"
"""


def test_an_accepted_example_lets_the_suite_pass_until_it_lapses(mgit: Runner, keys: Path) -> None:
    pytest.importorskip("tokenizers")
    from safetensors.numpy import load_file, save_file

    from modelgit.integrations.demo.small import write_checkpoint, write_data

    mgit("init")
    write_checkpoint(mgit.directory / "models/bot")
    write_data(mgit.directory / "data")
    (mgit.directory / "mgit.toml").write_text(SETTINGS)
    assert "eval tone: pending" in mgit("commit", "-m", "base").err
    file = mgit.directory / "models/bot/model.safetensors"
    state = load_file(file)
    random = np.random.default_rng(0)
    for name in [name for name in state if name.startswith("heads.tone")]:
        state[name] = (state[name] + 3 * random.standard_normal(state[name].shape)).astype("<f4")
    save_file(state, file)
    mgit("commit", "-m", "tune")
    [tone] = json.loads(mgit("eval", "HEAD", "--suite", "tone", "--json", code=1).out)["evaluations"]
    broken = ",".join(flip["example"] for flip in tone["flips"])
    assert broken

    refused = mgit("eval", "accept", "negative flips", "--examples", broken, code=2)
    assert "an acceptance needs a reason" in refused.err
    for wrong, words in (
        (["nope", "--examples", broken], "no suite has a test `nope`"),
        (["negative flips", "--examples", "none-such"], "has no example 'none-such'"),
        (
            ["negative flips", "--examples", broken, "--expires", "soon"],
            "`--expires` is 'soon', which is no length",
        ),
    ):
        assert words in mgit("eval", "accept", *wrong, "-m", "why", code=2).err
    assert "nothing is accepted" in mgit("eval", "accept", "--list").err
    allow(mgit, keys / "ci")
    accepted = mgit(
        "eval", "accept", "negative flips", "--examples", broken, "-m", "the new policy", "--expires", "30d",
        "--sign", str(keys / "ci"),
    )  # fmt: skip
    assert "signed ci@example.org" in accepted.err
    [listed] = json.loads(mgit("eval", "accept", "--list", "--json").out)["acceptances"]
    assert listed["counts"] and listed["reason"] == "the new policy" and listed["expires"]
    mgit("eval", "HEAD", "--suite", "tone", "--record", "--sign", str(keys / "ci"))
    [tone] = json.loads(mgit("eval", "HEAD", "--suite", "tone", "--json").out)["evaluations"]
    assert tone["accepted"] == [listed["note"]]
    assert "signed ci@example.org" in mgit("log", "--oneline", "-n", "1").out
    # Nobody vouches for the key any more: the acceptance no longer counts, and the suite fails again.
    (mgit.directory / "evals/allowed_signers").write_text("# nobody\n")
    mgit("eval", "HEAD", "--suite", "tone", code=1)
    [listed] = json.loads(mgit("eval", "accept", "--list", "--json").out)["acceptances"]
    assert not listed["counts"] and "is not in evals/allowed_signers" in listed["problem"]
