"""Edits of settings files: one key changes, the user's comments and order stay."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.config.edit import add_tracked_path, remove_tracked_path, set_value, unset_value
from modelgit.config.load import ConfigLayer, load_settings
from modelgit.errors import NothingToDo, UsageError

MINE = """\
# our models, see the wiki
[track]
# the bot
paths = [
  "models/bot",  # the first one
  "models/tone",
]

[eval.smoke]   # fast
task = "bot"
accuracy.max_drop = 0.005 # half a point

[eval.smoke.kl]
max = 0.1

[task.bot]
model = "models/bot"

# the end
"""


def values(text: str) -> dict[str, object]:
    return {
        key: value
        for key, value, origin in load_settings([ConfigLayer("mgit.toml", text)]).items()
        if origin != "built-in"
    }


@pytest.mark.parametrize(
    ("key", "typed", "before", "after"),
    [
        ("eval.smoke.accuracy.max_drop", "0.01", "accuracy.max_drop = 0.005 # half", "accuracy.max_drop = 0.01 # half"),
        ("eval.smoke.kl.max", "2", "max = 0.1\n", "max = 2\n"),
        ("task.bot.model", "models/tone", 'model = "models/bot"', 'model = "models/tone"'),
        ("task.bot.model", '"models/tone"', 'model = "models/bot"', 'model = "models/tone"'),
        ("task.bot.model", "123", 'model = "models/bot"', 'model = "123"'),
        ("eval.smoke.sampling", "full", "half a point\n", 'half a point\nsampling = "full"\n'),
    ],
)
def test_only_the_one_key_changes(key: str, typed: str, before: str, after: str) -> None:
    assert set_value(MINE, key, typed, name="mgit.toml") == MINE.replace(before, after)


@pytest.mark.parametrize("text", ["", "# mine\n", "[user]\n", "user.email = 'a@b'\n", "user = { email = 'a@b' }\n"])
def test_set_in_files_of_any_style(text: str) -> None:
    edited = set_value(text, "user.name", "Ada Lovelace")
    assert load_settings([ConfigLayer("user", edited)]).settings.user.name == "Ada Lovelace"
    assert edited.startswith(text[:6])
    edited = set_value(edited, 'remote."my.org".url', "s3://bucket/x")
    assert load_settings([ConfigLayer("user", edited)]).settings.remote["my.org"].url == "s3://bucket/x"


def test_new_tables_look_as_a_person_would_write_them() -> None:
    text = set_value("", "eval.smoke.task", "bot")
    text = set_value(text, "eval.smoke.accuracy.max_drop", "0.005")
    text = set_value(text, "eval.smoke.kl", "{ max = 0.1 }")
    assert text == '[eval.smoke]\ntask = "bot"\naccuracy = {max_drop = 0.005}\nkl = {max = 0.1}\n'


@pytest.mark.parametrize(
    ("key", "typed", "message"),
    [
        ("eval.smoke.acuracy", "1", "did you mean `eval.smoke.accuracy`?"),
        ("storage.threads", "many", "`storage.threads`: expected `int`, got `str`"),
        ("storage.threads", "-1", "`storage.threads`: expected `int` >= 0"),
        ("storage.threads", "1\nuser.name = 'x'", "`storage.threads`: expected `int`, got `str`"),
        ("track.paths", "models/bot", "`track.paths`: expected `array`"),
        ("track.paths", '["../x"]', "a `..` component"),
        ("eval.smoke.kl.max", "nan", "finite"),
        ("eval.smoke.kl", "5", "is a table"),
        ("eval.smoke.kl", "{ maximum = 5 }", "unknown setting `eval.smoke.kl.maximum`"),
        ("user", "{ name = 'x' }", "is a table"),
        ("user.name.first", "x", "is a value, not a table"),
        ("", "x", "not a dotted key"),
    ],
)
def test_values_that_the_schema_does_not_take(key: str, typed: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        set_value(MINE, key, typed)
    assert message in caught.value.message


@pytest.mark.parametrize("key", ["user.name", "remote.origin.url", "storage.threads"])
def test_private_settings_do_not_go_into_the_shared_file(key: str) -> None:
    with pytest.raises(UsageError, match="belongs to each clone"):
        set_value(MINE, key, "1", name="mgit.toml")


def test_a_broken_file_is_not_edited() -> None:
    for edit in (
        lambda: set_value("[user\n", "user.name", "x"),
        lambda: unset_value("[user\n", "user.name"),
        lambda: add_tracked_path("[user\n", "m"),
        lambda: remove_tracked_path("[user\n", "m"),
    ):
        with pytest.raises(UsageError, match="line 1, column 6"):
            edit()


def test_unset() -> None:
    assert unset_value(MINE, "eval.smoke.accuracy.max_drop") == MINE.replace(
        "accuracy.max_drop = 0.005 # half a point\n", ""
    )
    assert values(unset_value(MINE, "eval.smoke.kl.max")) == {
        key: value for key, value in values(MINE).items() if key != "eval.smoke.kl.max"
    }
    gone = unset_value(MINE, "eval.smoke")
    assert "smoke" not in gone
    assert "# the end" in gone and "# the bot" in gone
    assert unset_value("[user]\nname = 'x'\n", "user.name").strip() == ""


@pytest.mark.parametrize("key", ["user.name", "eval.other.task", "eval.smoke.seed"])
def test_unset_what_is_not_set(key: str) -> None:
    with pytest.raises(NothingToDo, match="does not set"):
        unset_value(MINE, key)
    with pytest.raises(UsageError, match="unknown setting"):
        unset_value(MINE, key + "x" if "user" in key else "evl.smoke.task")


def test_tracked_paths() -> None:
    added = add_tracked_path(MINE, "models/new")
    assert added == MINE.replace('  "models/tone",\n', '  "models/tone",\n  "models/new",\n')
    assert remove_tracked_path(added, "models/new") == MINE
    assert add_tracked_path(MINE, "models/bot") == MINE
    assert add_tracked_path("", "models/bot") == '[track]\npaths = ["models/bot"]\n'
    assert values(add_tracked_path("[track]\nignore = ['x']\n", ".")) == {"track.paths": (".",), "track.ignore": ("x",)}
    first_gone = remove_tracked_path(MINE, "models/bot")
    assert values(first_gone)["track.paths"] == ("models/tone",)
    assert "# the bot" in first_gone and "# our models" in first_gone


def test_tracked_paths_that_are_wrong() -> None:
    with pytest.raises(UsageError, match=r"cannot be tracked: a `\.\.` component"):
        add_tracked_path(MINE, "../x")
    with pytest.raises(UsageError, match=r"models/bit is not tracked; did you mean `models/bot`\?"):
        remove_tracked_path(MINE, "models/bit")
    with pytest.raises(UsageError, match="m is not tracked"):
        remove_tracked_path("", "m")


KEYS = {
    "user.name": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "storage.threads": st.integers(0, 99),
    "task.bot.model": st.text("ab/.'\"\\\n#", max_size=9),
    "task.bot.max_length": st.integers(1, 9),
    'task."odd name".model': st.just("m"),
    "eval.smoke.task": st.text(max_size=4),
    "eval.smoke.accuracy.max_drop": st.floats(allow_nan=False, allow_infinity=False),
    "eval.smoke.accuracy.level": st.sampled_from(["block", "warn", "info"]),
    "eval.smoke.kl.max": st.floats(0, 1),
}


def literal(value: object) -> str:
    import tomlkit

    return tomlkit.item(value).as_string()


@given(
    st.lists(
        st.sampled_from(sorted(KEYS)).flatmap(lambda key: st.tuples(st.just(key), st.none() | KEYS[key])), max_size=8
    )
)
def test_edits_behave_as_a_dictionary(edits: list[tuple[str, object]]) -> None:
    """Any run of sets and unsets leaves what a dictionary would hold, in a file that still parses."""
    text = "# mine\n[track] # paths\npaths = []\n"
    model: dict[str, object] = {}
    for key, value in edits:
        if value is not None:
            text = set_value(text, key, literal(value))
            model[key] = value
        elif key in model:
            text = unset_value(text, key)
            del model[key]
        else:
            with pytest.raises(NothingToDo):
                unset_value(text, key)
    flat: dict[str, object] = {}

    def flatten(table: dict[str, object], prefix: str) -> None:
        for name, value in table.items():
            key = prefix + (f'"{name}"' if " " in name else name)
            if isinstance(value, dict):
                flatten(value, key + ".")
            else:
                flat[key] = value

    flatten(tomllib.loads(text), "")
    assert flat == {"track.paths": [], **model}
    assert text.startswith("# mine\n[track] # paths\n")
