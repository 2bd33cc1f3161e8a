from __future__ import annotations

from modelgit.objects import CheckResult, EvalRecord, ManifestId
from modelgit.reporting.markdown import verdict_markdown
from modelgit.reporting.verdict_text import verdict_lines

BASE = ManifestId(bytes.fromhex("0b77f1ac9e21") + bytes(26))


def record(*results: CheckResult, baseline: ManifestId | None = BASE, suite: str = "smoke") -> EvalRecord:
    return EvalRecord(
        candidate=ManifestId.of(b"new"),
        baseline=baseline,
        suite=suite,
        suite_id="",
        results=results,
        decision="fail",
        seconds=0.0,
    )


def test_golden_verdict() -> None:
    lines = verdict_lines(
        record(
            CheckResult(name="accuracy", decision="pass", value=0.910, baseline=0.912, limit="-0.5 pt"),
            CheckResult(
                name="negative flips",
                decision="fail",
                value=0.0218,
                limit="max 1.0 %",
                detail="9 of the 412 examples drawn from 4,000 went from right to wrong; proven at alpha 0.05",
            ),
            CheckResult(name="kl", decision="pass", value=0.0031, unit="nats", limit="max 0.05 nats"),
            CheckResult(name="accuracy", decision="pass", baseline=0.912, limit="-2.0 pt", detail="holds"),
            CheckResult(name="kl", decision="inconclusive", limit="max 1 nats", detail="not decided"),
        )
    )
    assert lines == [
        "eval smoke, baseline 0b77f1ac9e21",
        "  accuracy         91.2 % → 91.0 % -0.2 pt     pass  (limit -0.5 pt)",
        "  negative flips            2.2 %              FAIL  (limit 1.0 %: 9 of the 412 examples drawn from 4,000 "
        "went from right to wrong; proven at alpha 0.05)",
        "  kl                        0.0031 nats        pass  (limit 0.05 nats)",
        "  accuracy         91.2 % → ?                  pass  (limit -2.0 pt: holds)",
        "  kl                                           OPEN  (limit 1 nats: not decided)",
    ]


def test_builtin_checks_and_a_first_baseline() -> None:
    lines = verdict_lines(
        record(
            CheckResult(name="finite values", decision="fail", value=2.0, unit="count", detail="w (1 NaN)"),
            CheckResult(name="names and shapes", decision="baseline"),
            baseline=None,
            suite="built\x1b[2Jin",
        )
    )
    assert lines == [
        "eval built\\x1b[2Jin, first baseline",
        "  finite values             2                  FAIL  (w (1 NaN))",
        "  names and shapes                             first",
    ]


def test_markdown_table_shows_markup_as_text() -> None:
    text = verdict_markdown(
        [record(CheckResult(name="a|b", decision="error", detail="<img src=x> [x](javascript:y) @team `c`\nd"))]
    )
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[2] == (r"| smoke | a\|b |  |  |  | ERROR | &lt;img src=x&gt; \[x\]\(javascript:y\) \@team \`c\`\\nd |")
