from __future__ import annotations

import pytest

from modelgit.objects import (
    CheckReport,
    CheckResult,
    CheckSection,
    CommitId,
    ComparedWith,
    EvalRecord,
    Finding,
    Flip,
    ManifestId,
    PatchFacts,
)

PARENT = CommitId(bytes.fromhex("0b77f1ac9e21") + bytes(26))
RELEASE = CommitId(bytes.fromhex("91cd04e6b7aa") + bytes(26))
TREE = ManifestId(bytes.fromhex("5ca1ab1e0000") + bytes(26))
# What every format must show as text: ends of elements and sections, markup, commands, line breaks, control codes.
HOSTILE = (
    "]]></system-out><script>alert(1)</script>\n::error::x\r##[set-output name=a]b\x1b[2J\x00|`[l](http://e.x)`,%\ud800"
)


@pytest.fixture
def verdict() -> EvalRecord:
    """A suite that compares with two baselines, with slices and flips."""
    flips = {"test": "intents-flips", "name": "negative flips"}
    return EvalRecord(
        candidate=TREE,
        baseline=TREE,
        suite="compat",
        suite_id="b3:5e",
        results=(
            CheckResult(name="accuracy", test="accuracy", decision="pass", value=0.91, baseline=0.912, limit="-0.5 pt"),
            CheckResult(
                **flips,
                decision="pass",
                value=0.004,
                limit="max 1.0 %",
                detail="2 of 412",
                against="parent",
                examples=412,
                total=4000,
                broken=2,
            ),
            CheckResult(
                **flips,
                decision="fail",
                value=0.0218,
                limit="max 2.0 %",
                detail="9 of 412",
                against="tag:v1",
                examples=412,
                total=4000,
                broken=9,
            ),
            CheckResult(
                **flips,
                decision="fail",
                value=0.08,
                limit="max 5.0 %",
                against="tag:v1",
                slice="lang=de",
                examples=50,
                total=50,
                broken=4,
            ),
            CheckResult(**flips, decision="pass", value=0.02, against="tag:v1", slice="lang=en", examples=50, total=50),
            CheckResult(name="kl", decision="warn", value=0.07, unit="nats", limit="max 0.05 nats"),
        ),
        decision="fail",
        examples=412,
        seconds=3.14159,
        seed=7,
        versions={"torch": "2.6", "numpy": "2.0"},
        weights="b3:77",
        baselines=(
            ComparedWith(name="parent", manifest=TREE, weights="b3:1", commit=PARENT),
            ComparedWith(name="tag:v1", manifest=TREE, weights="b3:2", commit=RELEASE),
        ),
        stage="commit",
        alpha=0.05,
        sampling="adaptive",
        flips=(
            Flip(test="intents-flips", example="q7", gold="place", before="place", after="person", against="tag:v1"),
            Flip(test="intents-flips", example="q9", gold="time", before="time", after="date", against="tag:v1"),
        ),
    )


@pytest.fixture
def hostile() -> EvalRecord:
    """A verdict in which every text is hostile."""
    return EvalRecord(
        candidate=TREE,
        baseline=None,
        suite=HOSTILE,
        suite_id=HOSTILE,
        results=(
            CheckResult(
                name=HOSTILE,
                test="t" + HOSTILE,
                decision="fail",
                detail=HOSTILE,
                limit=HOSTILE,
                unit=HOSTILE,
                value=1.0,
                broken=1,
                examples=1,
                total=1,
            ),
            CheckResult(name=HOSTILE, slice=HOSTILE, decision="warn", value=float("nan"), against=HOSTILE, examples=1),
        ),
        decision="fail",
        seconds=0.0,
        versions={HOSTILE: HOSTILE},
        override=HOSTILE,
        accepted=(HOSTILE,),
        flips=(Flip(test="t" + HOSTILE, example=HOSTILE, gold=HOSTILE, before=HOSTILE, after=HOSTILE),),
    )


@pytest.fixture
def check(verdict: EvalRecord, hostile: EvalRecord) -> CheckReport:
    """A check with every outcome, and with hostile texts."""
    found = Finding(
        rule="values/nonfinite",
        level="error",
        message="w holds 2 NaN",
        hint="`mgit diff main~1 main`",
        path="models/bot/model.safetensors",
        tensor="w",
        commit=PARENT,
        details=("row 1", "row 2"),
    )
    nasty = Finding(
        rule=HOSTILE, level="warning", message=HOSTILE, hint=HOSTILE, path=HOSTILE, tensor=HOSTILE, details=(HOSTILE,)
    )
    note = Finding(rule="suspicious/few", level="note", message="few rows changed")
    return CheckReport(
        revision="HEAD",
        commit=RELEASE,
        base=HOSTILE,
        base_commit=PARENT,
        facts=PatchFacts(),
        sections=(
            CheckSection(name="objects", outcome="pass", summary="611 of 611 verified", seconds=0.5),
            CheckSection(name="values", outcome="fail", summary="2 NaN", findings=(found,), seconds=0.25),
            CheckSection(name=HOSTILE, outcome="warn", summary=HOSTILE, findings=(nasty, note), seconds=0.0),
            CheckSection(name="signature", outcome="error", summary="no key", seconds=0.0),
            CheckSection(name="policy", outcome="skip", summary="none", seconds=0.0),
            CheckSection(name="eval compat", outcome="fail", summary="1 failed", evaluation=verdict, seconds=3.0),
            CheckSection(name="eval x", outcome="warn", summary=HOSTILE, evaluation=hostile, seconds=0.0),
        ),
        seconds=4.0,
    )
