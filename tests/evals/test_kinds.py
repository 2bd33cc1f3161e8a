"""Kinds of tests on models that are said or tiny: lines, limits and details against values worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from modelgit.config.suites import (
    DirTest,
    InvTest,
    KlTest,
    MetricLimit,
    MftTest,
    PerplexityTest,
    PinTest,
    ResourcesTest,
    RetrievalTest,
    RunSettings,
)
from modelgit.errors import UsageError
from modelgit.evals.base import KINDS, SuiteRun
from modelgit.objects import CheckResult
from tests.evals.fakes import Told, dataset, examples_of, suite_run

torch = pytest.importorskip("torch")

from modelgit.testing.models import tiny_conv_net  # noqa: E402

SAID = {
    "good": (0.7, 0.2, 0.1),
    "goood": (0.6, 0.3, 0.1),
    "bad": (0.1, 0.8, 0.1),
    "baad": (0.5, 0.4, 0.1),
    "so": (0.2, 0.2, 0.6),
    "nothing": (math.nan, 1.0, 1.0),
}


def lines(test: Any, run: SuiteRun) -> list[CheckResult]:
    return [line.result for line in KINDS.get(test.__struct_config__.tag)(test, run)]


# -- pin, mft, inv, dir


def test_a_pinned_example_that_is_wrong_refuses_and_is_named() -> None:
    test = PinTest(name="bugs", data="data")
    right = dataset(examples_of(["good", "bad", "so"], [0, 1, 2]))
    (line,) = lines(test, suite_run(Told(SAID), data=right))
    assert (line.decision, line.broken, line.total, line.detail) == ("pass", 0, 3, "all 3 right")
    wrong = dataset(examples_of(["good", "baad", "nothing"], [0, 1, 1]))
    (line,) = lines(test, suite_run(Told(SAID), data=wrong))
    assert (line.decision, line.broken, line.value) == ("fail", 2, 2 / 3)
    assert line.detail == "2 of 3 not right: e1, e2"


def test_pinned_examples_are_run_whole_and_have_labels() -> None:
    from modelgit.config.suites import RunSettings

    data = dataset(examples_of(["good", "baad"], [0, 1]))
    few = suite_run(Told(SAID), data=data, settings=RunSettings(examples=1, sampling="random"))
    (line,) = lines(PinTest(name="bugs", data="data"), few)
    assert (line.decision, line.examples) == ("fail", 2)
    with pytest.raises(UsageError, match="1 of the 2 examples of `data` have no label: e1"):
        lines(
            PinTest(name="bugs", data="data"),
            suite_run(Told(SAID), data=dataset(examples_of(["good", "bad"], [0, -1]))),
        )


@pytest.mark.parametrize(("max_fail", "decision"), [(0.0, "fail"), (0.49, "fail"), (0.5, "pass")])
def test_a_share_of_simple_examples_may_fail(max_fail: float, decision: str) -> None:
    data = dataset(examples_of(["good", "baad"], [0, 1]))
    (line,) = lines(MftTest(name="simple", data="data", max_fail=max_fail), suite_run(Told(SAID), data=data))
    assert (line.decision, line.value, line.broken) == (decision, 0.5, 1)


def test_invariance_is_of_the_label_or_within_a_tolerance() -> None:
    # goood stays `a`; baad turns to `a`, and the probability of `b` falls from 0.8 to 0.4.
    data = dataset(examples_of(["good", "bad"], changed=["goood", "baad"]))
    run = suite_run(Told(SAID), data=data)
    (line,) = lines(InvTest(name="typos", data="data"), run)
    assert (line.decision, line.broken) == ("fail", 1)
    assert line.detail == "1 of 2 not predicted alike: e1"
    assert lines(InvTest(name="typos", data="data", tolerance=0.41), run)[0].decision == "pass"
    assert lines(InvTest(name="typos", data="data", tolerance=0.39), run)[0].decision == "fail"


def test_direction_is_that_of_the_probability_of_the_label() -> None:
    # e0: p(a) from 0.7 to 0.6; e1: p(b) from 0.8 to 0.4.
    data = dataset(examples_of(["good", "bad"], [0, 1], changed=["goood", "baad"]))
    run = suite_run(Told(SAID), data=data)
    up = DirTest(name="stronger", data="data", tolerance=0.2)
    assert lines(up, run)[0].detail == "1 of 2 not as they should: e1"
    assert lines(msgspec.structs.replace(up, tolerance=0.05), run)[0].broken == 2
    assert lines(msgspec.structs.replace(up, direction="down", tolerance=0.0), run)[0].decision == "pass"


def test_a_model_that_computes_nan_is_neither_invariant_nor_directed() -> None:
    data = dataset(examples_of(["nothing"], [0], changed=["nothing"]))
    run = suite_run(Told(SAID), data=data)
    for test in (InvTest(name="x", data="data", tolerance=1.0), DirTest(name="x", data="data", tolerance=1.0)):
        assert lines(test, run)[0].decision == "fail"


def test_a_record_without_a_changed_text_is_named() -> None:
    data = dataset(examples_of(["good", "bad"], changed=["goood", ""]))
    with pytest.raises(UsageError, match="example `e1` of `data` has no text in the field `changed`"):
        lines(InvTest(name="typos", data="data"), suite_run(Told(SAID), data=data))


# -- perplexity and divergence of language models


TEXTS = ("hello world, of some length", "a b", "who is the king?", "where")


@pytest.fixture(scope="module")
def languages() -> tuple[Told, Told]:
    pytest.importorskip("transformers")
    from modelgit.testing.models import tiny_language_model

    return Told(made=tiny_language_model(seed=1)), Told(made=tiny_language_model(seed=0), name="parent")


def log_likelihoods(side: Told, texts: tuple[str, ...] = TEXTS) -> list[torch.Tensor]:
    """log p `[T, V]` of each text, alone in its batch, and -log p of its next tokens."""
    data = dataset(examples_of(texts), task=side.made.settings)
    model = side.made.build()
    found = []
    with torch.no_grad():
        for at in range(len(texts)):
            batch = next(iter(side.encode(data, np.array([at])).batches(1)))
            found.append((model.module(**batch.inputs)[0].double().log_softmax(1), batch.labels[0]))
    return found


def test_perplexity_is_that_of_all_tokens_and_is_kept_by_the_weights(languages: tuple[Told, Told]) -> None:
    new, old = languages
    data = dataset(examples_of(TEXTS), task=new.made.settings)
    run = suite_run(new, old, data=data)

    def expected(side: Told) -> float:
        losses = [-rows.gather(1, labels[:, None])[:, 0] for rows, labels in log_likelihoods(side)]
        return math.exp(float(torch.cat(losses).mean()))

    test = PerplexityTest(name="lm", data="data", max_ratio=1.0001 * expected(new) / expected(old))
    (line,) = lines(test, run)
    assert line.decision == "pass"
    assert line.value == pytest.approx(expected(new), rel=1e-5)
    assert line.baseline == pytest.approx(expected(old), rel=1e-5)
    assert (line.against, line.unit) == ("parent", "number")
    loaded = new.loaded, old.loaded
    tighter = msgspec.structs.replace(test, max_ratio=0.9999 * expected(new) / expected(old))
    assert lines(tighter, run)[0].decision == "fail"
    assert (new.loaded, old.loaded) == loaded
    # Without a baseline a ratio waits, and an absolute limit bites.
    assert lines(test, suite_run(new, data=data))[0].decision == "baseline"
    assert lines(PerplexityTest(name="lm", data="data", max=2.0), suite_run(new, data=data))[0].decision == "fail"


def test_perplexity_is_for_language_models() -> None:
    task = msgspec.structs.replace(dataset(()).task, kind="sequence-classification")
    data = dataset(examples_of(["good"]), task=task)
    with pytest.raises(UsageError, match="is for language models"):
        lines(PerplexityTest(name="lm", data="data", max=2.0), suite_run(Told(SAID), data=data))


def test_divergence_of_a_language_model_is_one_for_each_token(languages: tuple[Told, Told]) -> None:
    new, old = languages
    data = dataset(examples_of(TEXTS), task=new.made.settings)
    run = suite_run(new, old, data=data)
    pairs = zip(log_likelihoods(old), log_likelihoods(new), strict=True)
    expected = torch.cat([(p.exp() * (p - q)).sum(1) for (p, _), (q, _) in pairs]).numpy()
    mean, high = lines(KlTest(name="drift", data="data", max=1e-6, p99_max=1e6), run)
    assert (mean.name, mean.decision, high.name, high.decision) == ("kl", "fail", "kl p99", "pass")
    assert mean.value == pytest.approx(expected.mean(), rel=1e-4)
    assert high.value == pytest.approx(np.percentile(expected, 99), rel=1e-4)
    assert mean.detail.startswith(f"{expected.size} tokens, mean ")
    loaded = new.loaded
    assert lines(KlTest(name="drift", data="data", max=1e6), run)[0].value == mean.value
    assert new.loaded == loaded
    same = suite_run(old, Told(made=old.made, name="twin"), data=data)
    assert lines(KlTest(name="drift", data="data", max=0.0), same)[0].value == 0.0


def test_a_language_model_that_computes_nan_fails(languages: tuple[Told, Told]) -> None:
    import dataclasses

    state = {name: np.array(value) for name, value in languages[1].made.state.items()}
    next(iter(state.values())).reshape(-1)[:] = np.nan
    broken = Told(made=dataclasses.replace(languages[1].made, state=state))
    data = dataset(examples_of(TEXTS), task=broken.made.settings)
    run = suite_run(broken, languages[1], data=data)
    assert lines(PerplexityTest(name="lm", data="data", max=1e9), run)[0].decision == "fail"
    (line,) = lines(KlTest(name="drift", data="data", max=1e9), run)
    assert line.decision == "fail"
    assert "not finite" in line.detail


# -- retrieval and resources


@pytest.fixture
def images(tmp_path: Path) -> tuple[Told, Told, Any]:
    draw = np.random.default_rng(0)
    texts = [" ".join(f"{number:.3f}" for number in draw.normal(size=64)) for _ in range(12)]
    made = [tiny_conv_net(tmp_path, seed=seed) for seed in (1, 0)]
    data = dataset(examples_of(texts, [at % 4 for at in range(12)]), task=made[0].settings)
    return Told(made=made[0]), Told(made=made[1], name="parent"), data


def test_recall_of_new_queries_in_the_old_index(images: tuple[Told, Told, Any]) -> None:
    from modelgit.evals.metrics import cosines, recall_at_k

    new, old, data = images
    run = suite_run(new, old, data=data)
    rows = []
    for side in (old, new):
        model = side.made.build()
        batch = next(iter(side.encode(data, np.arange(12)).batches(12)))
        found = np.zeros((12, 8))
        with torch.no_grad():
            found[list(batch.indices)] = model.module.body(batch.inputs["pixels"]).numpy()
        rows.append(found)
    recall, cosine = lines(RetrievalTest(name="index", data="data", k=2, max_drop=1.0, min_cosine=0.999), run)
    assert recall.name == "recall at 2"
    assert recall.baseline == recall_at_k(rows[0], rows[0], data.labels, k=2).rate
    assert recall.value == recall_at_k(rows[1], rows[0], data.labels, k=2).rate
    assert recall.decision == "pass"
    assert cosine.value == pytest.approx(cosines(rows[0], rows[1]).mean(), rel=1e-5)
    assert (cosine.name, cosine.decision) == ("cosine", "fail")
    # What the two give together is kept, whatever the limits; nothing is loaded for it again.
    loaded = (new.loaded, old.loaded)
    strict = lines(RetrievalTest(name="index", data="data", k=2, max_drop=0.0, min_cosine=-1.0), run)
    assert [line.value for line in strict] == [recall.value, cosine.value] and strict[1].decision == "pass"
    assert (new.loaded, old.loaded) == loaded
    lines(RetrievalTest(name="index", data="data", k=1, max_drop=1.0), run)
    lines(RetrievalTest(name="index", data="data", min_cosine=0.0), suite_run(new, Told(made=old.made), data=data))
    assert (new.loaded, old.loaded) == (loaded[0] + 2, loaded[1] + 1)


def test_an_index_by_the_same_weights_answers_the_same(images: tuple[Told, Told, Any]) -> None:
    _, old, data = images
    run = suite_run(Told(made=old.made), old, data=data)
    recall, cosine = lines(RetrievalTest(name="index", data="data", max_drop=0.0, min_cosine=1.0), run)
    assert (recall.decision, cosine.decision) == ("pass", "pass")
    assert recall.detail.endswith("100.0 % have the same nearest")
    first = suite_run(old, data=data)
    assert [line.decision for line in lines(RetrievalTest(name="index", data="data", max_drop=0.0), first)] == [
        "baseline"
    ]


def test_sizes_against_a_baseline() -> None:
    new, old = Told(bytes_and_parameters=(441, 100)), Told(bytes_and_parameters=(420, 100), name="parent")
    limits = {"bytes": MetricLimit(max_ratio=1.05), "parameters": MetricLimit(max=99)}
    size, count = lines(ResourcesTest(name="cost", metrics=limits), suite_run(new, old))
    assert (size.value, size.baseline, size.decision, size.unit, size.limit) == (
        441,
        420,
        "pass",
        "bytes",
        "max 1.05 times",
    )
    assert (count.value, count.decision, count.limit) == (100, "fail", "max 99")
    limits = {"bytes": MetricLimit(max_ratio=1.049)}
    assert lines(ResourcesTest(name="cost", metrics=limits), suite_run(new, old))[0].decision == "fail"
    assert lines(ResourcesTest(name="cost", metrics=limits), suite_run(new))[0].decision == "baseline"


def test_durations_are_medians_of_alternating_passes(
    images: tuple[Told, Told, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelgit.evals import durations

    new, old, data = images
    order: list[int] = []
    spent = iter([9.0] * 6 + [5.0, 1.0, 2.0, 7.0, 3.0, 4.0])

    def timed(model: Any, _: Any) -> float:
        order.append(id(model))
        return next(spent)

    monkeypatch.setattr(durations, "_pass_ms", timed)
    limits = {"p50_ms": MetricLimit(max_ratio=1.5, repeats=3)}
    (line,) = lines(ResourcesTest(name="cost", data="data", metrics=limits), suite_run(new, old, data=data))
    first, second = order[1], order[0]
    assert order == [second, first, first, second] * 3
    # After three turns of warm-up: candidate 5, 7, 3 and baseline 1, 2, 4.
    assert (line.value, line.baseline, line.decision, line.unit) == (5.0, 2.0, "fail", "ms")
    with pytest.raises(UsageError, match="has no data"):
        lines(ResourcesTest(name="cost", metrics=limits), suite_run(new, old))


def test_durations_are_kept_by_all_that_was_measured_together(
    images: tuple[Told, Told, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelgit.evals import durations, machine

    new, old, data = images
    count = iter(range(1, 10**6))
    monkeypatch.setattr(durations, "_pass_ms", lambda *_: float(next(count)))

    def measured(*baselines: Told, cache: str = "weights", ratio: float = 9.0, **more: Any) -> float:
        limits = {
            "p50_ms": MetricLimit(max_ratio=ratio if baselines else None, max=1e9, repeats=more.pop("repeats", 1))
        }
        test = ResourcesTest(name="cost", data="data", metrics=limits, cache=cache)
        (line,) = lines(test, suite_run(new, *baselines, data=data, **more))
        return line.value

    first = measured(old)
    loaded = (new.loaded, old.loaded)
    # Neither the limit nor the name of the baseline is part of it, and no model is loaded for it.
    assert measured(old, ratio=8.0) == first
    assert (new.loaded, old.loaded) == loaded
    seen = {first}
    others: list[Any] = [
        measured,
        lambda: measured(dataclasses.replace(old, name="other weights")),
        lambda: measured(old, repeats=2),
        lambda: measured(old, settings=RunSettings(dtype="float64")),
        lambda: measured(old, surroundings={"OMP_NUM_THREADS": "7"}),
        lambda: measured(old, cache="none"),
    ]
    for other in others:
        seen.add(other())
    monkeypatch.setattr(machine, "_processor", lambda: "another")
    seen.add(measured(old))
    assert len(seen) == len(others) + 2
    for key in new.kept:
        new.kept[key] = {"medians_ms": ["x"]}
    assert measured(old) not in seen


def test_what_is_kept_is_told_without_what_computes(
    images: tuple[Told, Told, Any], languages: tuple[Told, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old, pictures = images
    texts = dataset(examples_of(TEXTS), task=languages[0].made.settings)
    runs = suite_run(new, old, data=pictures), suite_run(*languages, data=texts)
    asked: list[tuple[Any, SuiteRun]] = [
        (RetrievalTest(name="index", data="data", max_drop=1.0, min_cosine=0.5), runs[0]),
        (ResourcesTest(name="cost", data="data", metrics={"p50_ms": MetricLimit(max_ratio=1e9, repeats=1)}), runs[0]),
        (PerplexityTest(name="lm", data="data", max_ratio=1e9), runs[1]),
        (KlTest(name="drift", data="data", max=1e9), runs[1]),
    ]
    first = [lines(*each) for each in asked]
    for name in ("streams", "durations"):
        monkeypatch.setitem(sys.modules, f"modelgit.evals.{name}", None)  # torch, that is: to load it takes a second
    assert [lines(*each) for each in asked] == first


def test_durations_are_measured(images: tuple[Told, Told, Any]) -> None:
    new, _, data = images
    limits = {"p50_ms": MetricLimit(max=60_000, repeats=2)}
    (line,) = lines(ResourcesTest(name="cost", data="data", metrics=limits), suite_run(new, data=data))
    assert line.decision == "pass"
    assert line.value > 0
    assert json.loads(json.dumps(line.value)) == line.value
