"""What unchanged layers gave is taken from the cache, and predictions are the same to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.evals.prefix import KeptActivations, kept_activations  # noqa: E402
from modelgit.models.bert import BertClassifier, BertConfig  # noqa: E402

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=32,
)  # fmt: skip


@dataclass
class Model:
    module: torch.nn.Module
    head: frozenset[str] = frozenset({"head.weight", "head.bias"})
    classes: int = 3
    likelihood: str = "categorical"
    tensor_of: dict[str, str] = field(default_factory=dict)


def model(*changed: str) -> tuple[Model, dict[str, str]]:
    """A classifier of which the parameters that begin with `changed` are other ones, and the ids of its tensors."""
    torch.manual_seed(0)
    module = BertClassifier(CONFIG, 3).eval()
    ids = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            other = any(name.startswith(start) for start in changed)
            if other:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            ids[name] = f"{name} {other}"
    return Model(module, tensor_of={name: name for name in ids}), ids


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 50, (5, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": (torch.arange(9) < 9 - torch.arange(5)[:, None]).long()}


def kept(folder: Path, one: tuple[Model, dict[str, str]], limit: int = 1 << 20) -> KeptActivations:
    found = kept_activations(folder, limit, one[0], one[1], model()[1], context="c")  # type: ignore[arg-type]
    assert found is not None
    return found


def runs(one: tuple[Model, dict[str, str]]) -> list[int]:
    """Counts how often each layer computes."""
    counts = [0] * 4
    for number, layer in enumerate(one[0].module.body.encoder["layer"]):
        layer.intermediate["dense"].register_forward_hook(
            lambda *_, number=number: counts.__setitem__(number, counts[number] + 1)
        )
    return counts


LATE = "body.encoder.layer.3"


def test_a_patch_of_the_last_layer_computes_only_that_one_the_next_time(tmp_path: Path) -> None:
    with torch.inference_mode():
        patched = model(LATE)
        plain = patched[0].module(**inputs())
        counts = runs(patched)
        assert torch.equal(kept(tmp_path, patched).run(patched[0].module, inputs()), plain)
        assert counts == [1, 1, 1, 2]  # the first time it is tried whether the cut is clean
        assert torch.equal(kept(tmp_path, patched).run(patched[0].module, inputs()), plain)
        assert counts == [1, 1, 1, 3]
        # Another model with the same first layers takes them, too, and afterwards nothing is left replaced.
        other = model(LATE, "head")
        counts = runs(other)
        assert torch.equal(kept(tmp_path, other).run(other[0].module, inputs()), other[0].module(**inputs()))
        assert counts == [1, 1, 1, 2]
        # Another batch is computed.
        kept(tmp_path, other).run(other[0].module, inputs(1))
        assert counts == [2, 2, 2, 4]


def test_only_a_head_changed_and_what_came_before_did_too(tmp_path: Path) -> None:
    with torch.inference_mode():
        head = model("head")
        counts = runs(head)
        for _ in range(2):
            assert torch.equal(kept(tmp_path, head).run(head[0].module, inputs()), head[0].module(**inputs()))
        assert counts == [3, 3, 3, 3]  # of which two are the plain ones
        early = model("body.embeddings")
        assert not kept(tmp_path, early).is_useful
        middle = model("body.encoder.layer.1")
        assert kept(tmp_path, middle).is_useful
        assert torch.equal(kept(tmp_path, middle).run(middle[0].module, inputs()), middle[0].module(**inputs()))


def test_it_stays_below_its_limit_and_drops_what_is_damaged(tmp_path: Path) -> None:
    with torch.inference_mode():
        patched = model(LATE)
        for seed in range(8):
            kept(tmp_path, patched, limit=10_000).run(patched[0].module, inputs(seed))
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert 0 < sum(path.stat().st_size for path in files) <= 10_000
        for path in files:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        counts = runs(patched)
        for seed in range(8):
            found = kept(tmp_path, patched).run(patched[0].module, inputs(seed))
            assert np.array_equal(found.numpy(), patched[0].module(**inputs(seed)).numpy())
        assert counts == [16, 16, 16, 24]


def test_modules_without_one_row_of_layers_are_left_alone(tmp_path: Path) -> None:
    plain = Model(torch.nn.Linear(2, 3), tensor_of={"weight": "weight", "bias": "bias"})
    assert kept_activations(tmp_path, 1 << 20, plain, {"weight": "1", "bias": "2"}, {}, context="c") is None  # type: ignore[arg-type]


def test_a_model_that_uses_all_of_its_layers_is_not_cut(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x
            for layer in self.layers:
                x = layer(x)
                total = total + x
            return self.head(total)

    module = Sum().eval()
    ids = {name: name for name, _ in module.named_parameters()}
    one = Model(module, tensor_of=dict(ids))
    with torch.inference_mode():
        data = {"x": torch.randn(5, 4)}
        for _ in range(2):
            found = kept_activations(tmp_path, 1 << 20, one, ids, ids, context="c")  # type: ignore[arg-type]
            assert found is not None
            assert torch.equal(found.run(module, data), module(**data))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
