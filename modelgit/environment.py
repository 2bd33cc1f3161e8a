"""The one record of what the surroundings say: captured by an entry point, passed down, never read again.

The library never looks at `os.environ` or at the user's home by itself, so that it behaves the same in a server,
a test and a notebook.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Environment"]

# No name of a secret, no proxy with a password, no path of a configuration.
_SURROUNDINGS = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "SYSTEMROOT",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def _host() -> str:
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # takes longer to load than everything else here

    return socket.gethostname()


def _user_directory(values: Mapping[str, str], variable: str, home: Path, fallback: str) -> Path:
    if values.get(variable):
        return Path(values[variable])
    if sys.platform == "win32" and values.get("LOCALAPPDATA"):
        return Path(values["LOCALAPPDATA"])
    return home / fallback


def _hub_cache(values: Mapping[str, str], home: Path) -> Path:
    """As `huggingface_hub` finds it."""
    if values.get("HF_HUB_CACHE"):
        return Path(values["HF_HUB_CACHE"]).expanduser()
    if values.get("HF_HOME"):
        return Path(values["HF_HOME"]).expanduser() / "hub"
    return Path(values.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface" / "hub"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What an entry point found around it.

    `author` is `Name <mail>` from MGIT_AUTHOR or None; `overrides` holds the MGIT_* settings by dotted config name.
    `hub_cache` is where the Hugging Face hub's programs keep models (HF_HUB_CACHE, HF_HOME), `hub_endpoint` the server
    that HF_ENDPOINT names.  `step_summary` is the file of a GitHub action's summary (GITHUB_STEP_SUMMARY).
    `surroundings` are the few variables without which programs are not found or do not run on this machine: all that a
    test's own program is given.
    """

    home: Path
    config_home: Path
    cache_home: Path
    cwd: Path
    author: str | None = None
    login: str = "unknown"
    host: str = "localhost"
    offline: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)
    hub_cache: Path | None = None
    hub_endpoint: str | None = None
    step_summary: Path | None = None
    surroundings: Mapping[str, str] = field(default_factory=dict)

    @property
    def user_config(self) -> Path:
        """The user's own settings file."""
        return self.config_home / "mgit" / "config.toml"

    @property
    def cache_directory(self) -> Path:
        """Where downloads and rebuilt artefacts may be kept; safe to delete."""
        return self.cache_home / "mgit"

    @classmethod
    def capture(cls, values: Mapping[str, str] | None = None, *, cwd: Path | None = None) -> Environment:
        """Read the process's surroundings once.  For entry points only (command line, `mg.open`, servers)."""
        values = os.environ if values is None else values
        home = Path(values["HOME"]) if values.get("HOME") else Path.home()
        try:
            login = getpass.getuser()
        except (OSError, KeyError, ImportError):
            login = "unknown"
        overrides = {
            name[len("MGIT_") :].lower().replace("__", "."): value
            for name, value in values.items()
            if name.startswith("MGIT_") and name not in {"MGIT_AUTHOR", "MGIT_OFFLINE", "MGIT_DEBUG"}
        }
        return cls(
            home=home,
            config_home=_user_directory(values, "XDG_CONFIG_HOME", home, ".config"),
            cache_home=_user_directory(values, "XDG_CACHE_HOME", home, ".cache"),
            cwd=cwd or Path.cwd(),
            author=values.get("MGIT_AUTHOR") or None,
            login=login,
            host=_host(),
            offline=values.get("MGIT_OFFLINE", "") not in ("", "0"),
            overrides=overrides,
            hub_cache=_hub_cache(values, home),
            hub_endpoint=values.get("HF_ENDPOINT") or None,
            step_summary=Path(values["GITHUB_STEP_SUMMARY"]) if values.get("GITHUB_STEP_SUMMARY") else None,
            surroundings={name: values[name] for name in _SURROUNDINGS if values.get(name)},
        )
