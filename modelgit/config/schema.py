"""Settings as typed records: what `mgit.toml`, the user's file and `.mgit/config.toml` may say.

Every table has defaults; unknown keys are refused by name where the files are read (`config.load`).
"""

from __future__ import annotations

import glob
from typing import Annotated
from typing import Literal as OneOf

import msgspec

from modelgit.objects.paths import is_within
from modelgit.objects.policies import RefPolicy

__all__ = [
    "TRAINING_NAMES",
    "EvalSettings",
    "GateSettings",
    "Limit",
    "MergeSettings",
    "RemoteSettings",
    "RetentionSettings",
    "Settings",
    "StorageSettings",
    "TaskKind",
    "TaskSettings",
    "TrackSettings",
    "UserSettings",
]


TRAINING_NAMES = (
    "checkpoint-*/",
    "global_step*/",
    "optimizer*.pt",
    "optimizer*.bin",
    "optimizer*.safetensors",
    "scheduler*.pt",
    "scheduler*.bin",
    "rng_state*.pth",
    "random_states_*",
    "scaler.pt",
    "trainer_state.json",
    "training_args.bin",
    "*.distcp",
    ".metadata",
)
"""Names that transformers, accelerate, DeepSpeed and torch give to the state of a training run."""

IGNORED = ("checkpoint-*/", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "training_args.bin")


TaskKind = OneOf[
    "sequence-classification",
    "regression",
    "token-classification",
    "question-answering",
    "causal-lm",
    "masked-lm",
    "sentence-embedding",
    "image-classification",
]
"""What the model of a task computes."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table; unknown keys are refused."""


class UserSettings(Table, frozen=True, kw_only=True):
    """Who commits; `signing_key` is the file of the private ssh key that signs verdicts."""

    name: str | None = None
    email: str | None = None
    signing_key: str | None = None


