from __future__ import annotations

import pytest

from modelgit.config.schema import EvalSettings, Limit, Settings, TaskSettings
from modelgit.errors import UsageError
from modelgit.evals.suites import load_suites

TASKS = {"intents": TaskSettings(model="models/bot", adapter="bert-classifier", test="data/test.jsonl")}
FLIPS = Limit(max=0.01)


def settings(**suite: object) -> Settings:
    return Settings(task=TASKS, eval={"smoke": EvalSettings(**{"task": "intents", "negative_flips": FLIPS, **suite})})  # type: ignore[arg-type]


def test_suites_carry_their_task_and_data() -> None:
    (suite,) = load_suites(settings())
    source = suite.data["data"]
    assert (suite.name, source.path, suite.task, source.task) == (
        "smoke",
        "data/test.jsonl",
        TASKS["intents"],
        TASKS["intents"],
    )
    assert load_suites(settings(data="data/probe.jsonl"))[0].data["data"].path == "data/probe.jsonl"
    assert load_suites(Settings()) == ()


def test_names_are_matched_and_near_ones_offered() -> None:
    with pytest.raises(UsageError, match="no suite `smok`; did you mean `smoke`") as caught:
        load_suites(settings(), names=["smok"])
    assert caught.value.hint == "known: smoke"
    with pytest.raises(UsageError, match=r"`intent`.*did you mean `intents`") as caught:
        load_suites(settings(task="intent"))
    assert caught.value.hint is not None
    assert "[task.intent]" in caught.value.hint
    with pytest.raises(UsageError, match="no suite `smoke`") as caught:
        load_suites(Settings(), names=["smoke"])
    assert "[eval.smoke]" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"negative_flips": None}, "limits nothing"),
        ({"negative_flips": Limit()}, "negative_flips has no bound"),
        ({"negative_flips": Limit(max_drop=0.1)}, "takes `max` only"),
        ({"kl": Limit(min=0.1)}, "takes `max` only"),
        ({"kl": Limit(max=float("nan"))}, "`max` is nan"),
        ({"accuracy": Limit(min=91.0)}, "0.01 is one per cent"),
        ({"accuracy": Limit(max_drop=-0.01)}, "`max_drop` is -0.01"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"examples": 0}, "examples is 0"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(suite: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_suites(settings(**suite))


def test_a_suite_without_data_is_refused() -> None:
    tasks = {"intents": TaskSettings(model="models/bot")}
    with pytest.raises(UsageError, match="no data"):
        load_suites(Settings(task=tasks, eval={"smoke": EvalSettings(task="intents", negative_flips=FLIPS)}))


def test_metrics_may_be_recorded_without_a_bound() -> None:
    assert len(load_suites(settings(accuracy=Limit(level="info")))) == 1
