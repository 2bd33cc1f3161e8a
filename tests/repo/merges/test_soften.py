"""soften: the largest blend with the parent that passes the gate."""

from __future__ import annotations

import numpy as np
import pytest

from modelgit.errors import GateRefused, NothingToDo, RepositoryError
from modelgit.repo import Repository
from modelgit.repo.merges.soften import soften
from modelgit.repo.tracking.undo import undo

torch = pytest.importorskip("torch")

FILE = "bot.safetensors"
ENTRY = """
import torch


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(1, 2, bias=False)

    def forward(self, x):
        return self.classifier(x)


def build(state, files):
    return Line()


def encode(texts, files):
    return {"x": torch.tensor([[float(text)] for text in texts])}
"""
SETTINGS = """
[track]
paths = ["bot.safetensors"]

[task.sign]
model = "bot.safetensors"
entry = "line:build"
test = "data.jsonl"
labels = ["no", "yes"]

[eval.sign]
task = "sign"
kl = { max = 0.02 }
"""


def write(repo: Repository, files, scale: float) -> None:
    weight = np.array([[0.0], [scale]], np.float32)
    (repo.worktree / FILE).write_bytes(files.of_arrays({"classifier.weight": weight, "other": weight[:1]}))


@pytest.fixture
def line(repo: Repository, files) -> Repository:
    """A model of one number, whose divergence from its parent is that of its change."""
    from modelgit.repo.trust import trust

    (repo.worktree / "line.py").write_text(ENTRY)
    (repo.worktree / "data.jsonl").write_text("\n".join(f'{{"text": "{x}", "label": "yes"}}' for x in (1, 2, 3)))
    (repo.worktree / "mgit.toml").write_text(SETTINGS)
    repo.forget_settings()
    trust(repo)
    write(repo, files, 1.0)
    repo.commit("base")
    return repo


def test_the_largest_blend_that_passes_is_committed(line: Repository, files) -> None:
    write(line, files, 3.0)
    with pytest.raises(GateRefused):
        line.commit("bold")
    bold = line.commit("bold", gate="warn").id
    done = soften(line)
    assert 0 < done.alpha < 1 and done.of == bold
    tried = {probe.alpha: probe.passed for probe in done.probes}
    assert tried[done.alpha] and not tried[done.alpha + 1 / 32] and not tried[1.0]
    weight = np.array(line.load()["classifier.weight"].numpy())
    assert weight[1, 0] == np.float32(1 + 2 * done.alpha)
    commit = line.commit_at(line.head())
    assert commit.parents == (bold,)
    assert commit.subject == f"Soften to {done.alpha:.0%}: bold"
    assert all(verdict.decision == "pass" for verdict in commit.verdicts)
    assert line.status().is_clean
    undo(line)
    assert line.head() == bold
    assert np.array(line.load()["classifier.weight"].numpy())[1, 0] == 3.0


def test_what_needs_no_softening_or_cannot_be_softened(line: Repository, files) -> None:
    with pytest.raises(RepositoryError, match="no parent"):
        soften(line)
    write(line, files, 1.01)
    line.commit("gentle")
    with pytest.raises(NothingToDo, match="as it is"):
        soften(line)
    write(line, files, 1e6)
    line.commit("wild", gate="warn")
    before, digests = line.head(), files.digests(line.worktree)
    with pytest.raises(GateRefused, match="1/32"):
        soften(line)
    assert (line.head(), files.digests(line.worktree)) == (before, digests)
    write(line, files, 5.0)
    with pytest.raises(RepositoryError):
        soften(line)
