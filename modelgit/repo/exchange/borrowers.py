"""Borrowers that a lending repository knows: what they rely on is not collected here.

Registering is the one thing that is ever written at a lender, only when it is asked for, and only the name of a
directory.  What the borrower relies on stands in its own tables (`store.lenders`), which are read when garbage is
collected.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import RepositoryError
from modelgit.store.durable import make_directory, write_durably
from modelgit.store.lenders import LenderLine, LenderList

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["lent_objects", "register", "unregister"]

_NAME = re.compile(r"[0-9a-f]{16}\Z")


def register(repo: Repository, line: LenderLine) -> None:
    """Tell the lending repository `line` who borrows.  Raises RepositoryError when it cannot be written."""
    make_directory(line.path / "borrowers")
    place = repo.paths.directory.resolve()
    write_durably(_file(line, place), f"{place}\n".encode())


def unregister(repo: Repository, line: LenderLine) -> None:
    """Take that back, as far as the lender can be written."""
    with contextlib.suppress(OSError):
        _file(line, repo.paths.directory.resolve()).unlink(missing_ok=True)


def lent_objects(repo: Repository) -> set[tuple[str, bytes]]:
    """Kind and digest of everything that registered borrowers rely on.

    Raises RepositoryError for a borrower that cannot be found: nobody could tell what it needs.
    """
    folder = repo.paths.directory / "borrowers"
    own = LenderLine("store", str(repo.paths.directory.resolve()))
    found: set[tuple[str, bytes]] = set()
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _NAME.match(file.name):
            continue
        place = Path(file.read_text(encoding="utf-8", errors="replace").strip())
        if not (place / "format").is_file():
            raise RepositoryError(
                f"{place} borrows from this repository and is not there, so nobody can tell what it needs",
                hint=f"bring it back, or `rm {file}` if it is gone for good",
            )
        for table in LenderList(place / "borrow").tables(own):
            found |= {(item.kind, item.digest) for item in table.objects if item.kind in ("tensor", "blob")}
    return found


def _file(line: LenderLine, place: Path) -> Path:
    return line.path / "borrowers" / LenderLine("borrower", str(place)).key
