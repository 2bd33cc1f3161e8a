"""Suites on manifests: baselines by name, stages, what is exempt, whose suite counts, caches and trust."""

from __future__ import annotations

import importlib.util
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from modelgit.environment import Environment  # noqa: E402
from modelgit.errors import GateRefused, UsageError  # noqa: E402
from modelgit.integrations.demo.small import SETTINGS, write_checkpoint, write_data  # noqa: E402
from modelgit.objects import EvalRecord, Manifest  # noqa: E402
from modelgit.progress import SilentProgress  # noqa: E402
from modelgit.repo import Repository  # noqa: E402
from modelgit.repo.gates.evaluate import evaluate  # noqa: E402
from modelgit.repo.gates.flips import flips  # noqa: E402
from modelgit.repo.gates.sides import ManifestSide  # noqa: E402
from modelgit.repo.gates.suite_checks import lint, noise_floor, selftest  # noqa: E402
from modelgit.repo.gates.suite_runs import EvalOptions  # noqa: E402
from modelgit.repo.gates.suites import suite_ids, worktree_suites  # noqa: E402
from modelgit.repo.gates.zeroed import zeroed_copy  # noqa: E402
from modelgit.repo.merges.merge import merge  # noqa: E402
from modelgit.repo.merges.octopus import merge_many  # noqa: E402
from modelgit.repo.reviews.check import check  # noqa: E402
from modelgit.repo.trust import allow_entry, changed_code, named_code, revoke, suite_code, suite_distrust, trust  # noqa: E402
from modelgit.reporting.verdict_text import check_label  # noqa: E402

SUITE = """
task = "topic"
[run]
baselines = {baselines}
stage = "{stage}"
{run}
[data.topic]
path = "data/topic.test.jsonl"
slices = ["label"]
[[test]]
name = "flips"
kind = "nfr"
data = "topic"
max = {limit}
{flips}
[[test]]
name = "scores"
kind = "classification"
data = "topic"
metrics.accuracy = {{ min = 0.0, max_drop = {limit} }}
metrics.macro_f1 = {{ max_drop = 1.0, level = "warn" }}
metrics.churn = {{ max = {limit} }}
[[test]]
name = "drift"
kind = "kl"
data = "topic"
max = {kl}
p99_max = 10.0
"""


def suite(
    limit: float = 1.0,
    *,
    baselines: str = '["parent"]',
    stage: str = "commit",
    run: str = "",
    flips: str = "",
    kl: float = 10.0,
) -> str:
    return SUITE.format(limit=limit, baselines=baselines, stage=stage, run=run, flips=flips, kl=kl)


