"""The schema of suite files, `evals/NAME.toml`: what is asked of a model before a change of it may land."""

from __future__ import annotations

from typing import Annotated
from typing import Literal as OneOf

import msgspec

from modelgit.config.schema import Limit, Table

__all__ = [
    "CheckListTest",
    "ClassificationTest",
    "CodeTest",
    "DataSettings",
    "DirTest",
    "InvTest",
    "KlTest",
    "LmEvalTest",
    "MetricLimit",
    "MftTest",
    "NfrTest",
    "PerplexityTest",
    "PinTest",
    "ProgramTest",
    "PythonTest",
    "ReportSettings",
    "ResourcesTest",
    "RetrievalTest",
    "RunSettings",
    "ShellTest",
    "Stage",
    "SuiteFile",
    "TestTable",
]

Stage = OneOf["commit", "push", "release"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class RunSettings(Table, frozen=True, kw_only=True):
    """How a suite runs.

    `stage` is when it is due.  `baselines` are "parent" (of a merge each one), "parent:1" (the first), "tag:PATTERN"
    (the newest tag that matches), "merge-base:REF", "branch:NAME" or a revision; each must be passed.  `seed` fixes the
    order in which examples are drawn, `alpha` bounds the probability of a wrong early verdict, `budget` the wall time
    ("60s", "5m"): what is undecided by then is inconclusive, never a pass.  `examples` takes only the first so many of
    the drawing order.
    """

    stage: Stage = "commit"
    baselines: tuple[str, ...] = ("parent",)
    seed: int = 0
    budget: str | None = None
    device: str = "cpu"
    dtype: OneOf["float32", "bfloat16", "float16", "float64"] = "float32"
    alpha: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.05
    sampling: OneOf["adaptive", "random", "full"] = "adaptive"
    on_inconclusive: OneOf["block", "warn"] = "block"
    examples: Count | None = None


class DataSettings(Table, frozen=True, kw_only=True):
    """A file of examples, relative to the repository root, read as the data of a task.

    `task` names the task of mgit.toml that reads it and whose model it is for (the suite's own by default); the other
    settings stand for those of that task.  `slices` are fields by whose values results are also given.  `cluster` is a
    field whose equal values belong together (a passage, a dialogue): they are drawn together.
    """

    path: str
    task: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    id: str = "id"
    slices: tuple[str, ...] = ()
    cluster: str | None = None


class MetricLimit(Limit, frozen=True, kw_only=True):
    """A limit of one metric; `max_ratio` is against the baseline (1.05: five per cent more).

    `repeats` is how often a duration is measured, of which the median counts.
    """

    max_ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None
    repeats: Count | None = None

    @property
    def relative(self) -> bool:
        """Whether it compares with a baseline."""
        return self.max_drop is not None or self.max_rise is not None or self.max_ratio is not None


class TestTable(Table, frozen=True, kw_only=True, tag_field="kind"):
    """What every test has: a name, and what breaking it does.

    Data are named by `data` (a table `[data.NAME]` of the suite) or given by `path`.
    """

    __test__ = False  # not a test of ours

    name: str
    level: OneOf["block", "warn", "info"] = "block"


class DataTest(TestTable, frozen=True, kw_only=True):
    """A test on a set of examples."""

    data: str | None = None
    path: str | None = None


class NfrTest(DataTest, frozen=True, kw_only=True, tag="nfr"):
    """Negative flips: at most `max` of all examples may go from right to wrong against a baseline.

    `max_vs` has other limits for some baselines, by their names or patterns of these ("tag:v*").  Without any limit
    they are only counted.  No slice of at least `slice_min_n` examples may lose more than `slice_max` of its own.
    """

    max: Share | None = None
    max_vs: dict[str, Share] = {}
    slice_max: Share | None = None
    slice_min_n: Count = 50


class ClassificationTest(DataTest, frozen=True, kw_only=True, tag="classification"):
    """Metrics of a classifier: accuracy, macro_f1, ece (15 bins), nll (nats), churn."""

    metrics: dict[OneOf["accuracy", "macro_f1", "ece", "nll", "churn"], MetricLimit]


class KlTest(DataTest, frozen=True, kw_only=True, tag="kl"):
    """Drift: KL(baseline || candidate) of each output on data that need no labels, in nats."""

    max: Annotated[float, msgspec.Meta(ge=0)] | None = None
    p99_max: Annotated[float, msgspec.Meta(ge=0)] | None = None


class PerplexityTest(DataTest, frozen=True, kw_only=True, tag="perplexity"):
    """exp of the mean loss per token of a language model on texts."""

    max: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None


class PinTest(DataTest, frozen=True, kw_only=True, tag="pin"):
    """Examples that must be right, all of them, whatever the baseline does: faults that were mended once."""


class CheckListTest(DataTest, frozen=True, kw_only=True):
    """A behavioural test (Ribeiro et al., "Beyond Accuracy", ACL 2020): at most `max_fail` of the cases may fail."""

    max_fail: Share = 0.0


class MftTest(CheckListTest, frozen=True, kw_only=True, tag="mft"):
    """Minimum functionality: simple examples with one right label."""


class InvTest(CheckListTest, frozen=True, kw_only=True, tag="inv"):
    """Invariance: records with `text` and `changed`; the prediction stays the same, or moves by at most `tolerance`."""

    changed: str = "changed"
    tolerance: Share | None = None


class DirTest(CheckListTest, frozen=True, kw_only=True, tag="dir"):
    """Direction: the probability of `label` does not fall ("up") or rise ("down") from `text` to `changed`.

    It may move the wrong way by `tolerance`.
    """

    changed: str = "changed"
    direction: OneOf["up", "down"] = "up"
    tolerance: Share = 0.1


class RetrievalTest(DataTest, frozen=True, kw_only=True, tag="retrieval-compat"):
    """New queries against the index that the baseline built (Shen et al., "Backward-Compatible Training", CVPR 2020).

    R@k(new query, old index) is at most `max_drop` below R@k(old, old); the mean cosine of new and old embeddings is
    at least `min_cosine`.  Two examples match when their labels are equal.
    """

    k: Count = 1
    max_drop: Share | None = None
    min_cosine: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None = None


class ProgramTest(TestTable, frozen=True, kw_only=True):
    """A test that a program of its own scores: metrics by name, and a score for each example.

    At most `nfr_max` of the examples may have a score that is more than `dead_band` below that in a baseline.
    `timeout` is wall time for one model.
    """

    metrics: dict[str, MetricLimit] = {}
    nfr_max: Share | None = None
    dead_band: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    timeout: str = "10m"


class LmEvalTest(ProgramTest, frozen=True, kw_only=True, tag="lm-eval"):
    """Tasks of the lm-evaluation-harness (extra `lm-eval`), without a hub.

    `include_path` is a directory of the repository with the YAML of tasks (needs `mgit trust`).  `metric` is the one
    whose values for single documents are compared by `nfr_max`; `limit` takes only the first so many documents.
    """

    tasks: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    task: str | None = None
    include_path: str | None = None
    metric: str = "acc"
    limit: Count | None = None


class CodeTest(ProgramTest, frozen=True, kw_only=True):
    """A test that runs code of the repository, which needs `mgit trust`.

    It may use `memory_gib` of private memory (by default what the machine has).  With `cache` "weights" its outcome is
    kept by what it depends on.
    """

    memory_gib: Annotated[float, msgspec.Meta(gt=0)] | None = None
    cache: OneOf["weights", "none"] = "weights"


class PythonTest(CodeTest, frozen=True, kw_only=True, tag="python"):
    """A function of the repository, `FILE.py:NAME`, called as `check(model, context)`.

    It gives a number, a mapping of metrics, or a list of records {"id", "score"}.
    """

    entry: str
    task: str | None = None


class ShellTest(CodeTest, frozen=True, kw_only=True, tag="shell"):
    """A command that prints one JSON object {"metrics": {...}, "examples": [{"id", "score"}]}.

    `{checkout}` is replaced by a directory with the files of the revision.
    """

    command: str


class ResourcesTest(DataTest, frozen=True, kw_only=True, tag="resources"):
    """What a model costs: bytes of its weights, parameters, p50_ms of a forward pass on one example of the data.

    With `cache` "weights" durations are kept for machines of this kind.
    """

    metrics: dict[OneOf["bytes", "parameters", "p50_ms"], MetricLimit]
    task: str | None = None
    cache: OneOf["weights", "none"] = "weights"


class ReportSettings(Table, frozen=True, kw_only=True):
    """Files that are written after a run, relative to where it runs, and how many flips they list."""

    junit: str | None = None
    markdown: str | None = None
    html: str | None = None
    show_flips: Annotated[int, msgspec.Meta(ge=0)] = 20


AnyTest = (
    NfrTest
    | ClassificationTest
    | KlTest
    | PerplexityTest
    | PinTest
    | MftTest
    | InvTest
    | DirTest
    | RetrievalTest
    | LmEvalTest
    | PythonTest
    | ShellTest
    | ResourcesTest
)


class SuiteFile(Table, frozen=True, kw_only=True):
    """One file `evals/NAME.toml`; `task` is the task of mgit.toml whose model it measures."""

    schema: OneOf[1] = 1
    task: str | None = None
    run: RunSettings = RunSettings()
    data: dict[str, DataSettings] = {}
    test: tuple[AnyTest, ...] = ()
    report: ReportSettings = ReportSettings()
