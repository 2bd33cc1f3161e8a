"""Every kind of layer: squares by hooks equal squares of one backward pass per example, and none takes the slow way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from modelgit.fisher.hooks import GradientSquares  # noqa: E402

COUNT = 6


class Chain(nn.Module):
    """Layers in a row, then a mean over all but the examples and the last axis."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.layers(x)
        return z.reshape(len(x), -1, z.shape[-1]).sin().mean(1)


class Frames(nn.Module):
    """Pictures of a film, flattened with the examples for the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(2, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.top = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(self.filter(x.flatten(0, 1)).tanh()).mean((2, 3))
        return self.top(z).unflatten(0, x.shape[:2]).cos().mean(1)


class RootMeanSquare(nn.Module):
    """As in Llama; with `offset`, as in Gemma."""

    def __init__(self, width: int, offset: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * z.to(x.dtype) if self.offset is None else z * (self.offset + self.weight.float())


class Transposed(nn.Module):
    """A linear layer as GPT-2 writes it, and one without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.bias = nn.Parameter(torch.randn(4))
        self.other = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.addmm(self.bias, x.reshape(-1, 5), self.weight).view(*x.shape[:-1], 4)
        return z.tanh() @ self.other


class Vision(nn.Module):
    """Patches, a first token, positions, a scale for each channel and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, stride=2)
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 5, 6))
        self.scale = nn.Parameter(torch.randn(6))
        self.all = nn.Parameter(torch.tensor(1.5))
        self.mix = nn.Linear(5, 5)
        self.top = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.first.expand(len(x), -1, -1), z], 1) + self.positions
        z = z + self.scale * self.mix(z.transpose(1, 2)).transpose(1, 2) * self.all
        return self.top(z.sin()[:, 0])


class Words(nn.Module):
    """Positions that all examples share, an embedding that is the output layer too, one row for each token."""

    def __init__(self, *, tied: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.positions = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.tied = tied
        if tied == "module":
            self.top = nn.Linear(6, 11, bias=False)
            self.top.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = torch.arange(x.shape[1], device=x.device)[None]
        z = self.mix(self.embed(x) + self.positions(at)).tanh()
        if self.tied == "module":
            return self.top(z)
        return z @ self.embed.weight.T if self.tied == "product" else functional.linear(z, self.embed.weight)


class Attention(nn.Module):
    """torch's attention between a text and its first tokens, with padding left out."""

    def __init__(self, *, batch_first: bool, same: bool) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.top = nn.Linear(6, 3)
        self.same, self.batch_first = same, batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = x if self.same else x[:, :3]
        left_out = keys[:, :, 0] > 1.2
        left_out[:, 0] = False
        if self.batch_first:
            z = self.attend(x, keys, keys, key_padding_mask=left_out)[0]
        else:
            turned = x.transpose(0, 1), keys.transpose(0, 1)
            z = self.attend(turned[0], turned[1], turned[1], key_padding_mask=left_out)[0].transpose(0, 1)
        return self.top(z.tanh()).mean(1)


def encoder() -> nn.Module:
    return Chain(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.LayerNorm(6))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int | None]] = {
    "conv1d, dilated": (lambda: Chain(nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), nn.Flatten()), (2, 9), None),
    "conv1d, same": (lambda: Chain(nn.Conv1d(2, 3, 4, padding="same"), nn.Tanh(), nn.Conv1d(3, 2, 2)), (2, 7), None),
    "conv2d": (lambda: Chain(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Flatten()), (2, 6, 5), None),
    "conv2d, reflected": (lambda: Chain(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), (2, 5, 5), None),
    "conv2d, groups": (lambda: Chain(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 4, 1)), (4, 5, 5), None),
    "conv2d, each channel": (lambda: Chain(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Flatten()), (4, 5, 5), None),
    "conv3d": (lambda: Chain(nn.Conv3d(2, 3, 2, stride=2), nn.Flatten()), (2, 4, 4, 4), None),
    "frames": (Frames, (3, 2, 5, 5), None),
    "batch norm": (
        lambda: Chain(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()), (2, 5, 5), None,
    ),
    "batch norm, vectors": (lambda: Chain(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), (5,), None),
    "group norm": (lambda: Chain(nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(20, 3)), (4, 5), None),
    "instance norm": (lambda: Chain(nn.InstanceNorm1d(4, affine=True), nn.Flatten(), nn.Linear(20, 3)), (4, 5), None),
    "layer norm, two axes": (lambda: Chain(nn.LayerNorm((4, 5)), nn.Linear(5, 3)), (4, 5), None),
    "torch's rms norm": (lambda: Chain(nn.RMSNorm(5), nn.Linear(5, 3), nn.RMSNorm(3, eps=1e-3)), (4, 5), None),
    "Llama's rms norm": (lambda: Chain(RootMeanSquare(5), nn.Linear(5, 3)), (4, 5), None),
    "Gemma's rms norm": (lambda: Chain(RootMeanSquare(5, 1.0), nn.Linear(5, 3)), (4, 5), None),
    "transposed": (Transposed, (4, 5), None),
    "vision": (Vision, (2, 4, 4), None),
    "tied by module": (lambda: Words(tied="module"), (7,), 11),
    "tied by product": (lambda: Words(tied="product"), (7,), 11),
    "tied by function": (lambda: Words(tied="function"), (7,), 11),
    "attention": (lambda: Attention(batch_first=True, same=True), (5, 6), None),
    "attention across": (lambda: Attention(batch_first=True, same=False), (5, 6), None),
    "attention, tokens first": (lambda: Attention(batch_first=False, same=False), (5, 6), None),
    "encoder": (encoder, (5, 6), None),
}  # fmt: skip