def _environment(folder: Path) -> Environment:
    return Environment(
        home=folder, config_home=folder, cache_home=folder / "cache", cwd=folder / "work", author="Ada <a@example.org>"
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier (tag v1), the same with small changes (main~1), and with large ones (main)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("suites")
    work = folder / "work"
    model = work / "models/bot"
    model.mkdir(parents=True)
    write_checkpoint(model)
    (work / "data").mkdir()
    write_data(work / "data", train=8, test=120)
    (work / "mgit.toml").write_text(SETTINGS.partition("# The gate")[0])
    with Repository.init(work, environment=_environment(folder)) as repo:
        base = load_file(model / "model.safetensors")
        for number, size in enumerate((0.0, 0.002, 0.05)):
            rng = np.random.default_rng(number)
            state = {
                name: (array + size * rng.standard_normal(array.shape)).astype(np.float32)
                for name, array in base.items()
            }
            save_file(state, model / "model.safetensors")
            repo.commit(f"step {number}")
            if number == 0:
                from modelgit.repo.branches import create_tag

                create_tag(repo, "v1")
    return folder


@pytest.fixture
def bot(template: Path, tmp_path: Path) -> Iterator[Repository]:
    shutil.copytree(template, tmp_path / "copy", symlinks=True)
    with Repository.open(tmp_path / "copy/work", environment=_environment(tmp_path / "copy")) as repo:
        yield repo


def write(bot: Repository, text: str, name: str = "compat") -> None:
    (bot.worktree / "evals").mkdir(exist_ok=True)
    (bot.worktree / f"evals/{name}.toml").write_text(text)


def only(bot: Repository, revision: str | None = "HEAD", **options: object) -> EvalRecord:
    (record,) = evaluate(bot, revision, suites=["compat"], options=EvalOptions(**options))  # type: ignore[arg-type]
    return record


def test_each_baseline_has_its_lines_and_its_limits(bot: Repository) -> None:
    write(bot, suite(baselines='["parent", "tag:v*", "branch:main"]', flips='max_vs."tag:v*" = 0.0\nslice_max = 0.9'))
    record = only(bot)
    assert [(one.name, one.commit) for one in record.baselines] == [
        ("parent", bot.resolve("HEAD~1")),
        ("tag:v1", bot.resolve("v1")),
        ("branch:main", bot.head()),
    ]
    flips = {line.against: line for line in record.results if line.name == "negative flips"}
    assert flips["branch:main"].broken == 0 and check_label(record, flips["parent"]).endswith(" vs parent")
    assert flips["parent"].decision == "pass" and flips["parent"].limit == "max 100.0 %"
    assert flips["tag:v1"].broken > 0 and flips["tag:v1"].decision == "fail" and record.decision == "fail"
    assert {line.against for line in record.results if line.name == "slices"} == {"parent", "tag:v1", "branch:main"}
    assert record.flips[0].gold in ("refund", "delivery", "account") and record.flips[0].test == "flips"
    assert record.weights and record.stage == "commit" and record.examples == 120


def test_names_that_mean_the_same_weights_are_compared_once(bot: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = ManifestSide.load
    monkeypatch.setattr(ManifestSide, "load", lambda self, task: loaded.append(self.name) or load(self, task))
    write(bot, suite(baselines='["tag:v*", "v1"]', run='sampling = "random"'))
    record = only(bot, "HEAD")
    assert sorted(set(loaded)) == ["candidate", "tag:v1"] and len(loaded) == 2
    assert [one.name for one in record.baselines] == ["tag:v1", "v1"]
    assert len(record.results) == len({(line.test, line.name) for line in record.results}) == 6
    assert {check_label(record, line).partition(" vs ")[2] for line in record.results} == {"tag:v1, v1"}
    # Names with limits of their own have lines of their own; what flipped is listed once.
    write(bot, suite(baselines='["tag:v*", "v1"]', run='sampling = "random"', flips='max_vs."tag:v*" = 0.0'))
    record = only(bot, "HEAD")
    flips = [(line.against, line.limit) for line in record.results if line.name == "negative flips"]
    assert flips == [("tag:v1", "max 0.0 %"), ("v1", "max 100.0 %")]
    assert len({flip.example for flip in record.flips}) == len(record.flips) > 0
    assert [check_label(record, line) for line in record.results[:3]] == [
        "flips: negative flips vs tag:v1",
        "flips: negative flips vs v1",
        "scores: accuracy vs tag:v1, v1",
    ]


def sides_to_merge(bot: Repository, *names: str) -> None:
    """Branches with other weights than `main`, whose tip is HEAD and has the suites of the work tree."""
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text().replace("paths = [", 'paths = ["evals", '))
    bot.forget_settings()
    bot.commit("suites", gate="warn")
    file = bot.worktree / "models/bot/model.safetensors"
    for number, name in enumerate(names):
        bot.switch(name, create=True, start="main~2")
        rng = np.random.default_rng(9 + number)
        state = {key: array + rng.normal(0, 0.05, array.shape) for key, array in load_file(file).items()}
        save_file({key: array.astype(np.float32) for key, array in state.items()}, file)
        bot.commit(f"side {name}", gate="warn")
    bot.switch("main")


def flips_by_baseline(record: EvalRecord) -> dict[str, int]:
    return {line.against: line.broken for line in record.results if line.name == "negative flips"}


def test_a_merge_is_compared_with_both_sides(bot: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bot, suite(run='sampling = "full"', flips="max_vs.parent = 0.0"))
    sides_to_merge(bot, "side")
    # What only the other side had right broke: against the first parent nothing changes.
    with pytest.raises(GateRefused) as refused:
        merge(bot, "side", strategy="average", rules={"*": "ours"})
    records = {record.suite: record for record in refused.value.records}  # type: ignore[attr-defined]
    found = flips_by_baseline(records["compat"])
    (against_side,) = flips(bot, "side", "main")
    assert found == {"parent": 0, "parent:2": against_side.counts.negative} and found["parent:2"] > 0
    limits = {line.against: line.limit for line in records["compat"].results if line.name == "negative flips"}
    assert limits == {"parent": "max 0.0 %", "parent:2": "max 0.0 %"}
    main, side = bot.resolve("main"), bot.resolve("side")
    merge(bot, "side", strategy="average", rules={"*": "ours"}, gate="warn")
    loaded: list[str] = []
    monkeypatch.setattr(ManifestSide, "load", lambda self, task: loaded.append(self.name))
    record = only(bot, "HEAD")
    assert [(one.name, one.commit) for one in record.baselines] == [("parent", main), ("parent:2", side)]
    assert flips_by_baseline(record) == found and record.decision == "fail" and loaded == []
    # A record against one side leaves out the other no more than a check of the merge does.
    kept = only(bot, "HEAD", baselines=("side",), keep_baselines=True)
    assert [one.name for one in kept.baselines] == ["side", "parent"]
    report = check(bot, str(main), suites=["compat"])
    (verdict,) = [item.evaluation for item in report.sections if item.evaluation is not None]
    assert [(one.name, one.commit) for one in verdict.baselines] == [("parent", main), ("parent:2", side)]
    assert flips_by_baseline(verdict) == found
    assert [one.name for one in only(bot, "HEAD", baselines=("side",)).baselines] == ["side"]
    # Who wants that compares with the side that the merge goes to alone.
    write(bot, suite(baselines='["parent:1"]', run='sampling = "full"', flips="max_vs.parent = 0.0"))
    alone = only(bot, "HEAD")
    assert [(one.name, one.commit) for one in alone.baselines] == [("parent:1", main)] and alone.decision == "pass"
    assert flips_by_baseline(alone) == {"parent:1": 0}
    kept = only(bot, "HEAD", baselines=("side",), keep_baselines=True)
    assert [one.name for one in kept.baselines] == ["side"]


def test_many_sides_are_all_compared_and_words_keep_the_verdict(bot: Repository) -> None:
    write(bot, suite(run='sampling = "full"'))
    sides_to_merge(bot, "side", "third")
    merged = merge_many(bot, ["side", "third"], strategy="average").commit
    record = {record.suite: record for record in merged.evaluations}["compat"]
    assert [one.name for one in record.baselines] == ["parent", "parent:2", "parent:3"]
    assert len({line.against for line in record.results if line.name == "accuracy"}) == 3
    (bot.worktree / "models/bot/README.md").write_text("# words\n")
    again = {record.suite: record for record in bot.commit("words").evaluations}["compat"]
    assert again.seconds == 0.0 and again.results == record.results


def test_a_refusal_names_what_works_in_its_state(bot: Repository) -> None:
    from modelgit.repo.gates.refusals import way_on

    anyway = "`--gate warn` records anyway and marks the commit"
    text = 'task = "topic"\n[[test]]\nname = "flips"\nkind = "nfr"\npath = "data/topic.test.jsonl"\nmax = 0.01\n'
    write(bot, text)
    sampled = only(bot, "HEAD")
    assert sampled.results[0].examples < 120 and sampled.decision == "fail"
    accept = "`mgit eval accept flips --suite compat --examples IDS -m REASON` lets them break"
    see = "`mgit eval --full --show flips` lists what broke"
    assert way_on(bot, [sampled], shown_by="mgit eval") == f"{see}; {accept}; {anyway}"
    later = "`mgit eval REV --full --show flips` of that commit lists what broke"
    full = only(bot, "HEAD", full=True)
    assert full.results[0].broken > 20
    assert way_on(bot, [full], shown_by="") == f"{accept}; {anyway}; {later}"
    few = msgspec.structs.replace(
        full, results=(msgspec.structs.replace(full.results[0], broken=2),), flips=full.flips[:2]
    )
    ids = ",".join(sorted(flip.example for flip in few.flips))
    assert way_on(bot, [few], shown_by="") == f"{accept.replace('IDS', ids)}; {anyway}"
    write(bot, text + '[run]\nbudget = "1ms"\n')
    shutil.rmtree(bot.paths.predictions)
    undecided = only(bot, "HEAD")
    assert undecided.decision == "inconclusive"
    assert way_on(bot, [undecided], shown_by="mgit eval").startswith("`mgit eval --budget 1h` decides it, and what")
    assert way_on(bot, [undecided], shown_by="") == anyway
    write(bot, text.replace("test.jsonl", "absent.jsonl"))
    assert way_on(bot, [only(bot, "HEAD")], shown_by="mgit eval") == anyway
    (bot.worktree / "evals/compat.toml").unlink()  # a suite that the other side of a merge brings
    assert way_on(bot, [few], shown_by="") == anyway


def test_a_tag_of_the_candidate_itself_is_no_baseline(bot: Repository) -> None:
    from modelgit.repo.branches import create_tag

    write(bot, suite(baselines='["parent", "tag:r*"]'))
    create_tag(bot, "r1")
    record = only(bot, "HEAD")
    assert [one.name for one in record.baselines] == ["parent"]
    assert [line.against for line in record.results if line.decision == "baseline"] == ["tag:r*"]


def test_a_tag_that_does_not_exist_yet_is_told_and_one_that_is_named_is_an_error(bot: Repository) -> None:
    write(bot, suite(baselines='["parent", "tag:release-*"]'))
    record = only(bot)
    assert record.decision == "pass"
    assert [(line.against, line.decision) for line in record.results if line.name == "baseline"] == [
        ("tag:release-*", "baseline")
    ]
    for name in ("parent:2", "parent:"):  # which side is the second is known of merges only
        write(bot, suite(baselines=f'["{name}"]'))
        with pytest.raises(UsageError, match="names nothing"):
            only(bot)
    for name in ("tag:release-1", "branch:nowhere", "merge-base:nowhere"):
        write(bot, suite(baselines=f'["{name}"]'))
        assert only(bot).decision == "error"
    write(bot, suite(baselines='["merge-base:v1"]'))
    assert only(bot).baselines[0].commit == bot.resolve("v1")


def test_a_suite_is_due_at_its_stage_and_a_release_is_measured_in_full(bot: Repository) -> None:
    write(bot, suite(0.0, stage="push"))
    (bot.worktree / "data/notes.txt").write_text("x")
    assert {record.suite for record in bot.commit("notes").evaluations} == {"builtin"}
    write(bot, suite(0.0, stage="release"))
    assert only(bot).sampling == "full"
    write(bot, suite(0.0))
    assert only(bot).sampling == "adaptive" and only(bot, full=True).sampling == "full"
    assert {record.suite for record in evaluate(bot, None, options=EvalOptions(stages=("push",)))} == {"builtin"}


def test_a_budget_that_is_over_leaves_the_suite_undecided(bot: Repository) -> None:
    write(bot, suite(run='budget = "1ms"'))
    record = only(bot)
    assert record.decision == "inconclusive"
    assert all("time" in line.detail for line in record.results if line.decision == "inconclusive")
    write(bot, suite(run='budget = "1ms"\non_inconclusive = "warn"'))
    assert only(bot).decision == "warn"
    write(bot, suite())
    assert only(bot, budget_s=1e-6).decision == "inconclusive"


def test_a_change_of_words_keeps_the_verdict_and_a_change_of_weights_does_not(bot: Repository) -> None:
    write(bot, suite(run="sampling = 'full'"))
    first = {record.suite: record for record in bot.commit("a suite").evaluations}["compat"]
    assert first.decision == "pass" and first.seconds > 0
    (bot.worktree / "models/bot/README.md").write_text("# what it is for\n")
    again = {record.suite: record for record in bot.commit("words").evaluations}["compat"]
    assert again.seconds == 0.0 and again.results == first.results and again.candidate != first.candidate
    write(bot, suite(0.5))
    assert {record.suite: record for record in bot.commit("stricter").evaluations}["compat"].seconds > 0


def test_the_suites_of_the_protected_tip_count(bot: Repository) -> None:
    write(bot, suite(0.0, baselines='["tag:v1"]'))
    with pytest.raises(GateRefused):
        bot.commit("a strict suite")
    tip = bot.commit("a strict suite", gate="warn")
    write(bot, suite(1.0, baselines='["tag:v1"]'))
    (bot.worktree / "data/topic.test.jsonl").write_text('{"text": "the price", "label": "refund"}\n')
    loosened = bot.commit("a loose one")
    law = bot.manifest_of(tip.id)
    assert only(bot, str(loosened.id)).decision == "pass"
    (record,) = evaluate(bot, str(loosened.id), suites=["compat"], law=law)
    assert record.decision == "fail" and record.examples == 120
    assert record.suite_id == suite_ids(bot, law)["compat"] != suite_ids(bot, loosened.manifest)["compat"]
    bare = msgspec.structs.replace(law, files=tuple(item for item in law.files if not item.path.startswith("data/")))
    (record,) = evaluate(bot, str(loosened.id), suites=["compat"], law=bare)
    assert record.decision == "error" and "is recorded by what is judged" in record.results[0].detail


def test_predictions_that_are_not_those_of_the_weights_are_found(bot: Repository) -> None:
    from modelgit.evals.cache import PredictionCache

    write(bot, suite())
    assert only(bot, verify_cache=40).decision == "pass"  # nothing is cached yet
    assert only(bot, verify_cache=40).decision == "pass"
    cache = PredictionCache(bot.paths.predictions)
    for file in bot.paths.predictions.rglob("*.pred"):
        held = cache.read(file.stem, examples=120)
        assert held is not None
        cache.write(file.stem, held[0], held[1][::-1].copy(), examples=120)
    record = only(bot, verify_cache=40)
    assert record.decision == "error" and "cached predictions" in record.results[0].detail


WARM = """
import sys
from modelgit.cli.main import main
code = main(["eval", "HEAD"], values={"HOME": ".", "PATH": "/usr/bin:/bin"})
heavy = {"torch", "transformers", "tokenizers", "urllib.request"}
heavy |= {"modelgit.repo.tracking.record", "modelgit.patching.encode"}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_a_warm_repeat_loads_neither_a_model_nor_what_could_run_one(bot: Repository) -> None:
    cost = '\n[[test]]\nname = "cost"\nkind = "resources"\ndata = "topic"\nmetrics.p50_ms = { max_ratio = 1e9 }'
    write(bot, suite() + cost)
    assert only(bot).decision == "pass"
    done = subprocess.run([sys.executable, "-c", WARM], cwd=bot.worktree, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "cost: p50_ms" in done.stdout


def test_layers_that_a_change_left_alone_are_computed_once(bot: Repository) -> None:
    from safetensors.numpy import load_file, save_file

    def heads(number: int) -> None:
        state = load_file(file)
        state["heads.topic.bias"] = np.array([0.1 * number, 0.0, 0.0], np.float32)
        save_file(state, file)

    write(bot, suite(run="sampling = 'full'"))
    file = bot.worktree / "models/bot/model.safetensors"
    heads(1)
    plain = only(bot, None)
    assert not bot.paths.activations.exists()
    shutil.rmtree(bot.paths.predictions)
    bot.paths.config.write_text("[storage]\nactivations_mib = 64\n")
    bot.forget_settings()
    assert only(bot, None).results == plain.results
    kept = sorted(bot.paths.activations.rglob("*"))
    assert kept
    heads(2)
    assert only(bot, None).decision == "pass"
    assert sorted(bot.paths.activations.rglob("*")) == kept


def test_a_moved_model_is_still_compared(bot: Repository) -> None:
    write(bot, suite(0.0))
    shutil.move(bot.worktree / "models/bot", bot.worktree / "models/renamed")
    project = bot.worktree / "mgit.toml"
    project.write_text(project.read_text().replace("models/bot", "models/renamed"))
    bot.forget_settings()
    record = only(bot, None)
    assert record.decision == "pass" and record.baselines[0].name == "parent"
    assert {line.broken for line in record.results if line.name == "negative flips"} == {0}
    file = bot.worktree / "models/renamed/model.safetensors"
    save_file({**{name: -array for name, array in load_file(file).items()}, "one.more": np.ones(1, np.float32)}, file)
    record = only(bot, None)  # nor is one more tensor a way to have nothing to compare with
    assert record.decision == "fail" and record.baselines[0].name == "parent"


def test_trust_covers_functions_and_commands_and_lapses_with_what_they_name(bot: Repository) -> None:
    write(
        bot,
        'task = "topic"\n[[test]]\nname = "a"\nkind = "shell"\ncommand = "python evals/tool.py {checkout}"\n'
        'level = "info"\n[[test]]\nname = "b"\nkind = "python"\nentry = "evals/leak.py:check"\nlevel = "info"\n',
    )
    for name in ("tool", "leak"):
        (bot.worktree / f"evals/{name}.py").write_text("x = 1\n")
    assert set(named_code(bot)) == {
        "evals/leak.py", "evals/tool.py", "python evals/leak.py:check", "shell python evals/tool.py {checkout}",
    }  # fmt: skip

    def distrust() -> str | None:
        return suite_distrust(bot, worktree_suites(bot).suites(["compat"])[0])

    assert distrust() == "the code that this suite names is not trusted here"
    trust(bot)
    assert distrust() is None
    before = suite_ids(bot, bot.manifest_of(bot.head()))
    (bot.worktree / "evals/tool.py").write_text("x = 2\n")
    assert before == {}
    assert distrust() == "the code that this suite names is no longer trusted: evals/tool.py changed since"
    record = only(bot, None)
    assert "evals/tool.py changed since; look at it, then `mgit trust`" in record.results[0].detail
    trust(bot)
    text = (bot.worktree / "evals/compat.toml").read_text()
    write(bot, text.replace("{checkout}", "{checkout} --all"))
    assert "no longer trusted: shell python evals/tool.py {checkout} --all is new since" in (distrust() or "")
    revoke(bot)
    assert distrust() == "the code that this suite names is not trusted here"


def test_a_refusal_names_what_changed_since_trust_was_given(bot: Repository) -> None:
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text() + '[task.mine]\nmodel = "models/bot"\nentry = "lib.net:build"\n')
    bot.forget_settings()
    folder = bot.worktree / "lib"
    folder.mkdir()
    for name in ("net", "helper", "other"):
        (folder / f"{name}.py").write_text("def build(state, files): ...\n")
    with pytest.raises(UsageError, match="this repository is not trusted"):
        allow_entry(bot, "lib.net:build")
    trust(bot)
    allow_entry(bot, "lib.net:build")
    (folder / "net.py").write_text("def build(state, files): evil()\n")
    (folder / "helper.py").unlink()
    (folder / "json.py").write_text("")
    with pytest.raises(UsageError) as refused:
        allow_entry(bot, "lib.net:build")
    assert refused.value.message == (
        "entry `lib.net:build` is code that is no longer trusted:"
        " lib/helper.py was removed, lib/json.py is new and lib/net.py changed since"
    )
    found = {change.name: change.what for change in changed_code(bot)}
    assert found == {"lib/helper.py": "removed", "lib/json.py": "new", "lib/net.py": "changed"}
    for number in range(9):
        (folder / f"more{number}.py").write_text("")
    with pytest.raises(UsageError, match=r"lib/more2\.py is new and 7 more since"):
        allow_entry(bot, "lib.net:build")
    trust(bot)
    allow_entry(bot, "lib.net:build")
    (bot.paths.directory / "trust.json").write_text('{"lib/net.py": "0"}')  # as an older mgit wrote it
    with pytest.raises(UsageError, match="this repository is not trusted"):
        allow_entry(bot, "lib.net:build")


def _cached(source: Path, code: str) -> bytes:
    """What a forger keeps for `source`: other code, bound to it by its hash."""
    import importlib._bootstrap_external as machinery

    return bytes(
        machinery._code_to_hash_pyc(  # type: ignore[attr-defined]
            compile(code, source.name, "exec"), importlib.util.source_hash(source.read_bytes()), True
        )
    )


def test_trust_lapses_with_whatever_a_script_could_import(bot: Repository) -> None:
    text = 'task = "topic"\n[[test]]\nname = "b"\nkind = "python"\nentry = "evals/leak.py:check"\nlevel = "info"\n'
    write(bot, text)
    evals = bot.worktree / "evals"
    for name in ("leak", "helper"):
        (evals / f"{name}.py").write_text("x = 1\n")
    trust(bot)
    before = set(named_code(bot))
    kept = importlib.util.cache_from_source(str(evals / "helper.py"))
    Path(kept).parent.mkdir()
    py_compile.compile(str(evals / "helper.py"), cfile=kept)
    (evals / "data").mkdir()
    (evals / "data/module.py").write_text("no package, so that no library hides behind it")
    assert set(named_code(bot)) == before  # an ordinary cache comes and goes
    forged = {
        Path(kept).relative_to(evals).as_posix(): _cached(evals / "helper.py", "x = 2"),
        "json/__init__.py": b"",
        "json/deep/er.py": b"",
        "wave.so": b"",
        "wave.pyc": b"",
    }
    for path, data in forged.items():
        (evals / path).parent.mkdir(exist_ok=True)
        (evals / path).write_bytes(data)
        assert f"evals/{path}" in named_code(bot), path
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text().replace("paths = [", 'paths = ["evals", '))
    bot.forget_settings()
    bot.commit("whatever", gate="warn")
    [suite] = worktree_suites(bot).suites(["compat"])
    assert suite_code(bot, suite, manifest=bot.manifest_of(bot.head())) == suite_code(bot, suite)
    assert {f"evals/{path}" for path in forged} <= set(suite_code(bot, suite))


def test_a_commit_on_another_branch_is_judged_by_the_suites_of_that_branch(bot: Repository) -> None:
    write(bot, suite(0.0))
    config = bot.worktree / "mgit.toml"
    config.write_text(config.read_text().replace("paths = [", 'paths = ["evals", '))
    bot.forget_settings()
    bot.commit("a strict suite")
    before = bot.head()
    bot.switch("weak", create=True)
    write(bot, suite(1.0))
    bot.commit("a weak one")
    worse = bot.worktree.parent / "worse"
    shutil.copytree(bot.worktree / "models/bot", worse)
    state = load_file(worse / "model.safetensors")
    save_file({name: -array for name, array in state.items()}, worse / "model.safetensors")
    with pytest.raises(GateRefused):
        bot.commit("worse", source=str(worse), as_path="models/bot", worktree=False, branch="main")
    assert bot.resolve("main") == before


def test_a_baseline_of_a_record_stands_for_the_parent_only(bot: Repository) -> None:
    write(bot, suite(baselines='["parent", "tag:v*"]'))
    assert [one.name for one in only(bot, baselines=("HEAD~1",)).baselines] == ["HEAD~1"]
    kept = only(bot, baselines=("HEAD~1",), keep_baselines=True)
    assert [one.name for one in kept.baselines] == ["HEAD~1", "tag:v1"]


def test_lint_says_what_cannot_be_meant(bot: Repository) -> None:
    write(bot, suite(0.001, flips="slice_max = 0.1\nslice_min_n = 500"))
    write(bot, 'task = "topic"\n[[test]]\nname = "a"\nkind = "nfr"\ndata = "nowhere"\nmax = 0.1\n', "broken")
    write(bot, suite(0.05).replace("topic.test", "absent"), "absent")
    found = {item.suite: item for item in lint(bot)}
    words = " ".join(finding.message for finding in found["compat"].findings)
    assert "is less than one: it allows none" in words and "no slice has 500 examples" in words
    assert "which the suite does not have" in found["broken"].findings[0].message
    assert "absent.jsonl is not there" in found["absent"].findings[0].message
    write(bot, suite(0.05))
    (clean,) = lint(bot, ["compat"])
    assert clean.findings == () and clean.data[0].labelled == 120
    assert clean.power[0].allowed == 6 and 20 < (clean.power[0].passes or 0) < 80


def test_a_suite_that_sees_nothing_is_no_test(bot: Repository) -> None:
    write(bot, suite(0.02, kl=1e-6))
    write(bot, suite(1.0), "blind")
    found = {item.suite: item for item in selftest(bot)}
    assert found["compat"].works and found["compat"].pruned.weights != found["compat"].same.weights
    assert not found["blind"].works and found["blind"].reason == "its limits let the pruned model through"
    floors = {floor.versus: floor for floor in noise_floor(bot, suites=["compat"], against=["v1"])}
    assert floors["computed again"].changed == 0 and floors["against v1"].changed > 0


PROGRAM = """
task = "topic"
[[test]]
name = "zeros"
kind = "shell"
command = "python evals/zeros.py {checkout}/models/bot/model.safetensors"
metrics.share = { max = 0.25 }
"""
ZEROS = """
import json, pathlib, struct, sys, time
while pathlib.Path(__file__).with_name("wait").exists():
    time.sleep(0.05)
data = pathlib.Path(sys.argv[1]).read_bytes()
start = 8 + struct.unpack_from("<Q", data)[0]
words = struct.unpack_from(f"<{(len(data) - start) // 4}f", data, start)
print(json.dumps({"metrics": {"share": words.count(0.0) / len(words)}}))
"""


def test_programs_see_the_pruned_model_and_nothing_of_it_is_left(
    bot: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bot, PROGRAM)
    (bot.worktree / "evals/zeros.py").write_text(ZEROS)
    trust(bot)
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    store = bot.worktree / ".mgit"
    files = [*(store / "packs").iterdir(), *(store / "incoming").iterdir()]
    (found,) = selftest(bot)
    assert found.works and found.pruned.results[0].value == pytest.approx(0.5, abs=0.1)

    class Stopped(SilentProgress):
        """Somebody stops it while the program looks at the pruned model."""

        pruned = False
        waiting: Path

        def finish(self, task: str) -> None:
            if task == "prune":
                self.pruned = True
                self.waiting.touch()  # however fast the program and slow the machine

        def check(self) -> None:
            if self.pruned and list(aside.glob("mgit-eval-*/*/files")) and list(aside.glob("mgit-test-*")):
                raise KeyboardInterrupt

    shutil.rmtree(bot.paths.predictions)
    Stopped.waiting = bot.worktree / "evals/wait"
    with pytest.raises(KeyboardInterrupt):
        selftest(bot, progress=Stopped())
    assert sorted([*(store / "packs").iterdir(), *(store / "incoming").iterdir()]) == sorted(files)
    assert not list(aside.iterdir())
    with pytest.raises(UsageError, match="no weight matrix"), bot.session() as session:
        zeroed_copy(bot, session, Manifest(), 0.5)


def test_one_name_is_one_suite(bot: Repository) -> None:
    write(bot, suite())
    project = bot.worktree / "mgit.toml"
    project.write_text(project.read_text() + '[eval.compat]\ntask = "topic"\naccuracy = { min = 0.0 }\n')
    bot.forget_settings()
    with pytest.raises(UsageError, match="written twice"):
        evaluate(bot, "HEAD")
