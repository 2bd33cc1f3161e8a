"""`pin`, `mft`, `inv` and `dir`: what a model has to do on cases that somebody wrote down.

Minimum functionality, invariance and direction are those of Ribeiro et al., "Beyond Accuracy: Behavioral Testing of NLP
Models with CheckList", ACL 2020.  All cases are run, whatever the suite's sampling: they are few, and each is there for
a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelgit.config.suites import CheckListTest, DirTest, InvTest, MftTest, PinTest
from modelgit.errors import UsageError
from modelgit.evals.base import Dataset, SuiteRun
from modelgit.evals.checks import Row, allowed_count, rate_limit_text
from modelgit.evals.paired import predictions_at
from modelgit.models.base import Example
from modelgit.objects import CheckResult, Decision

__all__ = ["run_dir", "run_inv", "run_mft", "run_pin"]

_SHOWN = 10


def run_pin(test: PinTest, run: SuiteRun) -> Iterator[Row]:
    """One line: every pinned example has to be right.  Raises UsageError for one without a label."""
    data = run.data_of(test)
    yield _line("pinned", run, data, _wrong(run, data), test, "right")


def run_mft(test: MftTest, run: SuiteRun) -> Iterator[Row]:
    """One line: at most `max_fail` of the examples may be wrong.  Raises UsageError for one without a label."""
    data = run.data_of(test)
    yield _line("functionality", run, data, _wrong(run, data), test, "right")


def run_inv(test: InvTest, run: SuiteRun) -> Iterator[Row]:
    """One line: from `text` to `changed` the prediction stays, or its probability moves by at most `tolerance`.

    Raises UsageError for a record without a changed text.
    """
    data = run.data_of(test)
    before, after = _both(run, data, test.changed)
    old, new = _labels(before), _labels(after)
    broken = (old < 0) | (new < 0) | (old != new)
    if test.tolerance is not None:
        # What moved is the probability of the class that was predicted.
        rows = np.arange(len(data))
        moved = np.abs(np.exp(after[rows, old]) - np.exp(before[rows, old]))
        broken &= ~(moved <= test.tolerance)
    yield _line("invariance", run, data, broken, test, "predicted alike")


def run_dir(test: DirTest, run: SuiteRun) -> Iterator[Row]:
    """One line: from `text` to `changed` the probability of `label` does not move against `direction`.

    It may by `tolerance`.  Raises UsageError for a record without a label or a changed text.
    """
    data = run.data_of(test)
    gold = _gold(data)
    before, after = _both(run, data, test.changed)
    rows = np.arange(len(data))
    rise = np.exp(after[rows, gold]) - np.exp(before[rows, gold])
    against = -rise if test.direction == "up" else rise
    # `not <=` counts NaN as broken.
    yield _line(f"direction {test.direction}", run, data, ~(against <= test.tolerance), test, "as they should")


def _line(
    name: str, run: SuiteRun, data: Dataset, broken: NDArray[np.bool_], test: CheckListTest | PinTest, good: str
) -> Row:
    broken = run.counted(test.name, data, broken, _all(data))
    total, count = len(data), int(np.count_nonzero(broken))
    allowed, limit = 0, "0 failures"
    if isinstance(test, CheckListTest):
        allowed, limit = allowed_count(test.max_fail, total), rate_limit_text(test.max_fail)
    decision: Decision = "fail" if count > allowed else "pass"
    detail = f"all {total:,} {good}"
    if count:
        ids = [data.examples[position].id for position in np.flatnonzero(broken).tolist()]
        detail = f"{count:,} of {total:,} not {good}: {_listed(ids)}"
    result = CheckResult(
        name=name,
        decision=decision,
        value=count / total,
        limit=limit,
        detail=detail,
        examples=total,
        total=total,
        broken=count,
    )
    return Row(result, decision)


def _listed(ids: Sequence[str]) -> str:
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _all(data: Dataset) -> NDArray[np.int64]:
    return np.arange(len(data), dtype=np.int64)


def _gold(data: Dataset) -> NDArray[np.int64]:
    without = np.flatnonzero(data.labels < 0).tolist()
    if without:
        raise UsageError(
            f"{len(without):,} of the {len(data):,} examples of `{data.name}` have no label: "
            f"{_listed([data.examples[position].id for position in without])}"
        )
    return data.labels


def _wrong(run: SuiteRun, data: Dataset) -> NDArray[np.bool_]:
    gold = _gold(data)
    wrong: NDArray[np.bool_] = predictions_at(run, run.candidate, data, _all(data)).labels != gold
    return wrong


def _labels(log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The predicted class, -1 for a row with NaN."""
    from modelgit.evals.metrics import top_labels

    return top_labels(log_probs).astype(np.int64)


def _both(run: SuiteRun, data: Dataset, changed: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities `[N, C]` for the texts as they are, and for the changed ones."""
    found = predictions_at(run, run.candidate, data, _all(data)).log_probs
    other = _with_changed(data, changed)
    return found, predictions_at(run, run.candidate, other, _all(other)).log_probs


def _with_changed(data: Dataset, changed: str) -> Dataset:
    """The same examples with their changed text; their predictions are kept under a fingerprint of their own."""
    examples = []
    for example in data.examples:
        text = example.fields.get(changed)
        if not isinstance(text, str) or not text.strip():
            raise UsageError(
                f"example `{example.id}` of `{data.name}` has no text in the field `{changed}`",
                hint='write `changed = "FIELD"` in the test, or {"text": ..., "changed": ...} in each record',
            )
        examples.append(_replaced(data, example, changed, text))
    content = msgspec.json.encode(("changed", data.fingerprint, changed))
    return Dataset(
        name=f"{data.name}\0{changed}",
        task=data.task,
        examples=tuple(examples),
        fingerprint=blake3(content).hexdigest(),
        labels=data.labels,
    )


def _replaced(data: Dataset, example: Example, changed: str, text: str) -> Example:
    """The example with another text, in its fields, too, which an entry's `encode` may read."""
    fields = {name: value for name, value in example.fields.items() if name != changed}
    if data.task.text in fields:
        fields[data.task.text] = text
    return example._replace(text=text, fields=fields)
