"""Tests that are programs: limits, what they are given, how strictly they are read, and what is kept."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelgit.config.suites import LmEvalTest, MetricLimit, PythonTest, ShellTest
from modelgit.errors import CheckFailed, MgitError, MissingExtraError, UsageError
from modelgit.evals.base import KINDS, SuiteRun
from modelgit.evals.child import HarnessRequest
from modelgit.evals.harness import run_harness
from modelgit.evals.outcomes import parse_outcome
from modelgit.evals.processes import Limits, environment_of, run_program, shell_arguments
from modelgit.objects import CheckResult
from tests.evals.fakes import Told, suite_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups and sh")


def lines(test: Any, run: SuiteRun) -> list[CheckResult]:
    return [line.result for line in KINDS.get(test.__struct_config__.tag)(test, run)]


def shell(command: str, tmp_path: Path, **limits: Any) -> bytes:
    made = Limits(seconds=limits.pop("seconds", 30), **limits)
    arguments = shell_arguments(command, memory_bytes=made.memory_bytes)
    environment = environment_of(tmp_path, {"PATH": os.defpath}, seed=7)
    return run_program(arguments, what="it", limits=made, directory=tmp_path, environment=environment).output


# -- limits


def test_the_environment_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    found = shell("env", tmp_path).decode()
    assert "secret" not in found
    assert f"HOME={tmp_path}" in found
    assert "MGIT_SEED=7" in found


def test_entry_points_pass_on_what_programs_need_and_nothing_else() -> None:
    from modelgit.environment import Environment

    values = {
        "PATH": "/bin",
        "HOME": "/home/x",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_TOKEN": "secret",
        "MGIT_AUTHOR": "A <a@b>",
    }
    found = Environment.capture(values, cwd=Path("/"))
    assert found.surroundings == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}


def test_python_is_the_interpreter_of_modelgit(tmp_path: Path) -> None:
    found = shell("python -c 'import sys; print(sys.prefix)'", tmp_path).decode().strip()
    assert found == sys.prefix


def test_a_program_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CheckFailed, match=r"it was stopped after 0\.3 s") as refused:
        shell("sleep 30 & echo $! > pid; wait", tmp_path, seconds=0.3)
    assert time.monotonic() - started < 5
    assert refused.value.hint is not None and "timeout" in refused.value.hint
    process = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # dead, and nobody has looked at it yet
            return
        time.sleep(0.1)
    pytest.fail("the program's child lives")


def test_what_a_program_leaves_running_does_not_outlive_it(tmp_path: Path) -> None:
    started = time.monotonic()
    assert shell("sleep 30 & echo done", tmp_path) == b"done\n"
    assert time.monotonic() - started < 5


def test_output_is_bounded_and_read_to_the_end(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="wrote more than 1 MiB"):
        shell("head -c 3000000 /dev/zero", tmp_path, output_bytes=1 << 20)
    with pytest.raises(CheckFailed, match="wrote more than 1 MiB"):
        shell("yes", tmp_path, output_bytes=1 << 20)
    assert shell("head -c 300000 /dev/zero >&2; echo fine", tmp_path) == b"fine\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of private memory is Linux's")
def test_memory_is_limited(tmp_path: Path) -> None:
    command = "python -c 'bytearray(400 << 20); print(1)'"
    with pytest.raises(CheckFailed, match="MemoryError"):
        shell(command, tmp_path, memory_bytes=200 << 20)
    assert shell(command, tmp_path, memory_bytes=2 << 30) == b"1\n"


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="it ended with exit status 3: no such luck"):
        shell("echo no such luck >&2; exit 3", tmp_path)
    with pytest.raises(CheckFailed, match="it ended with SIGTERM"):
        shell("kill -TERM $$", tmp_path)


def test_a_budget_ends_a_program(tmp_path: Path) -> None:
    def over() -> None:
        raise UsageError("over")

    with pytest.raises(UsageError, match="over"):
        run_program(
            ["/bin/sleep", "30"],
            what="it",
            limits=Limits(seconds=30),
            directory=tmp_path,
            environment={},
            check=over,
        )


# -- outcomes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no outcome"),
        ("{}", "neither metrics nor examples"),
        ('{"metrics": {"a": 1}} trailing', "no outcome"),
        ('loading...\n{"metrics": {"a": 1}}', "no outcome"),
        ('{"metrics": {"a": 1}, "extra": 2}', "unknown field `extra`"),
        ('{"metrics": {"a": "1"}}', "no outcome"),
        ('{"metrics": {"a": NaN}}', "no outcome"),
        ('{"metrics": {"a": 1e999}}', "no outcome"),
        ('{"examples": [{"id": "x", "score": 1}, {"id": "x", "score": 0}]}', "example `x` twice"),
        ('{"examples": [{"id": "x"}]}', "missing required field `score`"),
        ('{"examples": [1]}', "no outcome"),
        ("[1]", "no outcome"),
    ],
)
def test_an_outcome_is_read_strictly(text: str, reason: str) -> None:
    with pytest.raises(CheckFailed, match=reason):
        parse_outcome(text.encode(), what="it")


def test_an_outcome_as_it_should_be() -> None:
    found = parse_outcome(b'{"metrics": {"a": 0.5, "b": true}, "examples": [{"id": 3, "score": false}]}', what="it")
    assert (found.metrics, found.scores) == ({"a": 0.5, "b": 1.0}, {"3": 0.0})


# -- shell


def side(folder: Path, name: str = "candidate", **files: str) -> Told:
    folder.mkdir(exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "tiny").touch()
    for file, content in files.items():
        (folder / file).write_text(content)
    return Told(name=name, folder=folder)


def test_a_command_is_asked_once_for_weights_and_code(tmp_path: Path) -> None:
    new = side(tmp_path / "new", outcome='{"metrics": {"valid": 0.97, "other": 2}}')
    old = side(tmp_path / "old", "parent", outcome='{"metrics": {"valid": 0.98, "other": 2}}')
    test = ShellTest(
        name="tool",
        command=f"echo x >> {tmp_path}/calls; cat {{checkout}}/outcome",
        metrics={"valid": MetricLimit(min=0.96, max_drop=0.02), "other": MetricLimit(max=1)},
    )

    def run(**more: Any) -> SuiteRun:
        return suite_run(new, old, root=tmp_path, distrust=None, **more)

    valid, other = lines(test, run())
    assert (valid.value, valid.baseline, valid.decision, valid.unit, valid.against) == (
        0.97,
        0.98,
        "pass",
        "number",
        "parent",
    )
    assert (other.decision, other.limit) == ("fail", "max 1")
    lines(test, run())
    assert (tmp_path / "calls").read_text() == "x\n" * 2
    lines(test, run(code={"evals/tool.py": "changed"}))
    assert (tmp_path / "calls").read_text() == "x\n" * 4


def test_scores_of_examples_flip_beyond_a_dead_band(tmp_path: Path) -> None:
    def outcome(*scores: float) -> str:
        return json.dumps({"examples": [{"id": f"q{at}", "score": score} for at, score in enumerate(scores)]})

    new = side(tmp_path / "new", outcome=outcome(1, 0, 0.45, 1))
    old = side(tmp_path / "old", "parent", outcome=outcome(1, 1, 0.5, 0))
    command = 'cat "$MGIT_CHECKOUT/outcome"'
    run = suite_run(new, old, root=tmp_path, distrust=None)
    (line,) = lines(ShellTest(name="judge", command=command, nfr_max=0.25), run)
    assert (line.name, line.decision, line.broken, line.total) == ("negative flips", "fail", 2, 4)
    assert [(flip.example, flip.before, flip.after) for flip in run.flips] == [("q1", "1", "0"), ("q2", "0.5", "0.45")]
    (line,) = lines(ShellTest(name="judge", command=command, nfr_max=0.25, dead_band=0.05), run)
    assert (line.decision, line.broken) == ("pass", 1)
    # The mean of the scores is the one metric that is asked for.
    test = ShellTest(name="judge", command=command, metrics={"quality": MetricLimit(max_drop=0.01)})
    assert lines(test, run)[0].value == pytest.approx(2.45 / 4)
    assert lines(test, suite_run(new, root=tmp_path, distrust=None))[0].decision == "baseline"


def test_sides_with_other_examples_do_not_compare(tmp_path: Path) -> None:
    new = side(tmp_path / "new", outcome='{"examples": [{"id": "a", "score": 1}]}')
    old = side(tmp_path / "old", "parent", outcome='{"examples": [{"id": "b", "score": 1}]}')
    test = ShellTest(name="judge", command="cat {checkout}/outcome", nfr_max=0.1)
    with pytest.raises(CheckFailed, match="`a` is of one of them only"):
        lines(test, suite_run(new, old, root=tmp_path, distrust=None))


def test_a_metric_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    new = side(tmp_path / "new", outcome='{"metrics": {"valid": 1}}')
    test = ShellTest(name="tool", command="cat {checkout}/outcome", metrics={"vaild": MetricLimit(min=0.5)})
    (line,) = lines(test, suite_run(new, root=tmp_path, distrust=None))
    assert (line.decision, line.detail) == ("error", "the test gave no such metric; it gave `valid`")


@pytest.mark.parametrize(
    "test",
    [
        ShellTest(name="tool", command="touch ran", nfr_max=0.1),
        PythonTest(name="leak", entry="leak.py:check", nfr_max=0.1),
    ],
)
def test_nothing_runs_without_trust(test: Any, tmp_path: Path) -> None:
    (tmp_path / "leak.py").write_text("open('ran', 'w')")
    with pytest.raises(UsageError, match="is not trusted here") as refused:
        lines(test, suite_run(side(tmp_path / "new"), root=tmp_path))
    assert refused.value.hint is not None and "mgit trust" in refused.value.hint
    assert not (tmp_path / "ran").exists()


# -- python

LEAK = """
import torch

