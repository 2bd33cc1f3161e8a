"""modelgit: version control for model weights.

Importing the package imports neither numpy nor torch; public names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modelgit.errors import MergeConflicts, MgitError
    from modelgit.repo import Repository, clone, init, open, snapshot  # noqa: A004  (mg.open is the documented name)

_PUBLIC = {
    "MergeConflicts": "modelgit.errors",
    "MgitError": "modelgit.errors",
    "Repository": "modelgit.repo",
    "clone": "modelgit.repo",
    "init": "modelgit.repo",
    "open": "modelgit.repo",
    "snapshot": "modelgit.repo",
}

__all__ = ["MergeConflicts", "MgitError", "Repository", "__version__", "clone", "init", "open", "snapshot"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'modelgit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
