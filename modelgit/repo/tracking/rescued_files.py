"""Files of the work tree as they were before a command changed them: `undo` and `redo` put them back.

What was in the work tree instead is kept in turn, so that nothing is lost however often that is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelgit.errors import RepositoryError
from modelgit.repo.tracking.dense_weights import digest_of_copy, put_back
from modelgit.repo.tracking.update import rescue
from modelgit.worktree.checkout import find_regular

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["after_folder", "swap_rescued"]


def after_folder(before: str) -> str:
    """The directory of the rescue area for what a command made, once it is undone; `before` is for what was there."""
    return f"{before}.after"


def swap_rescued(repo: Repository, wanted: str, replaced: str) -> None:
    """Put the files in the directory `wanted` of the rescue area into the work tree, bit for bit.

    Those that lie there are copied to the directory `replaced`, or to one of their own where that has others already.
    It can be done again.  Raises RepositoryError when `wanted` is gone.
    """
    folder = repo.paths.rescue / wanted
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()] if folder.is_dir() else []
    if not files:
        raise RepositoryError(
            f"the files as they were are not in .mgit/rescue/{wanted} any more (they are kept for 7 days)",
            hint="`mgit restore .` brings those of the last commit",
        )
    for file in files:
        path = file.relative_to(folder).as_posix()
        if find_regular(repo.worktree, path) is not None:
            now = digest_of_copy(repo, repo.worktree / path, path)
            if now == digest_of_copy(repo, file, path):
                continue
            kept = repo.paths.rescue / replaced / path
            if not kept.exists():
                rescue(repo, path, under=replaced)
            elif digest_of_copy(repo, kept, path) != now:
                rescue(repo, path)
        put_back(repo, file, path)
