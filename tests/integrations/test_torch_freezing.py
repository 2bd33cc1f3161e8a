"""What lies outside a mask does not move by one bit, whatever the optimizer does; what lies inside trains as before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from modelgit.errors import UsageError  # noqa: E402
from modelgit.integrations.torch import Violation, freeze_outside  # noqa: E402


class Net(nn.Module):
    """An embedding tied to the output, a convolution in channels-last order, and layers to freeze in part or whole."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6, sparse=sparse)
        self.conv = nn.Conv2d(1, 4, (2, 3)).to(memory_format=torch.channels_last)
        self.inner = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.inner(self.embed(ids))
        x = x + self.conv(x[:, None]).mean((1, 2, 3))[:, None, None]
        return self.out(self.frozen(x).tanh().mean(1))


MASK = {
    "embed.weight": np.array([0, 7, 8, 30, 53]),
    "conv.weight": torch.tensor([1, 2, 20]),
    "inner.weight": None,
    "inner.bias": np.array([3], np.uint32),
    "frozen.bias": np.array([], np.int64),
}
TRAINED = 5 + 3 + 36 + 1


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():  # values whose bits arithmetic would lose
        model.embed.weight[4] = -0.0
        model.frozen.weight[0, 0] = 1e-42
    return model


def bits(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().contiguous().view(torch.int32).numpy().ravel().copy() for n, p in model.named_parameters()}


