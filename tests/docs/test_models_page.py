"""The page about models: its settings are settings, all kinds are shown, and its code computes."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import torch

from modelgit.config.schema import Settings, TaskKind
from modelgit.models.data import read_examples
from modelgit.models.kinds import task_kind
from modelgit.models.load import build_task, encode_examples
from modelgit.models.records import SUFFIXES

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_kind_has_an_example_that_is_valid() -> None:
    tasks = {}
    for block in blocks("toml"):
        tasks |= msgspec.convert(tomllib.loads(block), Settings).task
    assert {task.kind for task in tasks.values()} == {*get_args(TaskKind), None}
    assert {Path(task.train).suffix for task in tasks.values()} <= set(SUFFIXES)
    assert set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)) - {"kind"} == set(get_args(TaskKind))
    assert [task_kind(task, {}) for task in tasks.values()] == [task.kind for task in tasks.values()]


def test_the_code_of_an_entry_computes(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "model.py").write_text(code)
    (toml,) = [block for block in blocks("toml") if "entry" in block]
    (settings,) = msgspec.convert(tomllib.loads(toml), Settings).task.values()
    record = {"pixels": [[0.5] * 8] * 8, "label": 3}
    (tmp_path / "d.jsonl").write_bytes(msgspec.json.encode(record))
    examples, fingerprint = read_examples(tmp_path / "d.jsonl", settings, shown="d.jsonl")
    names: dict[str, object] = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    state = {name: np.asarray(value) for name, value in names["Net"]().state_dict().items()}
    task = build_task(settings, state, {}, trusted=True, root=tmp_path)
    (batch,) = encode_examples(settings, examples, fingerprint, {}, trusted=True, root=tmp_path).batches(1)
    assert task.module(**batch.inputs).shape == (1, 10)
    assert task.head == {"top.weight", "top.bias"}
    assert batch.labels.equal(torch.tensor([3]))
