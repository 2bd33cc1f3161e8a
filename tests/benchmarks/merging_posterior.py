"""Merges of linear-Gaussian models beside the exact mode of the posterior over all of their data.

Two linear models with noise of variance 1 and a flat prior, each fitted to its own data by least squares.  The mode
over both data sets is the least squares fit to all.  With inputs that are orthogonal the Fisher information is
diagonal, and `fisher` must find it (with weights that undo its normalisation); with related inputs `regmean` without
shrinking and `mats` must, which know whole blocks.  Everything goes through the estimators: nothing is taken from the
formulas.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from merging_tasks import Arrays, Known
from parts import Plan
from table import Row

from modelgit.fisher.estimate import estimate
from modelgit.fisher.grams import gram_matrices
from modelgit.merging.base import parse_rule
from modelgit.merging.model import ModelMerge
from modelgit.merging.tensors import TensorParts
from modelgit.models.base import Example
from modelgit.models.bind import BoundModel
from modelgit.models.entry import InputSet
from modelgit.objects import CodedTensor, GramEntry, TensorSpec

__all__ = ["error", "rows"]

_BAR = 1e-6
_INPUTS, _OUTPUTS, _COUNTS = 8, 3, (40, 64)


def rows(plan: Plan) -> Iterator[Row]:
    """The largest difference, of the largest weight."""
    group = "Merges of linear-Gaussian models: distance from the posterior mode over all data"
    unit = "of the largest"
    yield Row(group, "fisher, orthogonal inputs", error("fisher", related=False), unit, _BAR, "at most")
    for strategy in ("regmean alpha=1", "mats alpha=1 iterations=100 tolerance=1e-12"):
        yield Row(group, f"{strategy}, related inputs", error(strategy, related=True), unit, _BAR, "at most")


def error(strategy: str, *, related: bool, seed: int = 0) -> float:
    """The largest distance of a merged weight from the mode, of the largest weight."""
    rng = np.random.default_rng(seed)
    arrays, fitted, data, known, factors = Arrays(), [], [], [], []
    for count in _COUNTS:
        x = rng.normal(size=(count, _INPUTS))
        if related:
            x += rng.normal(size=(count, 1))
        else:
            x = np.linalg.qr(x)[0] * rng.uniform(1, 5, _INPUTS)
        x = x.astype(np.float32).astype(np.float64)
        y = x @ rng.normal(size=(_INPUTS, _OUTPUTS)) + rng.normal(size=(count, _OUTPUTS))
        weight = np.linalg.lstsq(x, y, rcond=None)[0].T
        module = torch.nn.Linear(_INPUTS, _OUTPUTS, bias=False)
        module.weight.data = torch.from_numpy(weight.astype(np.float32))
        model = BoundModel(module.eval(), {"weight": "weight"}, frozenset(), _OUTPUTS, "gaussian")
        inputs = {"input": torch.from_numpy(x.astype(np.float32))}
        examples = InputSet(tuple(Example(str(at), "", 0) for at in range(count)), f"{seed}-{count}", inputs)
        fisher = estimate(model, examples, limit=None)
        matrix = gram_matrices(model, examples, range(count)).matrices["weight"]
        known.append(
            Known(
                {"weight": CodedTensor(arrays.add(fisher.values["weight"]), weight.shape, None)},
                {"weight": GramEntry(name="weight", id=arrays.add(matrix[np.triu_indices(_INPUTS)]), size=_INPUTS)},
            )
        )
        fitted.append(weight)
        data.append((x, y))
        # Means over examples become sums again, and normalised diagonals what they were.
        factors.append(count if strategy.startswith("regmean") else count * fisher.body_norm)
    every_x, every_y = (np.concatenate(part) for part in zip(*data, strict=True))
    mode = np.linalg.lstsq(every_x, every_y, rcond=None)[0].T
    spec = TensorSpec(dtype="F32", shape=mode.shape)
    part = TensorParts(
        name="weight",
        spec=spec,
        base=arrays.add(np.zeros(mode.shape)),
        sides=tuple(arrays.add(weight) for weight in fitted),
    )
    text = f"{strategy} weights={','.join(repr(float(factor)) for factor in factors)}"
    merge = ModelMerge(arrays, [part], parse_rule(text), fishers=known)
    made = np.frombuffer(merge.source("weight").read(0, spec.size_bytes), "<f4").reshape(mode.shape)
    return float(np.abs(made - mode).max() / np.abs(mode).max())
