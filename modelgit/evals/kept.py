"""Names under which tests keep numbers for the weights of a side: they cover all else that the numbers depend on.

Kept numbers are asked for by the weights and such a name; limits, and where data lie, are part of neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
from blake3 import blake3

from modelgit.evals.base import Dataset, Side, SuiteRun

if TYPE_CHECKING:
    from modelgit.config.schema import TaskSettings

__all__ = ["kept_as", "outcome_key", "output_key", "plain_task"]

T = TypeVar("T")


def outcome_key(kind: str, run: SuiteRun, side: Side, *asked: object) -> str:
    """Of what a program of the test's own gave: what it was `asked`, the code of the suite, seed, device, libraries."""
    settings = run.settings
    surroundings = (settings.seed, settings.device, settings.dtype), sorted(side.versions.items())
    return _named(kind, asked, sorted(run.code.items()), *surroundings)


def output_key(kind: str, run: SuiteRun, side: Side, data: Dataset, *asked: object) -> str:
    """Of what the model of `side` gives for `data`: task, data, device, libraries, and code where the task names some.

    `asked` is what else counts: the weights of a baseline, which examples, how often.
    """
    code = sorted(run.code.items()) if data.task.entry is not None else []
    surroundings = (run.settings.device, run.settings.dtype), sorted(side.versions.items())
    return _named(kind, plain_task(side, data.task), data.fingerprint, code, *surroundings, asked)


def plain_task(side: Side, task: TaskSettings) -> TaskSettings:
    """The task as far as it says what is computed: the side's model, and not where data lie."""
    return msgspec.structs.replace(task, train=None, test=None, model=side.model_path(task))


def kept_as(kind: type[T], value: object) -> T | None:
    """What was kept, as the record that it was made of; None for anything that does not read as one."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _named(kind: str, *content: object) -> str:
    return f"{kind}:{blake3(msgspec.json.encode((kind, content), order='deterministic')).hexdigest()}"