def check(model, context):
    print("loading")
    logits = model.module(**next(iter(context.encode(["1 0 0 0", "0 1 0 0"]).batches(2))).inputs)
    rows = context.examples("data.jsonl")
    scores = [{"id": row.id, "score": float(logits[0, 0])} for row in rows]
    return {"metrics": {"seed": context.seed, "draw": float(torch.rand(()))}, "examples": scores}

def wrong(model, context):
    return 1 / 0
"""


def test_a_function_is_given_the_model_and_keeps_its_outcome(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from modelgit.testing.models import tiny_unknown_module

    made = tiny_unknown_module(tmp_path)
    new = Told(made=made, folder=tmp_path / "checkout")
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "leak.py").write_text(LEAK)
    (tmp_path / "data.jsonl").write_text('{"id": "q", "text": "x"}\n')
    test = PythonTest(
        name="leak",
        entry="evals/leak.py:check",
        metrics={"seed": MetricLimit(max=0), "draw": MetricLimit(max=1)},
        level="info",
    )
    run = suite_run(new, root=tmp_path, distrust=None, task=made.settings)
    seed, draw = lines(test, run)
    torch.manual_seed(0)
    assert (seed.value, draw.value) == (0.0, float(torch.rand(())))
    (key,) = new.kept
    model = made.build()
    with torch.no_grad():
        expected = model.module(torch.tensor([[1.0, 0, 0, 0]]))[0, 0]
    assert new.kept[key]["outcome"]["scores"]["q"] == pytest.approx(float(expected), abs=1e-6)
    # What was kept counts as long as the data that were asked for are the same.
    new.kept[key]["outcome"]["metrics"]["draw"] = 0.125
    assert lines(test, run)[1].value == 0.125
    (tmp_path / "data.jsonl").write_text('{"id": "r", "text": "x"}\n')
    assert lines(test, run)[1].value == draw.value
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_a_function_raises_is_told_with_its_place(tmp_path: Path) -> None:
    from modelgit.evals.child import _told

    source = tmp_path / "leak.py"
    source.write_text(LEAK)
    scope: dict[str, Any] = {}
    exec(compile(LEAK, str(source), "exec"), scope)
    with pytest.raises(ZeroDivisionError) as raised:
        scope["wrong"](None, None)
    assert _told(raised.value, tmp_path) == "ZeroDivisionError at leak.py:12: division by zero"


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (0.5, {"metrics": {"score": 0.5}}),
        (True, {"metrics": {"score": 1.0}}),
        ({"a": 1}, {"metrics": {"a": 1.0}}),
        ([{"id": 1, "score": 0.5}], {"examples": [{"id": "1", "score": 0.5}]}),
        ({"metrics": {"a": 1}, "examples": []}, {"metrics": {"a": 1.0}}),
        ("good", "gave str where a number"),
        ({"a": float("nan")}, "gave nan where a number"),
        ([{"id": 1}], "no record"),
        (None, "gave NoneType"),
    ],
)
def test_what_a_function_may_give(found: object, outcome: Any) -> None:
    from modelgit.evals.child import _outcome

    if isinstance(outcome, str):
        with pytest.raises(UsageError, match=outcome):
            _outcome(found, "leak.py:check")
    else:
        assert _outcome(found, "leak.py:check") == outcome


# -- lm-eval


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="lm-evaluation-harness") as refused:
        lines(LmEvalTest(name="arc", tasks=("arc",), nfr_max=0.1), suite_run(side(tmp_path / "new"), root=tmp_path))
    assert refused.value.hint == "`pip install 'modelgit[lm-eval]'`"


def _harness_that_gives(found: object, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a package in place of the harness that knows the task `local` and gives `found`; what it was asked."""
    asked: list[dict[str, Any]] = []

    class TaskManager:
        all_tasks = ("local",)

        def __init__(self, **_: object) -> None:
            """Whatever it is given."""

    def simple_evaluate(**options: Any) -> object:
        asked.append(options)
        if isinstance(found, Exception):
            raise found
        return found

    parts = {"lm_eval": {"simple_evaluate": simple_evaluate}, "lm_eval.models": {}}
    parts |= {"lm_eval.models.huggingface": {"HFLM": dict}, "lm_eval.tasks": {"TaskManager": TaskManager}}
    for name, values in parts.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_what_the_harness_gives_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    request = HarnessRequest(
        tasks=("local",), include_path="evals", metric="acc", root="", model="m", result="", seed=3, limit=2
    )
    # As version 0.4.13 gives it: numbers by metric and filter, and a record for each document and filter.
    asked = _harness_that_gives(
        {
            "results": {"local": {"alias": "local", "acc,none": 0.5, "acc_stderr,none": "N/A", "acc,strict": 0.25}},
            "samples": {"local": [{"doc_id": 0, "acc": 1.0}, {"doc_id": 1, "acc": 0.0}, {"doc_id": 1, "acc": 1.0}]},
        },
        monkeypatch,
    )
    assert run_harness(request) == {
        "metrics": {"local.acc": 0.5, "acc": 0.5, "local.acc.strict": 0.25},
        "examples": [{"id": "local/0", "score": 1.0}, {"id": "local/1", "score": 0.0}],
    }
    assert (asked[0]["tasks"], asked[0]["limit"], asked[0]["random_seed"]) == (["local"], 2, 3)
    assert asked[0]["model"] == {
        "pretrained": "m", "device": "cpu", "dtype": "float32", "batch_size": 1, "trust_remote_code": False
    }  # fmt: skip
    with pytest.raises(UsageError, match="has no task `other`"):
        run_harness(msgspec.structs.replace(request, tasks=("other",)))
    _harness_that_gives(ConnectionError("couldn't reach 'org/data' on the Hub"), monkeypatch)
    with pytest.raises(UsageError, match="data of the tasks local are on a hub"):
        run_harness(request)
    _harness_that_gives({"results": {"local": {"alias": "local"}}}, monkeypatch)
    with pytest.raises(CheckFailed, match="gave no metrics"):
        run_harness(request)


