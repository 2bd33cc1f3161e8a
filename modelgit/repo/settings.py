"""The layers of settings of a repository, and who acts."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelgit.config.load import ConfigLayer, LoadedSettings, file_layer, load_settings
from modelgit.config.schema import UserSettings
from modelgit.environment import Environment
from modelgit.errors import UsageError
from modelgit.objects import Signature
from modelgit.repo.layout import PROJECT_CONFIG
from modelgit.store.durable import write_durably

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Scope", "change", "environment_layers", "load", "signature"]

Scope = Literal["user", "shared", "local"]
SYSTEM_CONFIG = Path("/etc/mgit/config.toml")
_AUTHOR = re.compile(r"\s*([^<>\n]*?)\s*<([^<>\n]*)>\s*\Z")
_MAX_NAME = 200


def environment_layers(environment: Environment) -> list[ConfigLayer]:
    """The layers below any repository: system and user."""
    layers = []
    if sys.platform != "win32" and SYSTEM_CONFIG.is_file():
        layers.append(file_layer(SYSTEM_CONFIG, name=str(SYSTEM_CONFIG)))
    if environment.user_config.is_file():
        layers.append(file_layer(environment.user_config, name=str(environment.user_config)))
    return layers


def load(repo: Repository, *, project: str | None = None) -> LoadedSettings:
    """All layers, merged.

    `project` is the text of an mgit.toml that stands for the one in the work tree.  Raises UsageError that names the
    file and the key for what the schema does not know.
    """
    environment = repo.environment
    layers = environment_layers(environment)
    if project is not None:
        layers.append(ConfigLayer(PROJECT_CONFIG, project))
    elif repo.paths.worktree is not None and (repo.paths.worktree / PROJECT_CONFIG).is_file():
        layers.append(file_layer(repo.paths.worktree / PROJECT_CONFIG, name=PROJECT_CONFIG))
    if repo.paths.config.is_file():
        layers.append(file_layer(repo.paths.config, name=".mgit/config.toml"))
    layers.append(ConfigLayer("environment", dict(environment.overrides)))
    return load_settings(layers)


def signature(repo: Repository, author: str | None) -> Signature:
    """Name and mail of whoever acts, and the time.  Raises UsageError for an author that is not `Name <mail>`."""
    offset_min = time.localtime().tm_gmtoff // 60
    when = int(time.time())
    text = author or repo.environment.author
    if text is not None:
        match = _AUTHOR.match(text)
        if match is None or not match.group(1) or len(text) > _MAX_NAME:
            raise UsageError(f"not an author: {text[:80]!r}", hint='write it as "Name <mail@example.org>"')
        return Signature(name=match.group(1), mail=match.group(2), time_s=when, offset_min=offset_min)
    user = UserSettings()
    with contextlib.suppress(UsageError):  # a broken mgit.toml must not keep anybody from restoring a good one
        user = repo.settings.user
    name = user.name or repo.environment.login
    mail = user.email or f"{repo.environment.login}@{repo.environment.host}"
    return Signature(name=name, mail=mail, time_s=when, offset_min=offset_min)


def change(repo: Repository, key: str, value: str | None, *, scope: Scope) -> Path:
    """Set (or with None unset) a setting in the user's file, in mgit.toml or in this clone's file; returns the file."""
    from modelgit.config.edit import set_value, unset_value

    target = {
        "user": repo.environment.user_config,
        "shared": repo.worktree / PROJECT_CONFIG,
        "local": repo.paths.config,
    }[scope]
    name = PROJECT_CONFIG if scope == "shared" else str(target)
    text = target.read_text(encoding="utf-8") if target.exists() else ""
    after = unset_value(text, key, name=name) if value is None else set_value(text, key, value, name=name)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_durably(target, after.encode())
    repo.forget_settings()
    return target
