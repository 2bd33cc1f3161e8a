"""A task with few labels, helped by a fine-tune of another one: reported as it comes out.

Target: the sentiment of Rotten Tomatoes sentences with 300 labels.  Donor: the sentiment of 1,500 IMDB reviews (their
first 32 tokens).  Only bodies are merged.  Coefficients are chosen on 250 validation sentences; figures are from 500
test sentences, over three seeds.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from merging_tasks import SEEDS, Pair
from parts import Plan
from science_data import EPOCHS, Task, fine_tune, new_model, science_task, task_of
from table import Row

from modelgit.environment import Environment
from modelgit.integrations.demo.assets import fetch_assets
from modelgit.integrations.demo.texts import Row as Text
from modelgit.models.base import TaskModel

__all__ = ["rows"]

_LABELS, _DONOR = 300, 1500
_TOKENS = 32
_SOURCE = "rotten_tomatoes"
_GRIDS = {
    "average": [f"average weights={1 - part:g},{part:g}" for part in (0.1, 0.25, 0.5)],
    "fisher": [f"fisher weights={1 - part:g},{part:g}" for part in (0.1, 0.25, 0.5)],
    "task-arithmetic": [f"task-arithmetic weights=1,{part:g}" for part in (0.25, 0.5, 0.75, 1.0)],
    "fisher-task": [f"fisher-task scale={scale:g}" for scale in (1.25, 1.5, 1.75, 2)],
    "regmean": [f"regmean weights={1 - part:g},{part:g}" for part in (0.1, 0.25, 0.5)],
}


def rows(plan: Plan) -> Iterator[Row]:
    """The target alone, after the donor, and merged with it."""
    found: dict[str, list[float]] = {}
    for seed in range(1 if plan.quick else SEEDS):
        target, donor = _tasks(plan)
        models = {}
        for name, task in (("target", target), ("donor", donor)):
            models[name] = new_model(task, seed=seed)
            fine_tune(models[name], task, seed=seed, epochs=1 if plan.quick else EPOCHS)
        after = new_model(target, seed=seed)
        _copy_body(models["donor"], after)
        fine_tune(after, target, seed=seed, epochs=1 if plan.quick else EPOCHS)
        pair = Pair([target, donor], [models["target"], models["donor"]], quick=plan.quick, judged=1)
        found.setdefault("target alone", []).append(pair.accuracy("separate", "test"))
        found.setdefault("trained after the donor", []).append(pair.accuracy_of(after, "test"))
        for name, grid in _GRIDS.items():
            best = max(grid, key=lambda item: (pair.accuracy(item), -grid.index(item)))
            found.setdefault(f"merged by {name}", []).append(pair.accuracy(best, "test"))
    group = "A task of 300 labels with the fine-tune of another (sentences of Rotten Tomatoes, reviews of IMDB)"
    for name, values in found.items():
        spread = f"± {np.std(values, ddof=1):.1f} over seeds" if len(values) > 1 else ""
        yield Row(group, name, float(np.mean(values)), "%", note=spread)


def _tasks(plan: Plan) -> tuple[Task, Task]:
    whole = science_task("reviews", "top", quick=plan.quick)
    target = replace(whole, train=whole.train.select(range(min(_LABELS, len(whole.train)))))
    with fetch_assets(Environment.capture()).reviews.open(encoding="utf-8", newline="") as stream:
        texts = [
            Text(" ".join(record["text"].split()[: 2 * _TOKENS]), "positive" if record["label"] == "1" else "negative")
            for record in csv.DictReader(stream)
            if record["source"] != _SOURCE
        ]
    chosen = random.Random(0).sample(texts, 96 if plan.quick else _DONOR)
    return target, task_of("imdb", "top", [chosen, chosen[:8], chosen[:8]], _TOKENS)


def _copy_body(source: TaskModel, target: TaskModel) -> None:
    found = dict(source.module.named_parameters())
    with torch.no_grad():
        for name, parameter in target.module.named_parameters():
            if name not in target.head:
                parameter.copy_(found[name])
