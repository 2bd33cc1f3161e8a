"""Layers of settings: which one wins, what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.config.keys import join_key, split_key
from modelgit.config.load import ConfigLayer, file_layer, load_settings
from modelgit.config.schema import Limit, Settings
from modelgit.errors import UsageError

TEAM = """
[track]
paths = ["models/bot"]

[task.bot]
model = "models/bot"
adapter = "bert-classifier"

[eval.smoke]
task = "bot"
accuracy = { max_drop = 0.005 }
negative_flips.max = 0.01
"""


def load(*layers: tuple[str, object]) -> Settings:
    return load_settings([ConfigLayer(name, source) for name, source in layers]).settings  # type: ignore[arg-type]


def refusal(*layers: tuple[str, object]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(*layers)
    return caught.value


def test_nothing_set_gives_the_built_in_settings() -> None:
    loaded = load_settings([])
    assert loaded.settings == Settings()
    assert loaded.origin("storage.threads") == "built-in"
    assert ("storage.threads", 0, "built-in") in list(loaded.items())


def test_higher_layers_win_key_by_key() -> None:
    loaded = load_settings(
        [
            ConfigLayer("system", "[user]\nname='System'\nemail='sys@x'\n[storage]\nthreads=1"),
            ConfigLayer("user", "[user]\nname='Ada'\n[eval.smoke]\ntask='other'\nseed=5"),
            ConfigLayer("mgit.toml", TEAM),
            ConfigLayer(".mgit/config.toml", "[remote.origin]\nurl='s3://b/m'\n[task.bot]\nhead='score'"),
            ConfigLayer("environment", {"storage.threads": "4", "eval.smoke.alpha": "0.01"}),
            ConfigLayer("flags", {"storage.threads": 8, "eval.smoke.kl.max": "0.5"}),
        ]
    )
    settings = loaded.settings
    assert (settings.user.name, settings.user.email) == ("Ada", "sys@x")
    assert settings.storage.threads == 8
    assert (settings.task["bot"].model, settings.task["bot"].head) == ("models/bot", "score")
    smoke = settings.eval["smoke"]
    assert (smoke.task, smoke.seed, smoke.alpha, smoke.kl) == ("bot", 5, 0.01, Limit(max=0.5))
    assert (smoke.accuracy, smoke.negative_flips) == (Limit(max_drop=0.005), Limit(max=0.01))
    assert {
        key: origin for key, _, origin in loaded.items() if key.startswith(("user", "storage", "eval.smoke.a"))
    } == {
        "user.name": "user",
        "user.email": "system",
        "storage.threads": "flags",
        "storage.effort": "built-in",
        "storage.verify": "built-in",
        "storage.activations_mib": "built-in",
        "eval.smoke.accuracy.max_drop": "mgit.toml",
        "eval.smoke.accuracy.level": "built-in",
        "eval.smoke.alpha": "environment",
    }
    assert loaded.origin("task.bot.head") == ".mgit/config.toml"
    assert loaded.value("remote.origin.url") == "s3://b/m"
    assert loaded.value("eval.smoke.examples") is None
    assert loaded.value("task.absent.model") is None
    assert not loaded.warnings


def test_arrays_are_replaced_whole() -> None:
    settings = load(("user", "[track]\nignore=['a','b']"), ("mgit.toml", "[track]\nignore=['c']"))
    assert settings.track.ignore == ("c",)


def test_the_versioned_file_cannot_set_what_belongs_to_a_clone() -> None:
    loaded = load_settings(
        [
            ConfigLayer(
                "mgit.toml",
                "[user]\nname='Mallory'\n[remote.origin]\nurl='ssh://-oProxyCommand=x/'\n[storage]\nthreads=999\n"
                + TEAM,
            )
        ]
    )
    assert loaded.settings.user.name is None
    assert loaded.settings.remote == {}
    assert loaded.settings.storage.threads == 0
    assert "bot" in loaded.settings.task
    assert [w.partition(", which")[0] for w in loaded.warnings] == [
        f"mgit.toml may not set [{name}]" for name in ("user", "remote", "storage")
    ]


def test_a_stray_variable_warns_and_a_wrong_one_is_refused() -> None:
    loaded = load_settings([ConfigLayer("environment", {"no_such": "1", "storage.threds": "1", "bad key": "1"})])
    assert loaded.settings == Settings()
    assert len(loaded.warnings) == 3
    assert "did you mean `storage.threads`?" in loaded.warnings[1]
    error = refusal(("environment", {"storage.threads": "many"}))
    assert error.message == "environment: `storage.threads`: expected `int`, got `str`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trak]\n", "mgit.toml: unknown setting `trak`; did you mean `track`?"),
        (
            "[eval.s]\ntask='t'\nacuracy={}\n",
            "mgit.toml: unknown setting `eval.s.acuracy`; did you mean `eval.s.accuracy`?",
        ),
        ("[eval.s]\ntask='t'\n[eval.s.kl]\nmaximum=1", "mgit.toml: unknown setting `eval.s.kl.maximum`"),
        ("[track]\npaths='models'", "mgit.toml: `track.paths`: expected `array`, got `str`"),
        ("[track]\npaths=[1]", "mgit.toml: `track.paths`: expected `str`, got `int`"),
        ("track=1", "mgit.toml: `track` is a table, not a value"),
        ("[task]\nbot='x'", "mgit.toml: `task.bot` is a table, not a value"),
        ("[[task]]\nmodel='x'", "mgit.toml: `task` is a table, not a value"),
        ("[task.bot]\n", "mgit.toml: [task.bot] has no `model`"),
        ('[task."a.b"]\n', 'mgit.toml: [task."a.b"] has no `model`'),
        ("[eval.s]\ntask='t'\nkl={level='maybe'}", "mgit.toml: `eval.s.kl.level`: invalid enum value 'maybe'"),
        ("[eval.s]\ntask='t'\nalpha=1.5", "mgit.toml: `eval.s.alpha`: expected `float` < 1.0"),
        ("[eval.s]\ntask='t'\nkl={max=nan}", "mgit.toml: `eval.s.kl.max` must be a finite number, not nan"),
        ("[eval.s]\ntask='t'\nkl={max=inf}", "mgit.toml: `eval.s.kl.max` must be a finite number, not inf"),
        ("[eval.s]\ntask=2020-01-01", "mgit.toml: `eval.s.task`: expected `str`, got `date`"),
        ("[track]\npaths=['../..']", "mgit.toml: `track.paths` lists '../..', which has a `..` component"),
        ("[track]\npaths=['/etc']", "mgit.toml: `track.paths` lists '/etc', which has an absolute path"),
        (
            "[track]\npaths=['.mgit']",
            "mgit.toml: `track.paths` lists '.mgit', which has a name of the repository's own",
        ),
        ("[track\n", "mgit.toml, line 1, column 7: not valid TOML: expected ']'"),
        ("[track]\npaths = [\n", "mgit.toml, line 3, column 1: not valid TOML: "),
        ("\n\n  x = = 1", "mgit.toml, line 3, column 7: not valid TOML: invalid value"),
        ("[track]\n[track]\n", "mgit.toml, line 2, column 7: not valid TOML: "),
        ("x = " + "[" * 100_000, "mgit.toml"),
        ("#" * (1 << 21), "mgit.toml is too large"),
    ],
)
def test_refusals_name_the_file_and_the_key(text: str, message: str) -> None:
    error = refusal(("mgit.toml", text))
    assert error.message.startswith(message)
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "text",
    [
        '"\\u001b[2J" = 1',
        '[track]\n"\\u001b[2J" = 1',
        "[task.\"a\\u0007\"]\nmodel='x'",
        "[eval.s]\ntask='t'\nsampling=\"\\u001b[2J\"",
        '[track]\npaths=["\\u001b[2J"]',
        "[track]\n" + "a" * 5000 + " = 1",
        "\x1b[2J = 1",
    ],
)
def test_messages_carry_no_escape_sequences_of_a_stranger(text: str) -> None:
    message = refusal(("mgit.toml", text)).message
    assert message.isprintable()
    assert len(message) < 300


def test_an_enumeration_lists_its_values() -> None:
    error = refusal(("mgit.toml", "[eval.s]\ntask='t'\nsampling='some'"))
    assert error.hint == "one of adaptive, random, full"


def test_an_incomplete_entry_names_the_layer_that_mentions_it() -> None:
    error = refusal(("mgit.toml", ""), (".mgit/config.toml", "[task.bot]\nhead='x'"))
    assert error.message == ".mgit/config.toml: [task.bot] has no `model`"
    assert error.hint == "`mgit config set task.bot.model VALUE`"


def test_a_layer_may_complete_what_a_lower_one_began() -> None:
    settings = load(("user", "[task.bot]\nhead='x'"), ("mgit.toml", "[task.bot]\nmodel='m'"))
    assert (settings.task["bot"].model, settings.task["bot"].head) == ("m", "x")


def test_files(tmp_path: Path) -> None:
    assert file_layer(tmp_path / "absent.toml", name="user").source == ""
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf[storage]\r\nthreads = 3\r\n")
    layer = file_layer(tmp_path / "a.toml", name="user")
    assert load_settings([layer]).settings.storage.threads == 3
    (tmp_path / "b.toml").write_bytes(b"x = '\xff'")
    with pytest.raises(UsageError, match=r"user is not UTF-8 text \(byte 5\)"):
        file_layer(tmp_path / "b.toml", name="user")
    with pytest.raises(UsageError, match="user cannot be read"):
        file_layer(tmp_path, name="user")


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='"\\'), max_size=8), min_size=1)
)
def test_keys_survive_quoting(parts: list[str]) -> None:
    assert split_key(join_key(parts)) == tuple(parts)


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "a b", 'a."b', "a = 1", "a\nb", "a]", "a#"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(UsageError, match="is not a dotted key"):
        split_key(key)


@pytest.mark.parametrize("key", ["user.name.first", "nothing", "task.bot.modle"])
def test_unknown_keys_have_no_value(key: str) -> None:
    with pytest.raises(UsageError):
        load_settings([]).value(key)


def test_reading_settings_imports_nothing_heavy() -> None:
    code = (
        "import sys, modelgit.config.load, modelgit.config.edit, modelgit.formats.layouts\n"
        "sys.exit(', '.join({'numpy', 'torch', 'tomlkit', 'click', 'rich', 'safetensors'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
