"""Estimates that are saved and continued, and that stop when their ranking has settled."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from modelgit.errors import UsageError  # noqa: E402
from modelgit.fisher import estimate as module_estimate  # noqa: E402
from modelgit.fisher.estimate import Accumulator, estimate  # noqa: E402
from modelgit.fisher.settling import Settling  # noqa: E402
from modelgit.progress import SilentProgress  # noqa: E402


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_estimate, "BLOCK", 8)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 3))


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_interrupted_work_goes_on_to_the_same_bits(bound, vectors, estimator: str) -> None:
    task, data = bound(net()), vectors(5, count=60, name="input")
    options = {"estimator": estimator, "limit": 45, "seed": 4, "stop_when_settled": 1.0}
    with Accumulator(task, data, **options) as work:
        states = {done: copy.deepcopy(work.state()) for done in work.blocks()}
        whole = work.result()
    assert list(states) == [8, 16, 24, 32, 40, 45]
    for state in states.values():
        with Accumulator(task, data, **options) as work:
            work.restore(state)
            list(work.blocks())
            result = work.result()
        assert result.examples == whole.examples == 45
        assert all(np.array_equal(result.values[name], value) for name, value in whole.values.items())
        assert result.overlap == whole.overlap is not None


def test_fewer_examples_are_a_prefix(bound, vectors) -> None:
    task, data = bound(net()), vectors(5, count=60, name="input")
    with Accumulator(task, data, limit=21) as work:
        list(work.blocks())
        state = work.state()
    with Accumulator(task, data, limit=40) as work:
        work.restore(state)
        assert list(work.blocks()) == [24, 32, 40]
        longer = work.result()
    whole = estimate(task, data, limit=40)
    for name, value in whole.values.items():
        np.testing.assert_allclose(longer.values[name], value, rtol=1e-5)


def test_a_state_of_other_work_is_refused(bound, vectors) -> None:
    task, data = bound(net()), vectors(5, count=30, name="input")
    with Accumulator(task, data, limit=16) as work:
        list(work.blocks())
        state = work.state()
    others = (
        Accumulator(task, data, seed=1),
        Accumulator(task, data, estimator="rademacher"),
        Accumulator(task, data, limit=8),
        Accumulator(task, data, stop_when_settled=0.9),
        Accumulator(bound(nn.Linear(5, 3)), data),
    )
    for work in others:
        with pytest.raises(UsageError, match="belongs to another"):
            work.restore(state)


def test_an_estimate_stops_when_its_ranking_has_settled(bound, vectors) -> None:
    task, data = bound(nn.Linear(50, 3)), vectors(50, count=800, name="input")
    for values in data.inputs.values():
        values[:, :4] *= 40  # four inputs that matter far more
    found = estimate(task, data, limit=None, stop_when_settled=0.9)
    assert found.examples < len(data)
    assert found.examples % 16 == 0
    assert (found.criterion, found.overlap) == (0.9, 1.0)
    never = estimate(task, vectors(50, count=80, name="input"), stop_when_settled=1.0)
    assert (never.examples, never.criterion) == (80, 1.0)
    plain = estimate(task, data, limit=16)
    assert (plain.criterion, plain.overlap) == (None, None)
    with pytest.raises(UsageError, match="cannot overlap"):
        estimate(task, data, stop_when_settled=1.5)


def test_overlap_is_that_of_two_halves_twice_in_a_row() -> None:
    def block(*top: int) -> dict[str, torch.Tensor]:
        values = torch.zeros(400)
        values[list(top)] = 1.0
        return {"w": values}

    settling = Settling({"w": 400}, 0.5)
    settling.add(0, block(1, 2))
    assert settling.overlaps == []
    settling.add(1, block(1, 3))
    assert settling.overlaps == [0.5]
    assert not settling.done
    settling.add(2, block(1, 2))
    settling.add(3, block(1, 3))
    assert settling.done
    settling.add(4, block(1, 2))
    settling.add(5, {"w": 10 * block(7, 8)["w"]})
    assert settling.overlaps == [0.5, 0.5, 0.0]
    assert not settling.done


def test_large_models_are_watched_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelgit.fisher.settling._WATCHED", 100)
    settling = Settling({"a": 305, "b": 7}, 0.5)
    draw = torch.Generator().manual_seed(0)
    values = {"a": torch.rand(305, generator=draw), "b": torch.rand(7, generator=draw)}
    for at in range(2):
        settling.add(at, values)
    assert settling.overlaps == [1.0]
    assert len(settling.state().halves[0]) <= 100


def test_progress_of_continued_work_starts_where_it_stands(bound, vectors) -> None:
    class Counter(SilentProgress):
        done = 0

        def advance(self, task: str, amount: int) -> None:
            self.done += amount

    task, data = bound(net()), vectors(5, count=30, name="input")
    with Accumulator(task, data) as work:
        next(work.blocks())
        state = copy.deepcopy(work.state())
        module = task.module
        assert all(parameter.requires_grad for parameter in module.parameters())
    counter = Counter()
    with Accumulator(task, data, progress=counter) as work:
        work.restore(state)
        list(work.blocks())
    assert counter.done == 30
    with Accumulator(task, data) as work, pytest.raises(UsageError, match="at least one example"):
        work.result()