class TrackSettings(Table, frozen=True, kw_only=True):
    """What is recorded: files and directories, relative to the repository root, and glob patterns to leave out.

    `training_state` lists files and directories that are recorded beside the model, with a retention of their own.
    Files that match a pattern of `opaque` are recorded byte for byte, without a look at what they are.
    """

    paths: tuple[str, ...] = ()
    ignore: tuple[str, ...] = IGNORED

    training_state: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Patterns of what is not part of a model: `ignore`, and what is recorded as training state."""
        if not self.training_state:
            return self.ignore
        found = list(self.ignore)
        for place in self.training_state:
            found += self.training_patterns(place) or (f"{glob.escape(place)}/", glob.escape(place))
        return tuple(dict.fromkeys(found))

    @property
    def ignore_in_training(self) -> tuple[str, ...]:
        """The patterns of `ignore` that are not there to leave out training state."""
        return tuple(pattern for pattern in self.ignore if pattern not in (*IGNORED, *TRAINING_NAMES))

    def training_patterns(self, place: str) -> tuple[str, ...] | None:
        """Patterns of training state below `place`, a path of `training_state`; None where everything is.

        A place that holds a tracked model, or is one, is shared with it: there, names decide.
        """
        shared = any(path == "." or is_within(path, place) for path in self.paths)
        return TRAINING_NAMES if shared else None


class StorageSettings(Table, frozen=True, kw_only=True):
    """How records are made.

    `threads` 0 means one per processor, `effort` trades time for space, `verify` decodes everything again before it is
    written.  `activations_mib` is how much of the outputs of unchanged layers is kept for evaluations of the next
    model that shares them.
    """

    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    effort: OneOf["fast", "balanced", "tight"] = "balanced"
    verify: bool = False
    activations_mib: Annotated[int, msgspec.Meta(ge=0)] = 0


class TaskSettings(Table, frozen=True, kw_only=True):
    """A model together with data: something that can be scored and differentiated.

    `model` is a tracked path; `adapter` names how its tensors become a function ("bert-classifier",
    "transformers"), or `entry` names a Python `module:function` that builds an `nn.Module` (needs `mgit trust`).
    `kind` is what the model computes, where its config.json does not say.  `head` is the prefix of the head's
    tensors.

    `train` and `test` are files of examples (.jsonl, .csv, .tsv, .txt, .parquet).  The settings from `text` to
    `image` name fields of their records: `text` and `label`, with `pair` a second text; words and their tags are
    `text` and `label`, too, as lists; `question`, `context`, `answer` and `answer_start` are those of question
    answering, and `image` is that of images.  `labels` lists classes in the order of the head's outputs.  `split`
    says how a .txt file is cut into examples.

    `max_length` is in tokens.  `pooling` and `normalize` say how a sentence's embedding is made of its tokens'.
    """

    model: str
    kind: TaskKind | None = None
    adapter: str | None = None
    entry: str | None = None
    head: str = "classifier"
    train: str | None = None
    test: str | None = None
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ()
    question: str = "question"
    context: str = "context"
    answer: str = "answer"
    answer_start: str = "answer_start"
    image: str = "image"
    split: OneOf["lines", "blocks"] = "lines"
    max_length: Annotated[int, msgspec.Meta(ge=1)] = 64
    tokenizer: str | None = None
    pooling: OneOf["mean", "first"] = "mean"
    normalize: bool = False


class Limit(Table, frozen=True, kw_only=True):
    """One limit of a suite, in the metric's own unit (0.01 is one per cent).

    `min` and `max` are absolute; `max_drop` and `max_rise` are against the baseline.  `level` says what
    breaking it does.
    """

    min: float | None = None
    max: float | None = None
    max_drop: float | None = None
    max_rise: float | None = None
    level: OneOf["block", "warn", "info"] = "block"


class EvalSettings(Table, frozen=True, kw_only=True):
    """A small suite: one task's test data (or `data`) with limits.

    `negative_flips` is b/N over all N examples: right in the baseline, wrong in the candidate.
    """

    task: str
    data: str | None = None
    accuracy: Limit | None = None
    negative_flips: Limit | None = None
    kl: Limit | None = None
    examples: Annotated[int, msgspec.Meta(ge=1)] | None = None
    seed: int = 0
    alpha: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.05
    sampling: OneOf["adaptive", "random", "full"] = "full"


class GateSettings(Table, frozen=True, kw_only=True):
    """When suites run: before a change is recorded, or ("push") later and on any machine, before others take it.

    With "push" a commit is recorded with verdicts that are pending; the built-in gate runs all the same.
    """

    when: OneOf["commit", "push"] = "commit"


class RetentionSettings(Table, frozen=True, kw_only=True):
    """Which commits of a family of branches keep their weights when `mgit prune` is run.

    The name of the table is a pattern of branch names (`runs/*`), or "training-state" for the state of training that
    lies beside the weights of any branch.  Kept are the `last` commits of each branch, `every` N-th counted from the
    first commit of the history (0: none), and the `best_count` best by the metric `best`: the name of a check of a
    verdict ("accuracy", "smoke.accuracy"), of which the `goal` is "max" or "min".
    """

    last: Annotated[int, msgspec.Meta(ge=1)] = 1
    every: Annotated[int, msgspec.Meta(ge=0)] = 0
    best: str | None = None
    best_count: Annotated[int, msgspec.Meta(ge=1)] = 1
    goal: OneOf["max", "min"] = "max"


class MergeSettings(Table, frozen=True, kw_only=True):
    """How values that both sides of a merge changed are combined.

    `strategy` is a strategy with its options, as after `mgit merge --strategy` ("ties density=0.3"); `rules` are
    other ones for tensors of some names, "PATTERN=STRATEGY".

    Of a tensor in which more than the share `sign_limit` of what both sides changed moved in different directions, a
    merge says so; with `block_signs` it stops and asks.
    """

    strategy: str = "fisher"
    rules: tuple[str, ...] = ()
    sign_limit: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.6
    block_signs: bool = False


class RemoteSettings(Table, frozen=True, kw_only=True):
    """A remote repository."""

    url: str


class Settings(Table, frozen=True, kw_only=True):
    """All settings after the layers are merged."""

    user: UserSettings = UserSettings()
    track: TrackSettings = TrackSettings()
    storage: StorageSettings = StorageSettings()
    task: dict[str, TaskSettings] = {}
    eval: dict[str, EvalSettings] = {}
    gate: GateSettings = GateSettings()
    merge: MergeSettings = MergeSettings()
    remote: dict[str, RemoteSettings] = {}
    retention: dict[str, RetentionSettings] = {}
    policy: dict[str, RefPolicy] = {}
