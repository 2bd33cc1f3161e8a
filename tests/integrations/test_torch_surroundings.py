"""Frozen stays frozen in all that surrounds a training loop: scaling, schedules, copies, wrappers, checkpoints."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from modelgit.errors import UsageError  # noqa: E402
from modelgit.integrations.torch import Violation, freeze_outside  # noqa: E402

MASK = {"0.weight": np.arange(0, 48, 5), "2.bias": None}
DATA = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(DATA).square().mean()


def adamw(model: nn.Module, **options: object) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def held(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    """Only what MASK names differs, and all of that does."""
    for name, value in now.items():
        at = MASK.get(name, np.array([], np.int64))
        changed = (value != before[name]).reshape(-1).numpy()
        expected = np.ones(value.numel(), bool) if at is None else np.isin(np.arange(value.numel()), at)
        if not np.array_equal(changed, expected):
            return False
    return True


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaling_with_skipped_steps(fused: bool, tmp_path: Path) -> None:
    model = net()
    optimizer = adamw(model, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    before = state(model)
    with freeze_outside(model, MASK, optimizer, journal=tmp_path / "j") as frozen:
        scales = []
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model)
            if step == 3:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if not fused:
                scaler.unscale_(optimizer)
                assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) < 10 or step == 3
            was = state(model)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            skipped = all(torch.equal(value, was[name]) for name, value in state(model).items())
            assert skipped == (step == 3)
        assert scales[3] < scales[2]
        assert frozen.verify() == []
    assert held(state(model), before)


def test_an_infinite_gradient_outside_skips_no_step() -> None:
    model = net()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = state(model)
    with freeze_outside(model, MASK, optimizer):
        scaler.scale(
            loss_of(model) + torch.where(model[0].weight[0, 1] < 9, model[0].weight[0, 1] * 1e38 * 10, 0)
        ).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    assert held(state(model), before)


def test_clipping_counts_masked_gradients_only() -> None:
    model = net()
    with freeze_outside(model, MASK, adamw(model)):
        loss_of(model).backward()
        total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    gradient, bias = (model[0].weight.grad, model[2].bias.grad)
    assert int((gradient != 0).sum()) == len(MASK["0.weight"])
    assert torch.isclose(total, (gradient.square().sum() + bias.square().sum()).sqrt())


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    one, two = net(), net()
    for model, parts in ((one, 1), (two, 4)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
        with freeze_outside(model, MASK, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                for chunk in DATA.chunk(parts):
                    (model(chunk).square().mean() / parts).backward()
                optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("late", [False, True])
def test_moments_from_before_the_mask(late: bool) -> None:
    """Moments of all parameters, as a checkpoint from before has them: loaded before or after freezing is the same."""
    warm = net()
    first = adamw(warm)
    train(warm, first)
    saved = copy.deepcopy(first.state_dict())
    runs = []
    for load_first in (True, not late):
        model = net()
        model.load_state_dict(warm.state_dict())
        optimizer = adamw(model)
        if load_first:
            optimizer.load_state_dict(copy.deepcopy(saved))
        before = state(model)
        with freeze_outside(model, MASK, optimizer) as frozen:
            if not load_first:
                optimizer.load_state_dict(copy.deepcopy(saved))
            train(model, optimizer)
            assert frozen.verify() == []
        assert held(state(model), before)
        runs.append(state(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_masked_values_are_updated_as_without_a_mask() -> None:
    """With moments from before: one step of AdamW under a mask gives each masked value what a free step gives it."""
    free, bound = net(), net()
    for_free, for_bound = adamw(free), adamw(bound)
    train(free, for_free)
    train(bound, for_bound)
    with freeze_outside(bound, MASK, for_bound):
        train(bound, for_bound, 1)
    train(free, for_free, 1)
    at = torch.as_tensor(MASK["0.weight"])
    assert torch.equal(free[0].weight.view(-1)[at], bound[0].weight.view(-1)[at])
    assert torch.equal(free[2].bias, bound[2].bias)


def test_a_run_can_be_resumed_from_its_own_checkpoint() -> None:
    whole, halves = net(), net()
    optimizer = adamw(whole)
    with freeze_outside(whole, MASK, optimizer):
        train(whole, optimizer, 6)
    optimizer = adamw(halves)
    with freeze_outside(halves, MASK, optimizer):
        train(halves, optimizer, 3)
        file = io.BytesIO()
        torch.save({"model": halves.state_dict(), "optimizer": optimizer.state_dict()}, file)
    moments = optimizer.state_dict()["state"]
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["optimizer"]["state"][0]["exp_avg"].shape == (len(MASK["0.weight"]),)
    assert 0 not in moments  # dropped when the mask was
    resumed = net()
    optimizer = adamw(resumed)
    with freeze_outside(resumed, MASK, optimizer):
        resumed.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        train(resumed, optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_moments_of_another_mask_are_refused() -> None:
    model = net()
    optimizer = adamw(model)
    with freeze_outside(model, MASK, optimizer):
        train(model, optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
    with freeze_outside(model, {"0.weight": [3]}, optimizer):
        optimizer.load_state_dict(saved)
        with pytest.raises(UsageError, match=r"`exp_avg` for `0\.weight` has shape \[10\]"):
            train(model, optimizer, 1)


def test_groups_that_are_added_later() -> None:
    model, extra = net(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([model[0].weight, model[2].bias], lr=0.05)
    before = state(model)
    frozen = freeze_outside(model, MASK, optimizer)
    optimizer.add_param_group({"params": extra.parameters(), "lr": 0.1})
    start = extra.weight.detach().clone()
    extra(torch.ones(2)).sum().backward()
    loss_of(model).backward()
    optimizer.step()  # parameters of another model train
    assert not torch.equal(extra.weight, start)
    assert held(state(model), before)
    optimizer.add_param_group({"params": [model[0].bias]})
    now = state(model)
    with pytest.raises(UsageError, match=r"`0\.bias` was added"):
        optimizer.step()
    assert all(torch.equal(value, now[name]) for name, value in state(model).items())
    frozen.close()
    optimizer.step()


def test_one_mask_at_a_time() -> None:
    model = net()
    optimizer = adamw(model)
    with freeze_outside(model, MASK, optimizer):
        with pytest.raises(UsageError, match="AdamW trains under a mask already"):
            freeze_outside(model, {"0.weight": [1]}, optimizer)
        train(model, optimizer, 1)
    freeze_outside(model, {"0.weight": [1]}, optimizer).close()


def test_moving_and_loading_after_freezing() -> None:
    model = net()
    optimizer = adamw(model)
    saved = copy.deepcopy(model.state_dict())
    with freeze_outside(model, MASK, optimizer) as frozen:
        train(model, optimizer)
        model.to("cpu")
        model.load_state_dict(saved)
        assert frozen.verify() == []
        train(model, optimizer)
        assert frozen.verify() == []
        assert held(state(model), dict(saved))
        other = {name: value + 1 for name, value in saved.items()}
        model.load_state_dict(other)
        assert [item.name for item in frozen.verify()] == ["0.bias", "0.weight", "2.weight"]
        model.load_state_dict(saved)
        model.load_state_dict(saved, assign=True)
        assert frozen.verify() == []
        with pytest.raises(UsageError, match=r"`0\.weight` was replaced"):
            train(model, optimizer)
        assert len(optimizer.param_groups[0]["params"]) == 4


def test_masked_parameters_that_cannot_train_are_refused() -> None:
    model = net()
    optimizer = adamw(model)
    model[2].bias.requires_grad_(False)
    with pytest.raises(UsageError, match=r"`2\.bias` is in the mask and has `requires_grad` False"):
        freeze_outside(model, MASK, optimizer)


def test_another_element_type_after_freezing() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with freeze_outside(model, MASK, optimizer) as frozen:
        model.double()
        optimizer.zero_grad()
        model(DATA.double()).square().mean().backward()
        optimizer.step()
        assert [item.name for item in frozen.verify()] == ["0.bias", "0.weight", "2.weight"]  # other bits


def test_master_weights_of_the_user() -> None:
    model = net().to(torch.bfloat16)
    masters = {name: p.detach().float().requires_grad_() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(masters.values(), lr=0.05, weight_decay=0.5)
    before, start = state(model), {name: value.detach().clone() for name, value in masters.items()}
    with pytest.raises(UsageError, match=r"`0\.weight` is in the mask and not in the optimizer"):
        freeze_outside(model, MASK, optimizer)
    with pytest.raises(UsageError, match="does not fit"):
        freeze_outside(model, MASK, optimizer, masters={"0.weight": torch.zeros(2)})
    with freeze_outside(model, MASK, optimizer, masters=masters) as frozen:
        for _ in range(4):
            model.zero_grad()
            model(DATA.bfloat16()).square().mean().backward()
            for name, parameter in model.named_parameters():
                masters[name].grad = None if parameter.grad is None else parameter.grad.float()
            optimizer.step()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(masters[name])
            assert frozen.verify() == []
    assert held(state(model), before)
    assert held({name: value.detach() for name, value in masters.items()}, start)


def test_schedules_and_hooks_of_others_see_the_whole_model() -> None:
    model = net()
    optimizer = adamw(model)
    seen: list[tuple[int, ...]] = []
    optimizer.register_step_post_hook(lambda o, *_: seen.append(o.param_groups[0]["params"][0].shape))
    with freeze_outside(model, MASK, optimizer):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        for _ in range(4):
            train(model, optimizer, 1)
            schedule.step()
    assert seen == [(8, 6)] * 4
    assert optimizer.param_groups[0]["lr"] < 0.05


class Stops(torch.optim.SGD):
    """Fails in the middle of a step, once."""

    broken = False

    def step(self, closure: Callable[[], float] | None = None) -> None:
        if not self.broken:
            self.broken = True
            raise KeyboardInterrupt
        super().step(closure)


@pytest.mark.parametrize("kind", ["elementwise", "other"])
def test_an_interrupted_step_does_no_harm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = state(model)
    optimizer: torch.optim.Optimizer
    if kind == "other":
        optimizer = Stops(model.parameters(), lr=0.1, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        module = sys.modules["torch.optim.sgd"]
        original = module.sgd

        def once(*arguments: object, **more: object) -> None:
            monkeypatch.setattr(module, "sgd", original)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "sgd", once)
    with freeze_outside(model, MASK, optimizer) as frozen:
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, 1)
        assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 4
        train(model, optimizer)
        assert frozen.verify() == []
        assert frozen.steps == 3
    assert held(state(model), before)


class FromOutside:
    """A wrapper as accelerate's: not an optimizer that calls hooks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def test_wrapped_optimizers() -> None:
    model = net()
    optimizer = FromOutside(FromOutside(adamw(model)))
    before = state(model)
    with freeze_outside(model, MASK, optimizer):
        loss_of(model).backward()
        optimizer.step()
    assert held(state(model), before)


