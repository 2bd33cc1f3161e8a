from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelgit.errors import UsageError
from modelgit.objects.refs import check_ref_name, check_view_ref, ref_problem, short_ref

GOOD = ["main", "refunds", "feature/warm-tone", "v1.2.3", "a@b", "über", "2026-10-04", "x" * 255]
BAD = [
    "", "-x", "--force", "a..b", "a b", "a\tb", "a\nb", "a\0b", "a\x7fb", "a~1", "a^", "a:b", "a?", "a*", "a[0]",
    "a\\b",    ".hidden", "a/.b", "a.", "a/b./c", "a.lock", "x.lock/y", "/a", "a/", "a//b", "@", "a@{1}", "HEAD",
    "../../etc/passwd", "zero\u200bwidth", "rtl\u202eoverride", "nbsp\u00a0", "\ud800", "x" * 256, "a/" * 600 + "a",
    "a\x1b[31m", "a|b", 'a"b', "<a>",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass(name: str) -> None:
    check_ref_name(name)
    check_view_ref(f"heads/{name}")
    check_view_ref(f"tags/{name}")
    check_view_ref(f"remotes/origin/{name}")


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_bad_names_are_refused_and_shown_without_their_control_characters(name: str) -> None:
    for check, given_name in ((check_ref_name, name), (check_view_ref, f"heads/{name}")):
        with pytest.raises(UsageError) as caught:
            check(given_name)
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 300


@pytest.mark.parametrize("name", ["main", "notes/x", "remotes/origin", "heads/", "heads", "refs/heads/main"])
def test_a_view_holds_only_branches_tags_and_remote_branches(name: str) -> None:
    with pytest.raises(UsageError, match="invalid ref name"):
        check_view_ref(name)


def test_short_names() -> None:
    assert [short_ref(name) for name in ("heads/a/b", "tags/v1", "remotes/origin/main", "main")] == [
        "a/b", "v1", "origin/main", "main",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git")
@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from("ab./@{-~ lock"), max_size=8))
def test_what_passes_here_is_a_branch_name_for_git_too(name: str) -> None:
    if ref_problem(name) is None:
        subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True, check=True)


def test_a_full_name_of_git_is_no_short_name() -> None:
    with pytest.raises(UsageError, match="names are short here"):
        check_ref_name("refs/heads/main")
