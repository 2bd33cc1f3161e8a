"""Make a recorded merge again from its recipe, and see whether the bytes are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import UsageError
from modelgit.objects import Commit, CommitId, Manifest, ManifestId, MergeRecipe
from modelgit.objects.manifest import manifest_id
from modelgit.objects.merges import MergeState
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.merges.commit import remade
from modelgit.repo.merges.merge import sides_of

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Replay", "replay"]


class Replay(NamedTuple):
    """What a recipe gave: the tree of the commit, the one that was made now, and what differs between them."""

    commit: CommitId
    recorded: ManifestId
    made: ManifestId
    differing: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether every file and tensor came out as recorded."""
        return self.recorded == self.made


def replay(repo: Repository, revision: str, *, progress: Progress = SILENT) -> Replay:
    """Merge again as the recipe of a merge commit (or cherry-pick, revert, rebase) says, without keeping the result.

    What the first pass over the model found then is taken from the recipe, and so are the Fisher estimates and what was
    decided by hand.  Raises UsageError for a commit without a recipe, IntegrityError when an estimate is not here.
    """
    commit = repo.resolve(revision)
    record = repo.commit_at(commit)
    recipe = record.recipe
    if recipe is None:
        raise UsageError(f"{commit.short} was not made by a merge: it has no recipe", hint="`mgit log` marks merges")
    if len(record.parents) > 2:
        from modelgit.repo.merges.octopus import remade_many

        manifest = remade_many(repo, record.parents, recipe, progress=progress)
    else:
        manifest = _remade(repo, record, recipe, progress)
    changes = compare_manifests(repo, repo.manifest_at(record.manifest), manifest)
    differing = [f"{change.model}: {change.name}" for change in changes.tensors]
    differing += [change.path for change in changes.files]
    return Replay(commit, record.manifest, manifest_id(manifest), tuple(differing))


def _remade(repo: Repository, record: Commit, recipe: MergeRecipe, progress: Progress) -> Manifest:
    theirs = recipe.theirs or record.parents[-1]
    state = MergeState(
        ours=record.parents[0],
        theirs=theirs,
        base=recipe.base,
        message=record.message,
        strategy=recipe.strategy,
        options=recipe.options,
        rules=recipe.rules,
        resolutions=recipe.resolutions,
        verb="cherry-pick" if recipe.theirs is not None else "",
    )
    return remade(repo, state, recipe, sides_of(repo, state, progress=progress), progress=progress)
