"""What `mgit check` found about an update, as one record: reports render it, and read nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal as OneOf

from modelgit.objects.canonical import Record
from modelgit.objects.evaluations import EvalRecord
from modelgit.objects.ids import CommitId

__all__ = ["HARMLESS", "CheckReport", "CheckSection", "Finding", "Outcome", "PatchFacts", "worst"]

Outcome = OneOf["pass", "warn", "fail", "error", "inconclusive", "skip"]
"""The last word on one part of a check.

"warn": something to look at, which refuses nothing; "error": it could not be found out, which is no pass;
"inconclusive": a suite that was not decided; "skip": there was nothing to check, and `summary` says why.
"""
HARMLESS: frozenset[Outcome] = frozenset({"pass", "warn", "skip"})
"""What keeps no update out."""

_ORDER: tuple[Outcome, ...] = ("skip", "pass", "warn", "inconclusive", "error", "fail")


class Finding(Record, frozen=True, kw_only=True):
    """One thing to look at.

    `rule` is a stable name of the kind of finding ("values/nonfinite", "safety/pickle", "policy/stale-baseline"):
    reports group by it.  `message` is a sentence; `hint`, where there is one, says what to type or do.  `path` is the
    file, or the model, that it is about, `tensor` the tensor of it, `commit` the commit; "" and None where it is about
    none.  `details` are lines that belong to it (rows, keys), at most a few.
    """

    rule: str
    level: OneOf["error", "warning", "note"]
    message: str
    hint: str = ""
    path: str = ""
    tensor: str = ""
    commit: CommitId | None = None
    details: tuple[str, ...] = ()

    @property
    def about(self) -> tuple[str, ...]:
        """What it is about, from the file to the commit, as far as it is about any."""
        return tuple(filter(None, (self.path, self.tensor, self.commit.short if self.commit is not None else "")))


class CheckSection(Record, frozen=True, kw_only=True):
    """One part of a check ("objects", "patch", "schema", "values", "safety", "suspicious", "eval smoke", ...).

    `summary` is a line for people; `evaluation` is the verdict where the part is a suite.  `seconds` is wall time.
    """

    name: str
    outcome: Outcome
    summary: str
    findings: tuple[Finding, ...] = ()
    evaluation: EvalRecord | None = None
    seconds: float


class PatchFacts(Record, frozen=True, kw_only=True):
    """What an update changes, in numbers: what policies decide on, from manifests and records alone.

    `bytes_added` is what the new commits store, `raw_bytes` the size of the model after them.  `values_changed` of
    `values` differ in the `tensors_changed` of `tensors`; None where nobody counted (an integer-typed or re-shaped
    tensor counts whole).  `dense` says whether any tensor changed in more than a tenth of its values; `lossy` names
    commits whose patch was not exact.  The paths are of files that are new or changed: `code` (anything that a model
    loader may run), `tokenizer`, `chat_template`, `gate` (suites, signers, policies); `auto_map` are the classes that
    config files newly name.
    """

    commits: int = 0
    bytes_added: int = 0
    raw_bytes: int = 0
    tensors: int = 0
    tensors_changed: int = 0
    tensors_added: int = 0
    tensors_removed: int = 0
    tensors_respecified: int = 0
    values: int = 0
    values_changed: int | None = None
    dense: bool = False
    lossy: tuple[CommitId, ...] = ()
    code: tuple[str, ...] = ()
    auto_map: tuple[str, ...] = ()
    tokenizer: tuple[str, ...] = ()
    chat_template: tuple[str, ...] = ()
    gate: tuple[str, ...] = ()


class CheckReport(Record, frozen=True, kw_only=True):
    """A check of `revision` (a name that was typed; `commit` is what it meant) against `base`.

    `base_commit` None: the base does not exist, everything is new.  `commits` are new over the base, parents first.
    `branch` is the branch that `base` stands for, "" where it is none.
    """

    revision: str
    commit: CommitId
    base: str
    base_commit: CommitId | None
    branch: str = ""
    commits: tuple[CommitId, ...] = ()
    facts: PatchFacts
    sections: tuple[CheckSection, ...] = ()
    seconds: float

    @property
    def outcome(self) -> Outcome:
        """The worst of all parts."""
        return worst(section.outcome for section in self.sections)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the update; warnings do not."""
        return self.outcome in HARMLESS


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome that counts among several: "fail" over "error" over "inconclusive" over "warn" over "pass"."""
    return max(outcomes, key=_ORDER.index, default="skip")
