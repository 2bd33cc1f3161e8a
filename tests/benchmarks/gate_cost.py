"""What the gate costs as a user types it: CPU seconds of commands, start-up included, on MiniLM and 4,000 reviews.

The candidate is the parent with its matrices rounded to 255 levels for each row (an easy PASS at 2 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from parts import Plan
from process import Shell
from safetensors.torch import save_file
from science_data import dense, science_task
from table import Row

from modelgit.environment import Environment
from modelgit.integrations.demo.assets import fetch_assets
from modelgit.integrations.demo.texts import read_reviews, split_rows, write_rows

__all__ = ["rows"]

_CONFIG = """
[track]
paths = ["models/m", "data"]

[task.reviews]
model = "models/m"
adapter = "bert-classifier"
head = "classifier"
test = "data/test.jsonl"
labels = ["negative", "positive"]
max_length = 32

[eval.reviews]
task = "reviews"
negative_flips = { max = 0.02 }
sampling = "adaptive"
"""


def rows(plan: Plan) -> Iterator[Row]:
    """The gate with the parent cached, beside both models in full; and the same command again."""
    folder = plan.work / "gate-cost"
    work = folder / "work"
    shell = Shell.fresh(work)
    _repository(plan, shell, work)
    group = "Cost of a gate (CPU seconds, start-up included, one run)"
    start_up = shell.run("mgit status").cpu_s
    shell.run("mgit eval HEAD~1 --full --baseline HEAD~1")
    gated = shell.run("mgit eval HEAD").cpu_s
    again = shell.run("mgit eval HEAD").cpu_s
    shell.run("rm -rf .mgit/cache/predictions")
    both = shell.run("mgit eval HEAD --full").cpu_s
    yield Row(group, "both models in full", both, "s")
    yield Row(group, "the gate with the parent cached, over both in full", gated / both, "x", 0.25, "at most",
              f"{gated:.2f} s")  # fmt: skip
    yield Row(group, "the same again, more than start-up (`mgit status`)", again - start_up, "s",
              note=f"{again:.2f} s and {start_up:.2f} s")  # fmt: skip


def _repository(plan: Plan, shell: Shell, work: Path) -> None:
    task = science_task("reviews", quick=plan.quick)
    model = dense(plan, task)
    published = fetch_assets(Environment.capture())
    place = work / "models" / "m"
    place.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (place / name).write_bytes((published.model / name).read_bytes())
    state = {
        model.tensor_of[name]: value.detach().clone().contiguous() for name, value in model.module.named_parameters()
    }
    count = 200 if plan.quick else 4000
    *_, test = split_rows(read_reviews(published.reviews), 1500, 500, count, seed=11)
    write_rows(work / "data" / "test.jsonl", test)
    save_file(state, place / "model.safetensors")
    (work / "mgit.toml").write_text(_CONFIG)
    shell.run("mgit init")
    shell.run("mgit commit -m parent --gate warn")
    rounded = {name: _rounded(value) for name, value in state.items()}
    save_file(rounded, place / "model.safetensors")
    shell.run("mgit commit -m candidate --gate warn")
    shell.run("rm -rf .mgit/cache/predictions")


def _rounded(value: torch.Tensor) -> torch.Tensor:
    if value.ndim < 2:
        return value
    scale = value.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, (value / scale).round() * scale, value).contiguous()