def _transformers(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 19, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    width = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, **sizes),
        "llama": lambda: transformers.LlamaConfig(num_key_value_heads=1, max_position_embeddings=16, **width, **sizes),
        "gemma": lambda: transformers.GemmaConfig(
            num_key_value_heads=1, head_dim=4, max_position_embeddings=16, **width, **sizes
        ),
        "qwen3": lambda: transformers.Qwen3Config(
            num_key_value_heads=1, head_dim=4, max_position_embeddings=16, tie_word_embeddings=True, **width, **sizes
        ),
        "bert": lambda: transformers.BertConfig(max_position_embeddings=16, **width, **sizes),
        "distilbert": lambda: transformers.DistilBertConfig(
            dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=16, **sizes
        ),
    }
    masked = kind in ("bert", "distilbert")
    maker = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    return Logits(maker.from_config(configs[kind]()))


class Logits(nn.Module):
    """Only the logits of a model of transformers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=x, attention_mask=torch.ones_like(x)).logits


def shaken(module: nn.Module) -> nn.Module:
    """No weight or statistic at a value that hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for part in module.modules():
            if hasattr(part, "running_var") and part.running_var is not None:
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return module.eval()


def squares(module: nn.Module, x: torch.Tensor, directions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The definition: the squared gradient of each example and direction, alone."""
    named = dict(module.named_parameters())
    totals = {name: torch.zeros_like(value) for name, value in named.items()}
    module.requires_grad_(True)
    for direction in directions:
        for row in range(len(x)):
            output = module(x[row : row + 1])
            gradients = torch.autograd.grad(output, list(named.values()), direction[row : row + 1], allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    totals[name] += gradient.square()
    return totals


def check(module: nn.Module, x: torch.Tensor) -> set[str]:
    """Hooks against the definition for two directions; gives the tensors that went the slow way."""
    with torch.no_grad():
        shape = module(x).shape
    vectors = [torch.randn(shape), torch.randn(shape)]
    expected = squares(module, x, vectors)
    largest = max(float(value.max()) for value in expected.values())
    work = GradientSquares(module, {name: name for name, _ in module.named_parameters()})
    for start in (0, 4):
        rows = slice(start, start + 4)
        work.add({"x": x[rows]}, lambda _, part, rows=rows: [vector[rows][part] for vector in vectors])
    for name, value in expected.items():
        allowed = 1e-5 * max(float(value.max()), 1e-6 * largest)
        assert float((work.totals[name] - value).abs().max()) <= allowed, name
        assert float(work.totals[name].min()) >= 0, name
    return work.slow


def inputs(shape: tuple[int, ...], high: int | None) -> torch.Tensor:
    return torch.randn(COUNT, *shape) if high is None else torch.randint(0, high, (COUNT, *shape))


@pytest.mark.parametrize("name", CASES)
def test_hooks_equal_the_definition(name: str) -> None:
    make, shape, high = CASES[name]
    assert check(shaken(make()), inputs(shape, high)) == set()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "qwen3", "bert", "distilbert"])
def test_models_of_transformers(kind: str) -> None:
    """Causal and masked language models, tied and not: every weight of theirs goes the fast way."""
    module = shaken(_transformers(kind))
    assert check(module, inputs((7,), 19)) == set()


def test_a_wrong_contribution_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a formula wrong, its tensors would take the slow way and the result would still be right."""
    from modelgit.fisher.squares import Outer

    right = Outer.add_example

    def wrong(self: Outer, gradient: torch.Tensor, example: int) -> None:
        before = gradient[0].clone()
        right(self, gradient, example)
        gradient[0] += 0.01 * (gradient[0] - before)

    monkeypatch.setattr(Outer, "add_example", wrong)
    assert check(shaken(Chain(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))), inputs((4, 5), None)) == {
        "layers.0.weight",
        "layers.2.weight",
    }


def test_frames_are_not_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of single positions instead of whole examples have the right sum of gradients, and are refused."""
    from modelgit.fisher import hooks

    def by_position(count: int, second: bool, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, 1, values.shape[-1])

    monkeypatch.setattr(hooks, "_by_example", by_position)
    found = check(shaken(Frames()), inputs((3, 2, 5, 5), None))
    assert found == {name for name, _ in Frames().named_parameters()}
