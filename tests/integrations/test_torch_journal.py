"""A run's journal: a line a step, and a leak of one value is in it even when a later step takes it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from modelgit.errors import UsageError  # noqa: E402
from modelgit.fisher.journal import JournalEnd, JournalStart, JournalStep, Leak, read_journal  # noqa: E402
from modelgit.fisher.outside import fingerprint, mask_fingerprint, model_fingerprint, zero_positions  # noqa: E402
from modelgit.integrations.torch import freeze_outside  # noqa: E402

MASK = {"0.weight": np.arange(0, 48, 5), "2.bias": None}
DATA = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))


def net(kind: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model.register_buffer("scale", torch.tensor(2.0))
    return model.to(kind)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(DATA.to(model[0].weight.dtype)).square().mean().backward()
    optimizer.step()


def by_hand(model: nn.Module) -> dict[str, str]:
    found = {}
    for name, value in model.state_dict().items():
        at = MASK.get(name, np.array([], np.int64))
        if at is None:
            continue
        words = (
            value.contiguous().reshape(-1).view({2: torch.int16, 4: torch.int32}[value.element_size()]).numpy().copy()
        )
        zero_positions(words, at, 0)
        found[name] = fingerprint([words.tobytes()])
    return found


def steps(path: Path) -> list[JournalStep]:
    return [line for _, line in read_journal(path) if isinstance(line, JournalStep)]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_every_step_has_a_line(tmp_path: Path, kind: torch.dtype) -> None:
    path = tmp_path / "runs" / "journal"
    model = net(kind)
    expected = by_hand(model)
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}], lr=0.05, weight_decay=0.3
    )
    step(model, optimizer)  # moments
    model.load_state_dict(net(kind).state_dict())
    with freeze_outside(model, MASK, optimizer, journal=path):
        for _ in range(5):
            step(model, optimizer)
            assert path.read_bytes().endswith(b"\n")
    start, *middle, end = [line for _, line in read_journal(path)]
    assert isinstance(start, JournalStart) and isinstance(end, JournalEnd)
    assert {name: item.digest for name, item in start.tensors.items()} == expected
    assert start.digest == model_fingerprint(expected)
    assert start.mask == mask_fingerprint(MASK)
    assert (start.first, start.every, start.optimizer, start.masked) == (1, 1, "AdamW", 13)
    assert start.tensors["0.weight"].dtype == {torch.float32: "F32", torch.bfloat16: "BF16"}[kind]
    assert [line.step for line in middle] == [1, 2, 3, 4, 5]
    assert {line.digest for line in (*middle, end)} == {start.digest}
    assert {(line.violations, line.leaks, line.optimizer, line.lr) for line in middle} == {
        (0, (), "AdamW", (0.05, 0.5))
    }
    assert end.steps == 5


@pytest.mark.parametrize("counted", [False, True])
def test_a_leak_that_is_taken_back_stays_in_the_journal(tmp_path: Path, counted: bool) -> None:
    model = net()
    reference = {name: value.clone() for name, value in model.state_dict().items()} if counted else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    path = tmp_path / "journal"
    with freeze_outside(model, MASK, optimizer, journal=path, reference=reference) as frozen:
        for number in range(1, 9):
            optimizer.zero_grad()
            model(DATA).square().mean().backward()
            flat = model[2].weight.data.view(-1)
            if number == 4:
                kept = flat[7].clone()
                flat[7] = torch.nextafter(flat[7], torch.tensor(9.0))
            if number == 6:
                flat[7] = kept
            optimizer.step()
        assert frozen.verify() == []
    found = {line.step: (line.violations, line.leaks) for line in steps(path)}
    leak = (1, (Leak("2.weight", 1 if counted else None),))
    assert found == {number: leak if number in (4, 5) else (0, ()) for number in range(1, 9)}


def test_a_journal_of_every_third_step(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with freeze_outside(model, MASK, optimizer, journal=tmp_path / "j", journal_every=3):
        for _ in range(7):
            step(model, optimizer)
    assert [line.step for line in steps(tmp_path / "j")] == [3, 6]
    with pytest.raises(UsageError, match="every 0 steps"):
        freeze_outside(model, MASK, optimizer, journal=tmp_path / "j", journal_every=0)


def test_a_run_that_goes_on_appends(tmp_path: Path) -> None:
    path = tmp_path / "j"
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        with freeze_outside(model, MASK, optimizer, journal=path):
            step(model, optimizer)
            step(model, optimizer)
    lines = [line for _, line in read_journal(path)]
    assert [line.first for line in lines if isinstance(line, JournalStart)] == [1, 3]
    assert [line.step for line in steps(path)] == [1, 2, 3, 4]
    with path.open("ab") as file:
        file.write(b'{"line":"step","st')  # a crash
    assert len(list(read_journal(path))) == len(lines)
    with freeze_outside(model, MASK, optimizer, journal=path):
        step(model, optimizer)
    assert [line.step for line in steps(path)] == [1, 2, 3, 4, 5]
    assert len(list(read_journal(path))) == len(lines) + 3


@pytest.mark.parametrize("text", ["hello\n", '{"line":"stop"}\n', '{"line":"step","step":"x"}\n', "\xff\n"])
def test_what_is_no_journal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match="line 1 of"):
        list(read_journal(path))
    (tmp_path / "file").write_text("")
    model = net()
    with pytest.raises(UsageError, match="cannot be written"):
        freeze_outside(model, MASK, torch.optim.SGD(model.parameters()), journal=tmp_path / "file" / "j")
    assert all(p.requires_grad for p in model.parameters())


def test_the_mask_has_a_fingerprint() -> None:
    one = {"a": np.array([1, 2]), "b": None, "c": np.array([], np.int64)}
    assert mask_fingerprint(one) == mask_fingerprint({"b": None, "a": np.array([1, 2], np.uint32)})
    assert mask_fingerprint(one) != mask_fingerprint({"a": np.array([1, 3]), "b": None})
    assert mask_fingerprint(one) != mask_fingerprint({"a": None, "b": np.array([1, 2])})


@pytest.mark.parametrize("name", ["embed.weight", "out.weight"])
def test_tied_weights_have_the_name_that_the_mask_has(tmp_path: Path, name: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.out = nn.Linear(6, 9)
            self.out.weight = self.embed.weight

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    mask = {name: np.array([4, 7])}
    with freeze_outside(model, mask, optimizer, journal=tmp_path / "j"):
        pass
    start = next(iter(read_journal(tmp_path / "j"))).line
    assert isinstance(start, JournalStart)
    assert start.mask == mask_fingerprint(mask)
    assert set(start.tensors) == {name, "out.bias"}
    assert {name, *start.tensors[name].aliases} == {"embed.weight", "out.weight"}
