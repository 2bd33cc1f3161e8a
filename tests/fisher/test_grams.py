"""Gram matrices of what goes into linear layers, against what forward hooks see one example at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from modelgit.errors import CheckFailed  # noqa: E402
from modelgit.fisher.grams import gram_matrices  # noqa: E402
from modelgit.models.base import Example  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402
from modelgit.models.entry import InputSet  # noqa: E402
from modelgit.models.tokens import TokenSet  # noqa: E402


def seen_by_hooks(model: BoundModel, examples: TokenSet | InputSet, positions: list[int]) -> dict[str, np.ndarray]:
    """The mean of x x^T in float64 by layer, without padding, because no batch has any."""
    rows: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, part in model.module.named_modules():
        if isinstance(part, nn.Linear):
            tensor = model.tensor_of[f"{name}.weight"]
            hook = lambda _, args, tensor=tensor: rows.setdefault(tensor, []).append(  # noqa: E731
                args[0].detach().reshape(-1, args[0].shape[-1]).double()
            )
            handles.append(part.register_forward_pre_hook(hook))
    with torch.no_grad():
        for position in positions:
            model.module(**next(iter(examples.select([position]).batches(1))).inputs)
    for handle in handles:
        handle.remove()
    whole = {name: torch.cat(found) for name, found in rows.items()}
    return {name: (x.t() @ x / len(x)).numpy() for name, x in whole.items()}


def test_they_are_the_inputs_of_each_layer_without_padding(
    bert: Callable[..., BoundModel], sentences: Callable[..., TokenSet]
) -> None:
    model, examples, positions = bert(), sentences(), [3, 1, 7, 20, 4, 11, 2]
    wanted = seen_by_hooks(model, examples, positions)
    model.module.train()
    found = {size: gram_matrices(model, examples, positions, batch_size=size) for size in (1, 3, 7)}
    assert model.module.training
    for made in found.values():
        assert made.matrices.keys() == wanted.keys() and not made.first
        for name, matrix in made.matrices.items():
            assert matrix.dtype == np.float32
            assert np.allclose(matrix, wanted[name], rtol=1e-5, atol=1e-6), name
    names = sorted(wanted)
    assert len(names) == 13 and "classifier.weight" in names
    layer = [name for name in names if "layer.0.attention.self" in name]
    assert len({found[3].matrices[name].tobytes() for name in layer}) == 1  # queries, keys and values


class Odd(nn.Module):
    """Weights used in all the ways that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.turned = nn.Parameter(torch.randn(4, 6))
        self.shared = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x, _ = self.attention(x, x, x, need_weights=False)
        tied = functional.linear(x, self.embedding.weight)
        x = torch.addmm(torch.zeros(6), x.reshape(-1, 4), self.turned)
        x = self.shared(functional.relu_(self.shared(x)))
        return self.out(x).reshape(*ids.shape, 3).sum(1) + tied.sum()


def test_other_ways_to_use_a_weight(bound: Callable[..., BoundModel]) -> None:
    model = bound(Odd().eval())
    ids = torch.randint(0, 9, (6, 5))
    examples = InputSet(tuple(Example(str(at), "", 0) for at in range(6)), "odd", {"ids": ids})
    found = gram_matrices(model, examples, list(range(6)), batch_size=4)
    # The embedding, which is also an output layer, has none.
    assert sorted(found.matrices) == [
        "attention.in_proj_weight", "attention.out_proj.weight", "out.weight", "shared.weight", "turned",
    ]  # fmt: skip
    assert found.first == {"turned"}
    x = model.module.embedding(ids).detach().reshape(-1, 4).double()
    assert np.allclose(found.matrices["attention.in_proj_weight"], (x.t() @ x / len(x)).numpy(), rtol=1e-5)
    assert np.linalg.matrix_rank(found.matrices["turned"]) <= 4
    once = seen_by_hooks(model, examples, list(range(6)))
    assert np.allclose(found.matrices["shared.weight"], once["shared.weight"], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.module.turned.fill_(float("inf"))
    with pytest.raises(CheckFailed, match="not finite"):
        gram_matrices(model, examples, [0])