@pytest.mark.parametrize("inner", [False, True])
def test_compiled_models(inner: bool) -> None:
    model = net()
    before = state(model)
    optimizer = adamw(model)
    whole: nn.Module = model
    if inner:
        model[0] = torch.compile(model[0], backend="aot_eager")
    else:
        whole = torch.compile(model, backend="aot_eager")
    with freeze_outside(whole, MASK, optimizer) as frozen:
        train(whole, optimizer)
        assert frozen.verify() == []
    assert held({name.replace("_orig_mod.", ""): value for name, value in state(model).items()}, before)


REPLICA = """
import sys, torch
from torch import distributed, nn
from modelgit.integrations.torch import freeze_outside
rank, place, early = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "early"
distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
before = {n: p.detach().clone() for n, p in model.named_parameters()}
mask = {"0.weight": [0, 5, 10], "2.bias": None}
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
if early:
    frozen = freeze_outside(model, mask, optimizer)
replica = nn.parallel.DistributedDataParallel(model)
if not early:
    frozen = freeze_outside(replica, mask, optimizer, journal=f"{place}/journal" if rank == 0 else None)
torch.manual_seed(rank)  # each its own data
for _ in range(4):
    optimizer.zero_grad()
    replica(torch.randn(8, 6)).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    kept = model[0].weight.grad.view(-1)[[0, 5, 10]].square().sum() + model[2].bias.grad.square().sum()
    assert torch.isclose(norm, kept.sqrt())
    optimizer.step()
assert frozen.verify() == []
frozen.close()
changed = {n: int((p != before[n]).sum()) for n, p in model.named_parameters()}
assert changed == {"0.weight": 3, "0.bias": 0, "2.weight": 0, "2.bias": 3}, changed
torch.save(model.state_dict(), f"{place}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_replicas_in_two_processes(when: str, tmp_path: Path) -> None:
    """Frozen before DistributedDataParallel wraps the model, or after: each replica has the same weights."""
    command = [sys.executable, "-c", REPLICA]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path), when], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    if when == "late":
        assert len((tmp_path / "journal").read_text().splitlines()) == 6


def test_running_statistics_are_watched() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    optimizer = adamw(model)
    with freeze_outside(model, {"0.bias": None}, optimizer) as frozen:
        train(model, optimizer, 1)
        moved = ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
        assert [item.name for item in frozen.verify()] == moved
    model.eval()
    with freeze_outside(model, {"0.bias": None}, optimizer) as frozen:
        train(model, optimizer, 1)
        assert frozen.verify() == []


def test_averages_of_the_weights_are_checked_like_any_model() -> None:
    """An average may lose bits of what never changed: the sign of a zero.  So it is checked before it is recorded."""
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = -0.0
    optimizer = adamw(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    with freeze_outside(model, MASK, optimizer) as frozen:
        for _ in range(3):
            train(model, optimizer, 1)
            average.update_parameters(model)
        assert frozen.verify() == []
        for name, value in average.module.named_parameters():
            at = MASK.get(name, ())
            same = value.view(-1) == model.get_parameter(name).view(-1)
            assert at is None or int((~same).sum()) <= len(at)
        model.load_state_dict(average.module.state_dict())
        assert frozen.verify() in ([], [Violation("2.weight", None)])


def test_sharded_parameters_are_refused() -> None:
    model = net()
    model[0].weight.placements = ("Shard(0)",)  # as DTensor has
    with pytest.raises(UsageError, match=r"`0\.weight` is sharded"):
        freeze_outside(model, MASK, adamw(model))
    with torch.device("meta"):
        model = net()
    with pytest.raises(UsageError, match="not in memory"):
        freeze_outside(model, MASK, adamw(model))
