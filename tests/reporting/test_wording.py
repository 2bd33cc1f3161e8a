from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.reporting.wording import amount, change, points, printable, rate, share, shortened


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (2113, "2,113"), (1_120_000, "1.12 M"), (361_800_000, "361.8 M"), (7_241_732_096, "7.24 G")],
)
def test_amounts(count: int, text: str) -> None:
    assert amount(count) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 10**9, "<0.01 %"),
        (9999, 10**4, ">99.9 %"),
        (31, 10**4, "0.31 %"),
        (42, 100, "42.0 %"),
    ],
)
def test_shares_never_round_to_nothing_or_everything(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_rates_and_differences() -> None:
    assert [rate(x) for x in (0.0, 0.912, 0.00025)] == ["0.0 %", "91.2 %", "0.025 %"]
    assert [points(x) for x in (-0.002, 0.01, 0.0, -0.00025)] == ["-0.2 pt", "+1.0 pt", "±0.0 pt", "-0.03 pt"]
    assert [change(x) for x in (None, math.inf, 0.0, 0.0041, 3e-7)] == ["?", "∞", "0", "0.0041", "3.0e-07"]


@given(st.text(max_size=80), st.integers(1, 40))
def test_shortened_keeps_both_ends(text: str, width: int) -> None:
    short = shortened(text, width)
    assert len(short) == min(len(text), width)
    assert text.startswith(short[:1])


@given(st.text())
def test_printable_text_cannot_steer_a_terminal(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_escapes_are_shown() -> None:
    assert printable("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
