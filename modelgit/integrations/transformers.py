"""The Hugging Face Trainer under a mask: a callback that freezes, verifies, and commits the checkpoints it saves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import modelgit
from modelgit.errors import CheckFailed, MgitError, MissingExtraError, NothingToDo, UsageError
from modelgit.integrations.torch import Frozen, Positions, freeze_outside
from modelgit.integrations.torch_watch import places_of

if TYPE_CHECKING:
    from modelgit.repo import Repository
    from modelgit.repo.tracking.commit_records import CommitResult

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtraError(
        "the Trainer callback needs transformers", hint="`pip install 'modelgit[transformers]' accelerate`"
    ) from None

__all__ = ["MgitCallback"]


class MgitCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Give it to `Trainer(callbacks=[…])`: the run trains under `mask`, and what it saves can be committed.

    `mask` names a mask of the repository at `repo` ("latest" is the newest), or maps tensor names to positions as for
    `freeze_outside`; None freezes nothing.  Names of tensors are those of the checkpoint, with or without the prefix
    of the model's body; `tensor_of` (parameter to tensor) is for others.

    `commit_every=N` commits every N-th checkpoint that the Trainer saves, as it lies in the output directory, on
    `branch` (the current one) as `as_path` (the model of the mask, else the only tracked one); the work tree stays as
    it is. `message` may use `{step}` and `{epoch}`. With `verify`, everything outside the mask is checked before a
    commit and at the end; CheckFailed is raised when it is not what it was. `journal` and `journal_every` are those of
    `freeze_outside`.

    A commit that fails (a refusing gate, a full disk) is a warning at once and an error in the end, when training is
    over; with `on_error="now"` it stops the run.  `commits` holds the results, `errors` what failed.  In a run of
    several processes the first one commits and writes the journal.
    """

    def __init__(
        self,
        mask: str | Mapping[str, Positions] | None = "latest",
        *,
        repo: Repository | Path | str | None = ".",
        commit_every: int = 0,
        verify: bool = True,
        branch: str | None = None,
        as_path: str | None = None,
        message: str = "Step {step}",
        gate: str = "block",
        journal: Path | str | None = None,
        journal_every: int = 1,
        tensor_of: Mapping[str, str] | None = None,
        on_error: str = "end",
    ) -> None:
        if on_error not in ("end", "now"):
            raise UsageError(f"an error of a commit cannot be raised `{on_error}`", hint='"end" or "now"')
        if commit_every < 0:
            raise UsageError(f"no commit of every {commit_every} checkpoints", hint="0 commits none, 1 each of them")
        if repo is None and (isinstance(mask, str) or commit_every):
            raise UsageError("masks by name and commits need a repository", hint='`MgitCallback(repo=".")`')
        self.commits: list[CommitResult] = []
        self.errors: list[MgitError] = []
        self._place = repo
        self._mask_name = mask if isinstance(mask, str) else None
        self._given = None if isinstance(mask, str) else mask
        self._every, self._verify, self._now = commit_every, verify, on_error == "now"
        self._options: dict[str, Any] = {"branch": branch, "as_path": as_path, "gate": gate}
        self._message = message
        self._journal, self._journal_every = journal, journal_every
        self._tensor_of = tensor_of
        self._mask: Mapping[str, Positions] | None = None
        self._names: dict[str, str] = {}
        self._masks: tuple[str, ...] = ()
        self._flags: list[torch.nn.Parameter] = []
        self._frozen: Frozen | None = None
        self._opened: Repository | None = None
        self._reference: Mapping[str, Any] | None = None
        self._saved = 0

    # -- events of the Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Switch off gradients of what the mask leaves out, before a wrapper counts on them."""
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise UsageError(
                "a mask is by positions of whole parameters, and FSDP and DeepSpeed shard them",
                hint="train replicas (DistributedDataParallel)",
            )
        self._prepare(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Freeze."""
        self._unfreeze()
        self._saved, self.commits, self.errors = 0, [], []
        if self._mask is None:
            if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                raise UsageError(
                    "in several processes the callback must be there from the start",
                    hint="`Trainer(…, callbacks=[MgitCallback(…)])`",
                )
            self._prepare(kwargs["model"])
        if self._mask is not None:
            self._frozen = freeze_outside(
                kwargs["model"],
                self._mask,
                kwargs["optimizer"],
                tensor_of=self._names,
                journal=self._journal if state.is_world_process_zero else None,
                journal_every=self._journal_every,
                reference=self._reference,
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Commit the checkpoint, if it is its turn."""
        self._saved += 1
        if not self._every or self._saved % self._every or not state.is_world_process_zero:
            return
        self._check(f"step {state.global_step}")
        folder = Path(args.output_dir).absolute() / f"checkpoint-{state.global_step}"
        try:
            made = self._repository().commit(
                self._message.format(step=state.global_step, epoch=round(state.epoch or 0, 2)),
                source=str(folder),
                worktree=False,
                masks=self._masks,
                **self._options,
            )
            self.commits.append(made)
        except NothingToDo:
            return
        except MgitError as error:
            self.errors.append(error)
            if self._now:
                raise
            hint = f" (hint: {error.hint})" if error.hint else ""
            warnings.warn(f"{folder.name} was not committed: {error.message}{hint}", RuntimeWarning, stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Verify, let go, and raise what went wrong on the way."""
        try:
            self._check("the end of the run")
        finally:
            self._unfreeze()
            self._close()
        if self.errors:
            count = len(self.errors)
            raise CheckFailed(
                f"{count} checkpoint{'' if count == 1 else 's'} could not be committed: {self.errors[0].message}",
                hint=self.errors[0].hint or "`mgit commit --from CHECKPOINT` commits one that was kept",
            ) from self.errors[0]

    # -- within

    def _prepare(self, model: torch.nn.Module) -> None:
        """Find the mask, match its names with the model's, and switch off gradients of the rest."""
        known: Mapping[str, object] = self._given or {}
        if self._mask_name is not None:
            repo = self._repository()
            mask = repo.mask(self._mask_name)
            self._mask, self._masks = mask.positions(), (mask.id.hex,)
            known = self._reference = repo.load(model=mask.record.model)
            if self._options["as_path"] is None:
                self._options["as_path"] = mask.record.model
        elif self._given is not None:
            self._mask = self._given
        else:
            return
        self._names = dict(self._tensor_of or _matched(model, known))
        trained = {
            id(place.now()) for place in places_of(model) if self._names.get(place.name, place.name) in self._mask
        }
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                parameter.requires_grad_(False)
                self._flags.append(parameter)

    def _repository(self) -> Repository:
        if self._place is None:
            raise UsageError("this needs a repository", hint='`MgitCallback(repo=".")`')
        if not isinstance(self._place, (str, Path)):
            return self._place
        if self._opened is None:
            self._opened = modelgit.open(self._place)
        return self._opened

    def _check(self, where: str) -> None:
        if self._frozen is None or not self._verify:
            return
        found = self._frozen.verify()
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise CheckFailed(f"`{found[0].name}`{more} changed outside the mask before {where}")

    def _unfreeze(self) -> None:
        if self._frozen is not None:
            self._frozen.close()
            self._frozen = None

    def _close(self) -> None:
        for parameter in self._flags:
            parameter.requires_grad_(True)
        self._flags, self._mask, self._reference = [], None, None
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def _matched(model: torch.nn.Module, known: Mapping[str, object]) -> dict[str, str]:
    """Parameter to tensor names: checkpoints of a body have no prefix, those of a model with a head do."""
    prefix = getattr(model, "base_model_prefix", "")
    prefix = f"{prefix}." if prefix else ""
    found = {}
    for place in places_of(model):
        bare = place.name.removeprefix(prefix)
        found[place.name] = next((name for name in (place.name, bare, prefix + bare) if name in known), place.name)
    return found
