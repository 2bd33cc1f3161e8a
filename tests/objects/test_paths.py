"""Hostile paths of a commit: each is refused by name, and ordinary ones are not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.errors import IntegrityError
from modelgit.objects.paths import check_tree, check_tree_path, find_twins, path_problem

HOSTILE = {
    "": "empty path",
    "/etc/passwd": "absolute",
    "//server/share": "absolute",
    "..": "`..`",
    "../outside": "`..`",
    "models/../../outside": "`..`",
    "models/..": "`..`",
    "./a": "`.`",
    "a/./b": "`.`",
    "a//b": "empty component",
    "a/": "empty component",
    ".mgit/config.toml": "repository's own",
    "models/.mgit/root": "repository's own",
    ".MGIT/hooks": "repository's own",
    ".MgIt": "repository's own",
    ".mgit./x": "repository's own",
    ".mgit /x": "repository's own",
    ".mgit. . ./x": "repository's own",
    ".git/hooks/post-checkout": "repository's own",
    ".GIT": "repository's own",
    ".mgit::$INDEX_ALLOCATION/x": "stream",
    ".mgit::$DATA": "stream",
    "a:b": "drive",
    "model.bin:hidden": "stream",
    "C:/windows": "drive",
    "c:x": "drive",
    "mgit~1/config.toml": "short name",
    "MGIT~1": "short name",
    "git~1": "short name",
    "mgit~12": "short name",
    "MG3F2A~1": "short name",
    ".mg\u200cit/x": "U+200C",
    ".m\u200dgit": "U+200D",
    "\ufeff.mgit": "U+FEFF",
    "a\u202egnp.exe": "U+202E",
    ".mg\u0131t": "repository's own",
    ".m\uff47it": "repository's own",
    ".mgi\u0301t": "repository's own",
    "a\\b": "backslash",
    "..\\..\\x": "backslash",
    ".mgit\\config": "backslash",
    "a\0b": "U+0000",
    "a\nb": "U+000A",
    "a\rb": "U+000D",
    "a\r": "U+000D",
    "\x1b[31mred": "U+001B",
    "a\x7fb": "U+007F",
    "a\u2028b": "U+2028",
    "a\udcffb": "U+DCFF",
    "a.": "trailing",
    "a ": "trailing",
    "dir./file": "trailing",
    "...": "trailing",
    "CON": "device",
    "models/aux": "device",
    "nul.txt": "device",
    "NUL .safetensors": "device",
    "com1.tar.gz": "device",
    "LPT9": "device",
    "COM\u00b9": "device",
    "conin$": "device",
    "x" * 256: "longer than 255",
    "\u00e9" * 128: "longer than 255",
    "/".join(["d" * 200] * 21): "more than 4096",
}

ORDINARY = [
    "mgit.toml",
    "models/bot/model-00001-of-00003.safetensors",
    "models/bot/.gitattributes",
    ".mgitignore",
    "a..b",
    "..a",
    ".hidden",
    "con-fig.json",
    "console/aux1",
    "COM10",
    "nullable.txt",
    "mgit~x",
    "mg12345~1",
    "~/x",
    "-rf",
    "with space/and 'quotes'",
    "données/模型/Модель.bin",
    "🤗.json",
    "x" * 255,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_refuses(path: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        check_tree_path(path)
    message = caught.value.message
    assert message.startswith("refuses path '") and " in commit: " in message
    assert HOSTILE[path] in message.partition(" in commit: ")[2]
    assert message.isascii() or "`" in message
    assert message.isprintable() and len(message) < 300


@pytest.mark.parametrize("path", ORDINARY)
def test_accepts(path: str) -> None:
    assert path_problem(path) is None
    check_tree_path(path)


@given(st.text(max_size=12), st.sampled_from([".mgit", ".git"]))
def test_no_disguise_of_our_directory_passes(noise: str, name: str) -> None:
    """Whatever case, trailing dots, ignorable characters or Unicode forms are mixed in."""
    ignorable = "".join(c for c in noise if unicodedata.category(c) == "Cf")
    for spelt in (name.upper(), name + "." * len(noise), name[:2] + ignorable + name[2:], name + " ."):
        assert path_problem(spelt) is not None
        assert path_problem(f"models/{spelt}/config.toml") is not None


@pytest.mark.parametrize(
    ("paths", "twins"),
    [
        (["a", "b", "a"], ("a", "a")),
        (["models/Bot.json", "models/bot.json"], ("models/Bot.json", "models/bot.json")),
        (["caf\u00e9", "cafe\u0301"], ("caf\u00e9", "cafe\u0301")),
        (["stra\u00dfe", "STRASSE"], ("stra\u00dfe", "STRASSE")),
        (["Models/a", "models/b"], ("Models", "models")),
        (["x/Y/a", "x/y/b"], ("x/Y", "x/y")),
        (["a", "a/b"], ("a", "a/b")),
        (["a/b", "a"], ("a", "a")),
        (["A", "a/b"], ("A", "a")),
        (["d/a/b/c", "d/A"], ("d/a", "d/A")),
    ],
)
def test_twins(paths: list[str], twins: tuple[str, str]) -> None:
    assert find_twins(paths) == twins
    with pytest.raises(IntegrityError, match="refuses path"):
        check_tree(paths)


def test_a_tree_without_twins() -> None:
    check_tree([*ORDINARY, "models/bot/config.json", "models/bots/config.json", "a/b", "a.b", "b"])
    check_tree([])


@given(st.lists(st.text("ab/", min_size=1, max_size=6), max_size=8))
def test_twins_agree_with_a_naive_check(paths: list[str]) -> None:
    paths = [p for p in paths if path_problem(p) is None]
    clash = len(set(paths)) < len(paths) or any(a != b and b.startswith(a + "/") for a in paths for b in paths)
    assert (find_twins(paths) is not None) == clash


def test_check_tree_checks_every_path() -> None:
    with pytest.raises(IntegrityError, match=r"refuses path '\.\./x' in commit: a `\.\.` component"):
        check_tree(["fine", "../x"])
