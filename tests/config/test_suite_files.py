"""What is wrong in a suite file is said with its place and the nearest known key."""

from __future__ import annotations

import pytest

from modelgit.config.suite_files import duration_s, parse_suite, suite_name
from modelgit.config.suites import NfrTest
from modelgit.errors import UsageError

FLIPS = '[[test]]\nname = "flips"\nkind = "nfr"\nmax = 0.01\n'


def test_a_suite_is_read() -> None:
    suite = parse_suite(f'task = "t"\n[run]\nbudget = "60s"\n{FLIPS}max_vs."tag:v*" = 0.03\n', name="compat")
    (test,) = suite.test
    assert isinstance(test, NfrTest)
    assert (suite.task, test.max, test.max_vs, suite.run.alpha) == ("t", 0.01, {"tag:v*": 0.03}, 0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run\n", r"evals/compat\.toml is not TOML"),
        ("tests = 1", r"unknown key `tests`; did you mean `test`"),
        ("[run]\nstag = 1", r"run: unknown key `stag`; did you mean `stage`"),
        (FLIPS + "maxx = 1", r"`flips`: unknown key `maxx`; did you mean `max`"),
        (FLIPS.replace('"nfr"', '"nfrs"'), r"unknown kind `nfrs`; did you mean `nfr`"),
        (FLIPS.replace('kind = "nfr"', ""), r"has no `kind`"),
        (FLIPS.replace("0.01", "2"), r"at `flips: max`"),
        (FLIPS.replace("0.01", '"x"'), r"at `flips: max`: expected `float"),
        (FLIPS.replace('name = "flips"', ""), r"test 1.*missing required field `name`"),
        ('[[test]]\nname = "a"\nkind = "classification"\nmetrics.acuracy = {min = 1}', r"did you mean `accuracy`"),
        ('[[test]]\nname = "a"\nkind = "classification"\nmetrics.accuracy = {mim = 1}', r"did you mean `min`"),
        ("[data]\nx = 1", r"data"),
        ("schema = 2", r"schema"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_suite(text, name="compat")


def test_which_files_are_suites() -> None:
    assert suite_name("evals/compat.toml") == "compat"
    for path in (
        "evals/sub/compat.toml",
        "compat.toml",
        "evals/.hidden.toml",
        "evals/compat.txt",
        "evals/allowed_signers",
    ):
        assert suite_name(path) is None


def test_lengths_of_time() -> None:
    assert [duration_s(text, where="x") for text in ("90s", "5m", "1.5h", "200 ms", "4w")] == [
        90,
        300,
        5400,
        0.2,
        2_419_200,
    ]
    for text in ("", "5", "-1s", "0s", "1y", "5300w", "nan s"):
        with pytest.raises(UsageError, match="x is"):
            duration_s(text, where="x")