def test_local_tasks_of_the_harness(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from modelgit.testing.models import tiny_language_model

    made = [tiny_language_model(seed=seed) for seed in (1, 0)]
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    for one in made:
        one.files["tokenizer_config.json"] = json.dumps(tokens).encode()
    tasks = tmp_path / "evals" / "tasks"
    tasks.mkdir(parents=True)
    documents = [{"q": f"question {at}", "choices": ["yes", "no"], "gold": at % 2} for at in range(6)]
    (tasks / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tasks / "local.yaml").write_text(
        "task: local_task\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: evals/tasks/docs.jsonl\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: choices\n'
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    new = Told(made=made[0], folder=tmp_path / "new")
    old = Told(made=made[1], folder=tmp_path / "old", name="parent")
    test = LmEvalTest(
        name="local",
        tasks=("local_task",),
        include_path="evals/tasks",
        nfr_max=1.0,
        metrics={"acc": MetricLimit(min=0.0, max_drop=1.0)},
    )
    with pytest.raises(MgitError, match="is not trusted here"):
        lines(test, suite_run(new, old, root=tmp_path, task=made[0].settings))
    run = suite_run(new, old, root=tmp_path, distrust=None, task=made[0].settings)
    accuracy, flips = lines(test, run)
    (kept,) = new.kept.values()
    scores = kept["outcome"]["scores"]
    assert sorted(scores) == [f"local_task/{at}" for at in range(6)]
    assert accuracy.value == sum(scores.values()) / 6
    assert (flips.name, flips.total, flips.against) == ("negative flips", 6, "parent")
