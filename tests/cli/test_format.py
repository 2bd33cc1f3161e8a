"""How numbers, times and foreign text read."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.cli._commits import date_line, when
from modelgit.cli._format import ago, duration, escape, plural, size
from modelgit.objects import Signature


@given(st.text())
def test_nothing_escaped_can_steer_a_terminal(text: str) -> None:
    shown = escape(text)
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for char in shown)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_readable_text_is_left_alone(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("\U000e0041", "\\U000e0041"),
        ("naïve λ 模型 ✓", "naïve λ 模型 ✓"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (134, "134 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (1048575, "1.0 MiB"),  # never "1024.0 KiB"
        (723_621_478, "690.1 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 70, "1048576.0 PiB"),
    ],
)
def test_sizes(number: int, shown: str) -> None:
    assert size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-100, "in the future"),
        (1, "just now"),
        (42, "42 seconds ago"),
        (61, "1 minute ago"),
        (12 * 60, "12 minutes ago"),
        (3600 * 23.9, "23 hours ago"),
        (86400, "1 day ago"),
        (86400 * 8, "1 week ago"),
        (86400 * 40, "1 month ago"),
        (86400 * 800, "2 years ago"),
    ],
)
def test_relative_times(seconds: float, shown: str) -> None:
    assert ago(seconds) == shown


def test_durations() -> None:
    assert [duration(s) for s in (0.44, 41.2, 59.7, 725, 12_000)] == [
        "0.4 s",
        "41 s",
        "1 min 0 s",
        "12 min 5 s",
        "3 h 20 min",
    ]


def test_plurals() -> None:
    assert [plural(1, "tensor"), plural(2113, "tensor"), plural(0, "branch", "branches")] == [
        "1 tensor",
        "2,113 tensors",
        "0 branches",
    ]


@pytest.mark.parametrize("time_s", [-(1 << 62), -(1 << 40), 0, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("offset_min", [-(1 << 40), -90, 0, 1 << 40])
def test_any_time_that_a_stranger_signs_at_can_be_shown(time_s: int, offset_min: int) -> None:
    signed = Signature(name="Eve", mail="eve@example.org", time_s=time_s, offset_min=offset_min)
    assert date_line(signed).isprintable() and when(signed).isprintable()


def test_a_date_is_shown_in_the_zone_of_its_author() -> None:
    signed = Signature(name="Ada", mail="ada@example.org", time_s=1_700_000_000, offset_min=-90)
    assert date_line(signed) == "2023-11-14 20:43:20 -0130"
