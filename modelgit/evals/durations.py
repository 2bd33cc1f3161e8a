"""How long a forward pass takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from modelgit.evals.base import Dataset, Side
from modelgit.models.base import TaskModel
from modelgit.models.outputs import batch_inputs, evaluating, module_device, run_model

__all__ = ["median_passes_ms"]

_WARM_UP = 3


def median_passes_ms(sides: Sequence[Side], data: Dataset, *, repeats: int, check: Callable[[], None]) -> list[float]:
    """The median of `repeats` forward passes of each side on the first example, in milliseconds, after a warm-up.

    The passes of the sides alternate.  Held are the models of all sides.  `check` is called before each turn and may
    raise.
    """
    models = [side.model(data) for side in sides]
    inputs = [_inputs(model, side, data) for model, side in zip(models, sides, strict=True)]
    spent: list[list[float]] = [[] for _ in sides]
    with evaluating(*(model.module for model in models)), torch.inference_mode():
        for turn in range(_WARM_UP + repeats):
            check()
            # Who goes first changes from turn to turn.
            for at in range(len(sides)) if turn % 2 else reversed(range(len(sides))):
                duration = _pass_ms(models[at], inputs[at])
                if turn >= _WARM_UP:
                    spent[at].append(duration)
    return [float(np.median(durations)) for durations in spent]


def _inputs(model: TaskModel, side: Side, data: Dataset) -> dict[str, torch.Tensor]:
    batch = next(iter(side.encode(data, np.zeros(1, dtype=np.int64)).batches(1)))
    return batch_inputs(batch, module_device(model.module))


def _pass_ms(model: TaskModel, inputs: dict[str, torch.Tensor]) -> float:
    _wait(model)
    started = time.perf_counter()
    run_model(model, inputs)
    _wait(model)
    return 1000.0 * (time.perf_counter() - started)


def _wait(model: TaskModel) -> None:
    """Let an accelerator finish what it was given."""
    device = module_device(model.module)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
