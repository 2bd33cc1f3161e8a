"""`mask create`: choose the values that a training run may change, by a score, within a budget."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import NothingToDo, UsageError
from modelgit.objects import CommitId, Manifest, TensorEntry
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model, views_of
from modelgit.repo.load import ModelState, model_state
from modelgit.repo.patches.fisher import DEFAULT_EXAMPLES, diagonal_of, estimate_fisher
from modelgit.repo.patches.masks import StoredMask, check_name, keep_mask
from modelgit.repo.tasks import encoded, open_task, task_examples, task_settings

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings
    from modelgit.fisher.mask import Positions
    from modelgit.fisher.scores import Arrays, Scores
    from modelgit.models.base import TaskModel
    from modelgit.repo.repository import Repository

__all__ = ["SCORES", "CreatedMask", "create_mask"]

SCORES = ("fisher", "magnitude", "gradient", "random", "bias")
_OF_CHANGES = ("fisher", "magnitude", "random")
# Where no task says which tensors are parameters, names do: torch's normalisation statistics, and tables that are
# computed and not trained.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids", "masked_bias")


class CreatedMask(NamedTuple):
    """A mask that was made.

    `examples` of the task were looked at, 0 for none; `cached_fisher` says that no Fisher pass was needed for it, and
    `fisher` where the Fisher information came from ("": none was used).  `allowed` is how many values the density
    allows: a difference may have fewer.
    """

    mask: StoredMask
    examples: int
    cached_fisher: bool
    allowed: int
    fisher: str = ""


class _Choice(NamedTuple):
    """What is chosen from: the tensors that may train (`head` among them), and how many more values there are."""

    manifest: Manifest
    model: str
    tensors: dict[str, TensorEntry]
    head: frozenset[str]
    frozen: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.spec.shape for name, entry in self.tensors.items()}

    @property
    def total(self) -> int:
        return self.frozen + sum(entry.spec.elements for entry in self.tensors.values())

    def only(self, names: Collection[str], *, head_too: bool = False) -> _Choice:
        """The same with the body (the head, too, if so wished) cut down to `names`; what goes counts as frozen."""
        left = {
            name: self.tensors[name] for name in self.tensors if name in names or (name in self.head and not head_too)
        }
        frozen = self.total - sum(entry.spec.elements for entry in left.values())
        return _Choice(self.manifest, self.model, left, self.head & left.keys(), frozen)

    def state(self, repo: Repository) -> ModelState:
        return model_state(repo, self.manifest, find_model(self.manifest, self.model))


def create_mask(
    repo: Repository,
    *,
    density: float | None = None,
    task: str | None = None,
    revision: str | None = None,
    score: str = "fisher",
    from_diff: tuple[str, str] | None = None,
    budget: str = "global",
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    head: Sequence[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    name: str | None = None,
    progress: Progress = SILENT,
) -> CreatedMask:
    """Choose the values to train: the `density` share of a task's model with the highest scores.

    "fisher" is the diagonal Fisher information at `revision` (FISH: Sung, Nair and Raffel, "Training Neural Networks
    with Fixed Sparse Masks", NeurIPS 2021), "gradient" the mean gradient of the labelled loss, "magnitude" the weight
    itself, "random" chance, "bias" every bias (BitFit; it takes no `density`).  With `from_diff` (A, B) only
    values that B changed against A are candidates, scored by F times the squared change, F at `revision`, else at A
    (or by the change alone, or by chance): to train again from A what a finished fine-tune needed most.

    The head (of the task, or the tensors with one of the prefixes `head`; none with an empty one) is taken whole and
    counted.  `include` and `exclude` are patterns of tensor names: the body is chosen from what the first match, and
    nothing that the second match trains; a density stays a share of the whole model.  Tensors that are no parameters
    never take part, and tied ones are one.  A repository without tasks has masks of its only model, by scores that
    need none.

    Holds the task's model while its tensors and scores are found, then one tensor at a time and the positions.
    Raises UsageError for choices that cannot be made, before any pass over data where that is possible.
    """
    if score not in SCORES:
        raise UsageError(f"no score `{score}`", hint=f"known: {', '.join(SCORES)}")
    if from_diff is not None and score not in _OF_CHANGES:
        raise UsageError(
            f"the score `{score}` does not go with a difference", hint=f"with it: {', '.join(_OF_CHANGES)}"
        )
    if (density is None) is not (score == "bias"):
        raise UsageError(
            "every bias is every bias: `--score bias` takes no density" if density is not None else "which density?",
            hint="`mgit mask create --score bias`" if density is not None else "`mgit mask create --density 0.5%`",
        )
    if name is not None:
        check_name(repo, name)
    at = repo.resolve(revision or (from_diff[0] if from_diff is not None else "HEAD"))
    start = at if from_diff is None else repo.resolve(from_diff[0])
    manifest = repo.manifest_of(start)
    settings: TaskSettings | None = None
    task_model: TaskModel | None = None
    if task is not None or repo.settings.task or score in ("fisher", "gradient"):
        task, settings = task_settings(repo, task)
        task_model = open_task(repo, manifest, settings)
    choice = _choose_from(repo, manifest, settings, task_model, head, include, exclude)
    changes: tuple[ModelState, ModelState] | None = None
    if from_diff is not None:
        end = repo.resolve(from_diff[1])
        changes = (choice.state(repo), _other_side(repo, end, choice))
        choice = choice.only([name for name in choice.tensors if _differs(name, *changes)])
        if not any(_differs(name, *changes) for name in choice.tensors):
            raise NothingToDo(
                f"{from_diff[1]} has the same trainable values of {choice.model} as {from_diff[0]}",
                hint=f"`mgit diff {from_diff[0]} {from_diff[1]}` shows what changed",
            )
    used, cached, fisher = 0, True, ""
    given: Arrays | None = None
    words = ["FISH" if score == "fisher" else score]
    if density is not None:
        words.append(f"density {density:g}")
    if task is not None:
        words.append(f"task {task}")
    if score == "gradient" and settings is not None and task_model is not None:
        used, given = _gradient(repo, manifest, settings, task_model, examples, seed, progress)
        words.append(f"{used} examples")
    del task_model  # a whole model, of which only the names are needed from here on
    if score == "fisher":
        stored = estimate_fisher(repo, task=task, revision=str(at), examples=examples, seed=seed, progress=progress)
        used, cached, given = stored.estimate.examples, stored.cached, diagonal_of(repo, stored.estimate)
        words += [f"{used} examples", stored.estimate.estimator]
        fisher = stored.words
    if score == "random":
        words.append(f"seed {seed}")
    if from_diff is not None:
        words.append(f"changed from {start.short} to {end.short}")
        if score == "fisher" and at != start:
            words.append(f"Fisher at {at.short}")
    if density is None:
        from modelgit.fisher.mask import bias_mask

        positions: Positions = bias_mask(choice.shapes, head=choice.head)
    else:
        from modelgit.fisher.mask import top_mask

        words.append(budget)
        positions = top_mask(
            _scores(repo, score, choice, given, changes, seed),
            density=density,
            head=choice.head,
            budget=budget,
            frozen=choice.frozen,
            positive=changes is not None,
        )
    words += [f"only {pattern}" for pattern in include] + [f"without {pattern}" for pattern in exclude]
    if not positions:
        raise UsageError("nothing is left to train", hint="`mgit diff A B` shows what changed" if changes else None)
    mask = keep_mask(
        repo, choice.model, positions, choice.tensors, origin=", ".join(words), total=choice.total, name=name
    )
    allowed = mask.record.count if density is None else round(density * choice.total)
    return CreatedMask(mask, used, cached, allowed, fisher)


def _choose_from(
    repo: Repository,
    manifest: Manifest,
    settings: TaskSettings | None,
    task_model: TaskModel | None,
    prefixes: Sequence[str] | None,
    include: Sequence[str],
    exclude: Sequence[str],
) -> _Choice:
    """The tensors of a mask: the parameters of a task's model, or what looks like parameters."""
    entry = find_model(manifest, settings.model if settings is not None else None)
    state = model_state(repo, manifest, entry)
    tied = {
        name: stored.name
        for name, (stored, view) in views_of(repo, manifest, entry).items()
        if view.spec in (None, stored.spec) and not view.offset and not view.strides and stored.name in state.entries
    }
    if task_model is not None:
        names = [tied.get(name, name) for name in task_model.tensor_of.values()]
        head = {tied.get(name, name) for name in (task_model.tensor_of[parameter] for parameter in task_model.head)}
    else:
        names = [name for name in state.entries if name not in tied and name.rsplit(".", 1)[-1] not in _BUFFERS]
        head = set()
    floats = {name: state.entries[name] for name in sorted({*names}) if state.entries[name].spec.kind.is_float}
    if prefixes is not None:
        head = {name for name in floats if any(name == p or name.startswith(p + ".") for p in prefixes)}
        if prefixes and not head:
            raise UsageError(
                f"no tensor of {entry.path} begins with {' or '.join(prefixes)}", hint="`mgit cat-tensor` lists them"
            )
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in floats):
            raise UsageError(f"no tensor of {entry.path} matches `{pattern}`", hint="`mgit cat-tensor` lists them")
    everything = _Choice(manifest, entry.path, floats, frozenset(head & floats.keys()), 0)
    chosen = [
        name
        for name in floats
        if (name in head or not include or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    ]
    return everything.only(chosen, head_too=True)


def _other_side(repo: Repository, end: CommitId, choice: _Choice) -> ModelState:
    """The model of the other side of a difference, which must have the same tensors."""
    manifest = repo.manifest_of(end)
    state = model_state(repo, manifest, find_model(manifest, choice.model))
    for name, entry in choice.tensors.items():
        if name not in state or state.entries[name].spec.shape != entry.spec.shape:
            what = "has no tensor" if name not in state else "has another shape of"
            raise UsageError(f"{choice.model} of {end.short} {what} `{name}`", hint="leave it out: `--exclude PATTERN`")
    return state


def _differs(name: str, before: ModelState, after: ModelState) -> bool:
    return before.entries[name].id != after.entries[name].id or name in {*before.views, *after.views}


def _gradient(
    repo: Repository,
    manifest: Manifest,
    settings: TaskSettings,
    task_model: TaskModel,
    examples: int,
    seed: int,
    progress: Progress,
) -> tuple[int, Arrays]:
    """The mean gradient on the task's training data, and on how many examples it was taken."""
    from modelgit.fisher.gradient import mean_gradient

    data = settings.train or settings.test
    if data is None:
        raise UsageError("the task has no data", hint='write `train = "data/train.jsonl"` under it in mgit.toml')
    rows, fingerprint = task_examples(repo, settings, data)
    inputs = encoded(repo, manifest, settings, rows, fingerprint)
    return min(examples, len(rows)), mean_gradient(task_model, inputs, limit=examples, seed=seed, progress=progress)


def _scores(
    repo: Repository,
    score: str,
    choice: _Choice,
    given: Arrays | None,
    changes: tuple[ModelState, ModelState] | None,
    seed: int,
) -> Scores:
    """What the tensors of `choice` are ranked by: `given` arrays, the weights, what changed, or chance."""
    from modelgit.fisher.scores import among_changed, change_scores, given_scores, magnitude_scores, random_scores

    shapes = choice.shapes
    if changes is not None:
        before, after = (state.arrays() for state in changes)
        if score == "random":
            return among_changed(random_scores(shapes, seed=seed), change_scores(shapes, before, after))
        return change_scores(shapes, before, after, diagonal=given)
    if score == "random":
        return random_scores(shapes, seed=seed)
    return given_scores(shapes, given) if given is not None else magnitude_scores(shapes, choice.state(repo).arrays())
