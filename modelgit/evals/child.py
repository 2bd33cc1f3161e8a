"""The program in which a test's own Python runs: reads a request, runs the code, writes one JSON file.

It is started by `evals.kinds.python` and `evals.kinds.harness` with limits and an environment of its own (see
`evals.processes`), reads the model from a directory and knows nothing of repositories.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import random
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from modelgit.config.schema import TaskSettings
from modelgit.errors import MgitError, UsageError
from modelgit.evals.outcomes import NAMELESS
from modelgit.models.base import Example, ExampleSet, TaskModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Answer", "HarnessRequest", "PythonRequest", "TestContext", "digest_of", "main"]


class PythonRequest(msgspec.Struct, frozen=True, kw_only=True, tag="python"):
    """Call `function` of the file `source` with the model of `task` below `checkout`; the outcome goes to `result`."""

    source: str
    function: str
    root: str
    checkout: str
    task: TaskSettings
    result: str
    seed: int
    device: str = "cpu"
    dtype: str = "float32"
    memory_bytes: int | None = None


class HarnessRequest(msgspec.Struct, frozen=True, kw_only=True, tag="lm-eval"):
    """Run `tasks` of the lm-evaluation-harness on the model directory `model`; the outcome goes to `result`.

    `limit` takes the first so many documents of each; `documents`, by task and ascending, those of these numbers.
    """

    tasks: tuple[str, ...]
    include_path: str | None
    metric: str
    root: str
    model: str
    result: str
    seed: int
    limit: int | None = None
    documents: dict[str, tuple[int, ...]] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    memory_bytes: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written to `result`: the outcome as JSON, or one sentence that says why there is none.

    `asked` are the files of the work tree that the code asked for, by path, with their hex BLAKE3.
    """

    outcome: msgspec.Raw = msgspec.Raw()
    asked: dict[str, str] = {}
    error: str | None = None
    hint: str | None = None
    extra: bool = False


@dataclass(frozen=True)
class TestContext:
    """What `check(model, context)` is given beside the model.

    `seed` is that of the suite; `root` is the work tree, `checkout` a read-only directory with the files of the
    revision; `task` are the settings of the model's task, `files` the small files beside its weights by base name.
    `asked` notes the files of the work tree that were asked for, with their BLAKE3.
    """

    __test__ = False  # not a test of ours

    seed: int
    root: Path
    checkout: Path
    task: TaskSettings
    files: Mapping[str, bytes]
    asked: dict[str, str] = field(default_factory=dict)

    def examples(self, path: str) -> tuple[Example, ...]:
        """The examples of a data file of the work tree, relative to its root, read as the task says."""
        from modelgit.models.data import read_examples

        place = self.file(path)
        return read_examples(place, self.task, shown=path, folder=place.parent)[0]

    def file(self, path: str) -> Path:
        """Where a file of the work tree lies; what the test gives is kept by the content of the files it asked for.

        Raises UsageError for one that is not there, or not below the root.
        """
        from modelgit.objects.paths import path_problem

        problem = path_problem(path)
        place = self.root / path
        if problem is not None or not place.is_file():
            raise UsageError(f"the file {path!a} cannot be read: {problem or 'it is not there'}")
        self.asked[path] = digest_of(place)
        return place

    def encode(self, examples: Iterable[Example | str]) -> ExampleSet:
        """The model's inputs for examples or plain texts."""
        from modelgit.models.load import encode_examples

        made = tuple(
            Example(str(number), item, -1, MappingProxyType({})) if isinstance(item, str) else item
            for number, item in enumerate(examples, start=1)
        )
        return encode_examples(self.task, made, "", self.files, trusted=True, root=self.root)

    def log_probs(self, model: TaskModel, examples: Iterable[Example | str]) -> NDArray[np.float32]:
        """Log-probabilities of the classes, float32 `[N, C]`, for examples or plain texts."""
        from modelgit.evals.predictions import predict

        return predict(model, self.encode(examples))