def outside(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {}
    for name, value in values.items():
        positions = MASK.get(name, np.array([], np.int64))
        kept[name] = value[:0] if positions is None else np.delete(value, np.asarray(positions).astype(np.int64))
    return kept


def inside(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([v if MASK[n] is None else v[np.asarray(MASK[n])] for n, v in values.items() if n in MASK])


def batches(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    shape = (4, 5)
    return [
        (torch.randint(0, 9, shape, generator=draw), torch.randint(0, 9, shape[:1], generator=draw))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Meddler(torch.optim.SGD):
    """Moves every weight behind autograd's back, as optimizers with master copies do."""

    def step(self, closure: Callable[[], float] | None = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1.25)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, foreach=False),
    "sgd foreach": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.3, foreach=False),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.3, foreach=True),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.3, fused=True),
    "adam amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.05, weight_decay=0.3, amsgrad=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, centered=True, momentum=0.5, weight_decay=0.1),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, weight_decay=0.1),
    "rprop": torch.optim.Rprop,
    "asgd": lambda ps: torch.optim.ASGD(ps, lr=0.1, weight_decay=0.1),
    "meddler": lambda ps: Meddler(ps, lr=0.1),
    "adam fused": lambda ps: torch.optim.Adam(ps, lr=0.05, weight_decay=0.3, fused=True),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=0.05, weight_decay=0.3),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=0.05, weight_decay=0.3, decoupled_weight_decay=True),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=0.05, weight_decay=0.3),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, lr=0.5, weight_decay=0.3),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=0.1, weight_decay=0.3),
    "groups": lambda ps: torch.optim.AdamW(
        [{"params": ps[:2]}, {"params": ps[2:], "weight_decay": 0.0}], lr=0.05, weight_decay=0.5
    ),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_nothing_outside_moves(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    for batch in batches(2):  # momentum and second moments from before the mask
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = bits(model)
    loss_of(model, batches(1)[0]).backward()  # a gradient that is there already
    with freeze_outside(model, MASK, optimizer) as frozen:
        assert frozen.masked_parameters == TRAINED
        for at, batch in enumerate(batches()):
            loss_of(model, batch).backward()
            if at % 2:  # accumulation over two batches
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=at % 4 == 1)
                assert frozen.verify() == []
    after = bits(model)
    for parameter, value in outside(after).items():
        np.testing.assert_array_equal(value, outside(before)[parameter], err_msg=parameter)
    assert (inside(after) != inside(before)).mean() > 0.9


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("stepped", [False, True])
def test_lbfgs_evaluates_only_models_within_the_mask(search: str | None, stepped: bool) -> None:
    """It keeps its own list of parameters, remembers directions, and calls the closure several times a step."""
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn=search)
    batch = batches(1)[0]
    evaluated: list[dict[str, np.ndarray]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        evaluated.append(bits(model))
        return loss

    if stepped:
        optimizer.step(closure)
        evaluated.clear()
    before = bits(model)
    with freeze_outside(model, MASK, optimizer) as frozen:
        first = optimizer.step(closure).item()
        assert optimizer.step(closure).item() < first
        assert frozen.verify() == []
        assert frozen.steps == 2
    assert len(evaluated) > 4
    assert len({inside(values).tobytes() for values in evaluated}) > 3
    for values in (*evaluated, bits(model)):
        assert all(np.array_equal(v, outside(before)[n]) for n, v in outside(values).items())
    last = optimizer.step(closure).item()  # everything trains again
    assert optimizer.step(closure).item() < last


def test_closures_of_other_optimizers() -> None:
    model, other = net(), net()
    one, two = (torch.optim.AdamW(m.parameters(), lr=0.05, weight_decay=0.3) for m in (model, other))

    def closure() -> torch.Tensor:
        one.zero_grad()
        loss = loss_of(model, batches(1)[0])
        loss.backward()
        return loss

    with freeze_outside(model, MASK, one), freeze_outside(other, MASK, two):
        for _ in range(3):
            given = one.step(closure=closure)
            two.zero_grad()
            loss = loss_of(other, batches(1)[0])
            loss.backward()
            two.step()
            assert given.item() == loss.item()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(30, 9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = bits(model)
    with freeze_outside(model, {"0.weight": np.arange(9)}, optimizer):
        for batch in batches():
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    after = bits(model)
    assert np.array_equal(after["0.weight"][9:], before["0.weight"][9:])
    assert not np.array_equal(after["0.weight"][:9], before["0.weight"][:9])
    assert np.array_equal(after["2.weight"], before["2.weight"])


def test_what_trains_is_what_would_train_without_the_rest() -> None:
    """With plain SGD a masked run equals a run whose gradients and decay are zeroed by hand."""
    model, other = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with freeze_outside(model, MASK, optimizer):
        for batch in batches():
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    for batch in batches():
        loss_of(other, batch).backward()
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if name in MASK:
                    keep = torch.zeros(parameter.numel())
                    keep[slice(None) if MASK[name] is None else torch.as_tensor(MASK[name]).long()] = 1
                    parameter -= 0.1 * parameter.grad * keep.view(parameter.shape)
        other.zero_grad()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_element_types(kind: torch.dtype) -> None:
    model = net().to(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with freeze_outside(model, MASK, optimizer) as frozen:
        loss_of(model, batches(1)[0]).backward()
        optimizer.step()
        assert frozen.verify() == []
    assert torch.equal(model.frozen.weight, start["frozen.weight"])
    assert int((model.embed.weight != start["embed.weight"]).sum()) == 5


def test_verify_finds_one_bit() -> None:
    model = net()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for reference in (None, start, {n: v.numpy() for n, v in start.items()}):
        count = None if reference is None else 1
        with freeze_outside(model, MASK, optimizer, reference=reference) as frozen, torch.no_grad():
            model.embed.weight.view(-1)[7] += 1  # allowed
            assert frozen.verify() == []
            model.embed.weight.view(-1)[24] *= -1  # -0.0 becomes 0.0: equal as numbers
            model.frozen.weight[0, 0] = 0
            assert frozen.verify() == [Violation("embed.weight", count), Violation("frozen.weight", count)]
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name])
            assert frozen.verify() == []


def test_verify_leaves_no_trace() -> None:
    """It may run between a forward and its backward pass."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with freeze_outside(model, MASK, optimizer) as frozen:
        loss = loss_of(model, batches(1)[0])
        before, version = bits(model), model.embed.weight._version
        assert frozen.verify() == []
        assert all(np.array_equal(value, before[name]) for name, value in bits(model).items())
        assert model.embed.weight._version == version
        loss.backward()


def test_closing_lets_everything_train_again() -> None:
    model = net()
    model.frozen.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen = freeze_outside(model, MASK, optimizer)
    assert not model.frozen.weight.requires_grad
    assert len(optimizer.param_groups[0]["params"]) == 7
    frozen.close()
    frozen.close()
    assert model.frozen.weight.requires_grad
    assert not model.frozen.bias.requires_grad
    assert len(optimizer.param_groups[0]["params"]) == 7
    before = bits(model)
    loss_of(model, batches(1)[0]).backward()
    optimizer.step()
    changed = {name for name, value in bits(model).items() if (value != before[name]).mean() > 0.5}
    assert {"embed.weight", "frozen.weight", "inner.weight"} <= changed


def test_masks_by_tensor_name_and_from_objects() -> None:
    class Source:
        def positions(self) -> dict[str, np.ndarray]:
            return {"word_table": np.array([5])}

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with freeze_outside(model, Source(), optimizer, tensor_of={"embed.weight": "word_table"}) as frozen:
        assert frozen.masked_parameters == 1
    with freeze_outside(model, {"out.weight": None}, optimizer) as frozen:  # the other name of a tied parameter
        assert frozen.masked_parameters == 54


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"embd.weight": None}, "`embd.weight`"),
        ({"inner.bias": np.array([6])}, "within its 6 elements"),
        ({"inner.bias": np.array([-1])}, "within its 6 elements"),
        ({"inner.bias": np.array([2, 1])}, "ascend"),
        ({"inner.bias": np.array([1, 1])}, "ascend"),
        ({"inner.bias": np.array([True, False])}, "not a list of element indices"),
        ({"inner.bias": np.array([[1]])}, "not a list of element indices"),
        ({"inner.bias": np.array([1.0])}, "not a list of element indices"),
        ({"embed.weight": None, "out.weight": np.array([1])}, "two different masks"),
        ({"frozen.weight": None}, "not in the optimizer"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(mask, message: str) -> None:
    model = net()
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n != "frozen.weight"], lr=0.1)
    with pytest.raises(UsageError, match=message):
        freeze_outside(model, mask, optimizer)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_only_optimizers_are_watched() -> None:
    with pytest.raises(UsageError, match="object is not a torch optimizer"):
        freeze_outside(net(), MASK, object())
