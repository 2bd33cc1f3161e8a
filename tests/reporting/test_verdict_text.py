from __future__ import annotations

from msgspec.structs import replace

from modelgit.objects import CheckResult, EvalRecord
from modelgit.reporting.verdict_text import baseline_words, check_cells, check_label, check_notes, measurement


def test_measurements() -> None:
    line = CheckResult(name="a", decision="pass")
    assert measurement(replace(line, value=0.910, baseline=0.912)) == ("91.2 %", "91.0 % -0.2 pt")
    assert measurement(replace(line, value=0.0218)) == ("", "2.2 %")
    assert measurement(replace(line, value=0.0031, unit="nats")) == ("", "0.0031 nats")
    assert measurement(replace(line, value=8.36, baseline=8.41, unit="ms")) == ("8.4 ms", "8.4 ms -0.6 %")
    assert measurement(replace(line, baseline=0.912)) == ("91.2 %", "?")
    assert measurement(replace(line, value=2.0, unit="count")) == ("", "2")
    assert measurement(replace(line, value=2.0, unit="x\x1b[2J")) == ("", "2 x\\x1b[2J")
    assert measurement(line) == ("", "")


def test_notes() -> None:
    line = CheckResult(name="a", decision="pass", limit="max 1.0 %", detail="w (1 NaN)")
    assert check_notes(line) == "limit 1.0 %: w (1 NaN)"
    assert check_notes(replace(line, limit="")) == "w (1 NaN)"
    assert check_notes(replace(line, detail="")) == "limit 1.0 %"


def test_a_baseline_is_named_where_there_are_several(verdict: EvalRecord) -> None:
    first, flips, *_ = verdict.results
    assert check_label(verdict, first) == "accuracy"
    assert check_label(verdict, flips) == "intents-flips: negative flips vs parent"
    assert check_label(verdict, replace(flips, slice="lang=d\ne")).endswith("vs parent, lang=d\\ne")
    assert baseline_words(verdict) == "baselines parent 0b77f1ac9e21, tag:v1 91cd04e6b7aa"
    one = replace(verdict, baselines=verdict.baselines[:1])
    assert check_label(one, flips) == "intents-flips: negative flips"
    assert baseline_words(one) == "baseline 0b77f1ac9e21"
    assert baseline_words(replace(verdict, baselines=verdict.baselines[1:])) == "baseline tag:v1 91cd04e6b7aa"
    assert baseline_words(replace(verdict, baselines=())) == "baseline tree 5ca1ab1e0000"
    assert baseline_words(replace(verdict, baselines=(), baseline=None)) == "first baseline"


def test_golden_cells(verdict: EvalRecord) -> None:
    assert [check_cells(verdict, result) for result in verdict.results[:3]] == [
        ("accuracy", "91.2 % → 91.0 % -0.2 pt", "pass", "(limit -0.5 pt)"),
        ("intents-flips: negative flips vs parent", "0.4 %", "pass", "(limit 1.0 %: 2 of 412)"),
        ("intents-flips: negative flips vs tag:v1", "2.2 %", "FAIL", "(limit 2.0 %: 9 of 412)"),
    ]
