"""`mgit config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelgit.cli._errors import Quit
from modelgit.cli._options import command, group, json_option, pass_session
from modelgit.cli._output import Part, columns, dim, plain_data
from modelgit.cli._session import Session
from modelgit.errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from modelgit.config.load import LoadedSettings

__all__ = ["config"]


@group(
    "config",
    default="list",
    example="mgit config set --user user.name 'Ada Lovelace'",
    foreign={key: f"`mgit config set --user {key} VALUE`" for key in ("user.name", "user.email")},
)
def config() -> None:
    """Read and change settings.

    Lowest first: the user's file, mgit.toml (recorded with the model), .mgit/config.toml (this clone), MGIT_*
    variables, flags.
    """


def _scope(user: bool, shared: bool, local: bool) -> str:
    if user + shared + local > 1:
        raise UsageError("--user, --shared and --local exclude each other", hint="`mgit config set --help`")
    return "user" if user else "shared" if shared else "local"


def _loaded(session: Session) -> LoadedSettings:
    """The settings in force: also outside of a repository, where those of the user are."""
    from modelgit.config.load import ConfigLayer, load_settings
    from modelgit.repo.settings import environment_layers

    try:
        return session.repository.loaded_settings
    except RepositoryError:
        environment = session.environment
        layers = [*environment_layers(environment), ConfigLayer("environment", dict(environment.overrides))]
        return load_settings(layers)


def _literal(value: object) -> str:
    """A value as TOML writes it; JSON's strings, numbers and booleans are TOML's."""
    data = plain_data(value)
    if isinstance(data, list):
        return f"[{', '.join(map(_literal, data))}]"
    if isinstance(data, dict):
        pairs = (f"{name} = {_literal(item)}" for name, item in data.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(data, ensure_ascii=False)


@command("list", example="mgit config list --origin")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
@pass_session
def config_list(session: Session, origin: bool, as_json: bool) -> None:
    """List every setting in force."""
    items = list(_loaded(session).items())
    if as_json:
        settings = [{"key": key, "value": value, "origin": source} for key, value, source in items]
        session.output.json("mgit.config/1", {"settings": settings})
        return
    rows: list[list[Part]] = [
        [f"{key} = {_literal(value)}", dim(source)] if origin else [f"{key} = {_literal(value)}"]
        for key, value, source in items
    ]
    session.output.lines(columns(rows))


@command("get", example="mgit config get user.name")
@click.argument("key")
@json_option
@pass_session
def config_get(session: Session, key: str, as_json: bool) -> None:
    """Print the value of KEY; exit code 1 when it has none."""
    loaded = _loaded(session)
    value = loaded.value(key)
    if as_json:
        session.output.json("mgit.config/1", {"settings": [{"key": key, "value": value, "origin": loaded.origin(key)}]})
    elif value is not None:
        session.output.line(value if isinstance(value, str) else _literal(value))
    if value is None:
        raise Quit(1)


def _scope_options(function: click.decorators.FC) -> click.decorators.FC:
    for name, text in (
        ("--local", "In .mgit/config.toml, for this clone (the default)."),
        ("--shared", "In mgit.toml, recorded with the model."),
        ("--user", "In your own file, for all repositories."),
    ):
        function = click.option(name, is_flag=True, help=text)(function)
    return function


@command("set", example="mgit config set --shared eval.smoke.accuracy.max_drop 0.005")
@click.argument("key")
@click.argument("value")
@_scope_options
@pass_session
def config_set(session: Session, key: str, value: str, user: bool, shared: bool, local: bool) -> None:
    """Set KEY to VALUE, a TOML literal or plain text; comments and order of the file stay as they are."""
    _change(session, key, value, _scope(user, shared, local))


@command("unset", example="mgit config unset --shared eval.smoke")
@click.argument("key")
@_scope_options
@pass_session
def config_unset(session: Session, key: str, user: bool, shared: bool, local: bool) -> None:
    """Remove KEY, a value or a whole table, from a settings file."""
    _change(session, key, None, _scope(user, shared, local))


def _change(session: Session, key: str, value: str | None, scope: str) -> None:
    if scope == "user":
        file = _change_user(session.environment.user_config, key, value)
    else:
        from modelgit.repo.settings import change

        file = change(session.repository, key, value, scope="shared" if scope == "shared" else "local")
    session.output.say(f"{'Unset' if value is None else 'Set'} {key} in {file}")


def _change_user(file: Path, key: str, value: str | None) -> Path:
    """The user's own file can be changed outside of any repository."""
    from modelgit.config.edit import set_value, unset_value
    from modelgit.store.durable import write_durably

    text = file.read_text(encoding="utf-8") if file.exists() else ""
    after = unset_value(text, key, name=str(file)) if value is None else set_value(text, key, value, name=str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, after.encode())
    return file


for _command in (config_list, config_get, config_set, config_unset):
    config.add_command(_command)
