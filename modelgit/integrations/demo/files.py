"""The text files that the demo writes: mgit.toml, and a training script as a user would write it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from modelgit.integrations.demo.checkpoint import BODY, HEADS, MODEL, head_name
from modelgit.integrations.demo.texts import TaskTexts

__all__ = ["SCRIPT", "add_suite", "data_path", "settings_text"]

SCRIPT = f'''\
"""Train a task of mgit.toml, in place.  usage: train.py TASK DATA EPOCHS RATE BATCH [MASK]"""
import sys

from safetensors.numpy import load_file, save_file

import modelgit
from modelgit.integrations.torch_training import state_arrays, train_classifier
from modelgit.repo.tasks import encoded, open_task, task_examples, task_settings

name, data, epochs, rate, batch = sys.argv[1:6]
with modelgit.open(".") as repo:
    _, task = task_settings(repo, name)
    commit = repo.manifest_of(repo.head())
    model = open_task(repo, commit, task)
    examples = encoded(repo, commit, task, *task_examples(repo, task, data))
    mask = repo.mask(sys.argv[6]).positions() if len(sys.argv) > 6 else None

report = train_classifier(
    model, examples, epochs=int(epochs), lr=float(rate), batch_size=int(batch), mask=mask, head_rate=1.0
)
trained = state_arrays(model)
for file in ("{MODEL}/{BODY}", "{MODEL}/{HEADS}"):
    tensors = load_file(file)
    save_file({{key: trained.get(key, value) for key, value in tensors.items()}}, file, metadata={{"format": "pt"}})
losses = ", ".join(f"{{loss:.3f}}" for loss in report.losses)
print(f"{{report.trained:,}} values, {{report.examples:,}} examples, {{report.seconds:.0f}} s, loss {{losses}}")
'''

_TASK = """\
[task.{name}]
model = "{model}"
head = "{head}"
labels = {labels}
train = "{train}"
test = "{test}"
max_length = {max_length}
"""


def data_path(task: str, part: str) -> str:
    """Where a part (train, test) of a task's data lies, relative to the repository root."""
    return f"data/{task}/{part}.jsonl"


def settings_text(tasks: Sequence[TaskTexts]) -> str:
    """mgit.toml with a table for each task."""
    tables = [
        _TASK.format(
            name=task.name,
            model=MODEL,
            head=head_name(task.name),
            labels=json.dumps(list(task.labels)),
            train=data_path(task.name, "train"),
            test=data_path(task.name, "test"),
            max_length=task.max_length,
        )
        for task in tasks
    ]
    return "\n".join(tables)


def add_suite(text: str, task: str, suite: str) -> str:
    """`text` (an mgit.toml) with the table of a suite after that of its task."""
    head = f"[task.{task}]"
    at = text.index(head)
    following = text.find("\n[", at)
    end = len(text) if following < 0 else following + 1
    before = text[:end].rstrip("\n")
    rest = text[end:]
    return f"{before}\n\n{suite.strip()}\n" + (f"\n{rest}" if rest else "")