def main() -> None:
    """Read a request from standard input, run it, and write `{"outcome": ...}` or `{"error": ...}` (an `Answer`)."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=PythonRequest | HarnessRequest)
    _limit_memory(request.memory_bytes)
    try:
        answer = _python(request) if isinstance(request, PythonRequest) else _harness(request)
    except MgitError as error:
        answer = {"error": error.message, "hint": error.hint, "extra": error.code == "missing-extra"}
    except MemoryError:
        answer = {"error": "it ran out of the memory that it may use"}
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises is told to the user
        answer = {"error": _told(error, Path(request.root))}
    Path(request.result).write_bytes(msgspec.json.encode(answer))


def digest_of(file: Path) -> str:
    """The hex BLAKE3 of a file."""
    hasher = blake3()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _limit_memory(memory_bytes: int | None) -> None:
    """Private memory at most, and no core file, where the platform can."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _told(error: Exception, root: Path) -> str:
    """What was raised, and where in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(root)]
    where = f" at {Path(own[-1].filename).relative_to(root).as_posix()}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}{where}: {error}"[:1000]


def _python(request: PythonRequest) -> dict[str, Any]:
    import numpy as np
    import torch

    from modelgit.models.folder import FolderState, small_files
    from modelgit.models.load import build_task

    root, checkout = Path(request.root), Path(request.checkout)
    state = FolderState(checkout, request.task.model)
    files = small_files(checkout, request.task.model, weights=state.weights)
    model = build_task(request.task, state, files, trusted=True, root=root)
    if (request.device, request.dtype) != ("cpu", "float32"):
        model.module.to(device=request.device, dtype=getattr(torch, request.dtype))
    context = TestContext(request.seed, root, checkout, request.task, files)
    function = _function(request)
    # Here, and not before: building a model draws numbers, too.
    random.seed(request.seed)
    np.random.seed(request.seed % (1 << 32))
    torch.manual_seed(request.seed)
    found = function(model, context)
    outcome = _outcome(found, f"{Path(request.source).name}:{request.function}")
    return {"outcome": outcome, "asked": context.asked}


def _function(request: PythonRequest) -> Any:
    source = Path(request.source)
    # Siblings are found as they are when the file is run as a script.
    sys.path[:0] = [str(source.parent), request.root]
    spec = importlib.util.spec_from_file_location(source.stem, source)
    if spec is None or spec.loader is None:
        raise UsageError(f"{source.name} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[source.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, request.function, None)
    if not callable(function):
        raise UsageError(f"{source.name} has no function `{request.function}`")
    return function


def _outcome(found: object, what: str) -> dict[str, Any]:
    """A number, a mapping of metrics, a list of records {"id", "score"}, or a mapping with both."""
    if isinstance(found, Mapping) and found and set(found) <= {"metrics", "examples"}:
        parts = {
            "metrics": _metrics(found.get("metrics", {}), what),
            "examples": _examples(found.get("examples", ()), what),
        }
        return {name: part for name, part in parts.items() if part}
    if isinstance(found, Mapping):
        return {"metrics": _metrics(found, what)}
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        return {"examples": _examples(found, what)}
    return {"metrics": {NAMELESS: _number(found, what)}}


def _metrics(found: object, what: str) -> dict[str, float]:
    if not isinstance(found, Mapping):
        raise UsageError(f"{what} gave {type(found).__name__} for `metrics`, not a mapping of names to numbers")
    return {str(name): _number(value, what) for name, value in found.items()}


def _examples(found: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(found, Sequence):
        raise UsageError(f"{what} gave {type(found).__name__} for `examples`, not a list of records")
    records = []
    for record in found:
        if not isinstance(record, Mapping) or not {"id", "score"} <= set(record):
            raise UsageError(f'{what} gave an example that is no record {{"id": ..., "score": ...}}')
        records.append({"id": str(record["id"]), "score": _number(record["score"], what)})
    return records


def _number(value: object, what: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(f"{what} gave {type(value).__name__} where a number is expected") from None
    if not math.isfinite(number):
        raise UsageError(f"{what} gave {number} where a number is expected")
    return number


def _harness(request: HarnessRequest) -> dict[str, Any]:
    from modelgit.evals.harness import run_harness

    return {"outcome": run_harness(request)}
