"""What tests of kinds that run code of the repository share: trust, limits, the program itself, and kept outcomes."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelgit.config.suite_files import duration_s
from modelgit.errors import CheckFailed, MissingExtraError, UsageError
from modelgit.evals.base import Side, SuiteRun
from modelgit.evals.child import Answer, HarnessRequest, PythonRequest, digest_of
from modelgit.evals.kept import kept_as
from modelgit.evals.outcomes import Outcome, parse_outcome
from modelgit.evals.processes import Limits, environment_of, physical_memory_bytes, run_program

__all__ = ["asked_python", "home_of_test", "kept_outcome", "limits_of", "refuse_untrusted"]

_MAX_RESULT_BYTES = 256 << 20
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def refuse_untrusted(run: SuiteRun, what: str) -> None:
    """Raise UsageError where the code that the suite names is not trusted on this machine."""
    if run.distrust is not None:
        raise UsageError(f"{what} is code, and {run.distrust}", hint="look at it, then `mgit trust`")


def limits_of(timeout: str, memory_gib: float | None) -> Limits:
    """The limits of a test; without `memory_gib` the memory of the machine is the limit."""
    memory = physical_memory_bytes() if memory_gib is None else int(memory_gib * (1 << 30))
    return Limits(seconds=duration_s(timeout, where="`timeout`"), memory_bytes=memory)


@contextlib.contextmanager
def home_of_test(run: SuiteRun) -> Iterator[tuple[Path, dict[str, str]]]:
    """An empty home directory for one program, and its environment; both go when it has ended."""
    with tempfile.TemporaryDirectory(prefix="mgit-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder), environment_of(Path(folder), run.surroundings, seed=run.settings.seed)


def kept_outcome(
    run: SuiteRun, side: Side, key: str | None, compute: Callable[[], tuple[Outcome, Mapping[str, str]]]
) -> Outcome:
    """The outcome that is kept under `key` (None: none is), or what `compute` gives: an outcome and the files it read.

    What was kept counts only while the files of the work tree that the code asked for are as they were.
    """
    held = None if key is None else side.scores(key)
    if held is not None:
        known, read = kept_as(Outcome, held.get("outcome")), held.get("read")
        if known is not None and isinstance(read, dict) and _unchanged(run.root, read):
            return known
    outcome, files = compute()
    if key is not None:
        side.keep_scores(key, {"outcome": outcome.plain(), "read": dict(files)})
    return outcome


def _unchanged(root: Path, read: Mapping[str, Any]) -> bool:
    return all((root / path).is_file() and digest_of(root / path) == digest for path, digest in read.items())


def asked_python(
    run: SuiteRun,
    request: PythonRequest | HarnessRequest,
    *,
    what: str,
    limits: Limits,
) -> tuple[Outcome, Mapping[str, str]]:
    """Run a request in a Python of its own: the outcome, and the digests of the files that its code asked for.

    Raises CheckFailed, which calls it `what`, for anything that goes wrong in there, MissingExtraError for a package
    that it lacks.
    """
    with home_of_test(run) as (home, environment):
        result = home / "result.json"
        request = msgspec.structs.replace(request, result=str(result), memory_bytes=limits.memory_bytes)
        # -P: the directory it starts in is not searched for modules.
        finished = run_program(
            [sys.executable, "-P", "-c", "from modelgit.evals.child import main; main()"],
            what=what,
            limits=limits,
            directory=run.root,
            environment={**environment, **_OFFLINE},
            given=msgspec.json.encode(request),
            check=run.check,
        )
        if not result.is_file() or result.is_symlink() or result.stat().st_size > _MAX_RESULT_BYTES:
            last = finished.messages.strip().splitlines()[-1:]
            raise CheckFailed(f"{what} ended without an outcome" + "".join(f": {line[:300]}" for line in last))
        try:
            answer = msgspec.json.decode(result.read_bytes(), type=Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CheckFailed(f"{what} gave no outcome: {error}") from error
    if answer.error is not None or not bytes(answer.outcome):
        kind = MissingExtraError if answer.extra else CheckFailed
        raise kind(f"{what} failed: {answer.error or 'no reason given'}", hint=answer.hint)
    return parse_outcome(bytes(answer.outcome), what=what), answer.asked
