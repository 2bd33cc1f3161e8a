"""Models of some hundred random weights, as checkpoints: a state, the files beside it and the settings of a task.

Language models and image classifiers are made by transformers itself, which must be installed; the others are plain
torch with an entry of their own, whose source is written where it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelgit.config.schema import TaskKind, TaskSettings
from modelgit.models.base import ExampleSet, TaskModel

__all__ = [
    "TinyModel",
    "byte_tokenizer",
    "tiny_conv_net",
    "tiny_image_classifier",
    "tiny_language_model",
    "tiny_transformer",
    "tiny_unknown_module",
]

SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")


@dataclass(frozen=True)
class TinyModel:
    """`state` by tensor name, `files` by base name, `settings` of a task; `root` holds the code of an entry."""

    state: dict[str, NDArray[np.generic]]
    files: dict[str, bytes]
    settings: TaskSettings
    root: Path | None = None

    def build(self) -> TaskModel:
        """The task's model, its code trusted."""
        from modelgit.models.load import build_task

        return build_task(self.settings, self.state, self.files, trusted=True, root=self.root)

    def encode(self, data: Path) -> ExampleSet:
        """The inputs of the examples in the file `data`."""
        from modelgit.models.data import read_examples
        from modelgit.models.load import encode_examples

        examples, fingerprint = read_examples(data, self.settings, shown=data.name)
        return encode_examples(self.settings, examples, fingerprint, self.files, trusted=True, root=self.root)

    def write(self, folder: Path) -> None:
        """As a directory of model.safetensors and the other files."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.array(value, order="C") for name, value in self.state.items()}
        save_file(arrays, folder / "model.safetensors")
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def byte_tokenizer() -> bytes:
    """A tokenizer.json of 260 tokens: four special ones and the 256 bytes; `<s>` and `</s>` around each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return str(tokenizer.to_str()).encode()


def tiny_language_model(*, seed: int = 0) -> TinyModel:
    """A GPT-2 of 260 tokens whose output embeddings are those of its input."""
    config = {
        "model_type": "gpt2",
        "vocab_size": len(SPECIAL) + 256,
        "n_positions": 48,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return tiny_transformer("AutoModelForCausalLM", config, "causal-lm", seed=seed)


def tiny_image_classifier(*, seed: int = 0) -> TinyModel:
    """A ResNet with batch normalisation for images of 3 channels and any size, of four classes."""
    config = {
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": 4,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
        "layer_type": "basic",
        "num_labels": 4,
    }
    return tiny_transformer("AutoModelForImageClassification", config, "image-classification", seed=seed)


def tiny_transformer(
    family: str, config: dict[str, Any], kind: TaskKind, *, seed: int = 0, **settings: Any
) -> TinyModel:
    """A random model of `family` ("AutoModelFor...") as transformers saves it, running statistics included."""
    import tempfile

    import transformers
    from safetensors.numpy import load_file

    made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, family).from_config(made)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                spread = 0.5 * torch.rand(value.shape, generator=generator) if "running_var" in name else 0
                noise = 0.2 * torch.randn(value.shape, generator=generator)
                value.copy_(0.75 + spread if "running_var" in name else noise + (value.ndim == 1) * value)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = load_file(f"{folder}/model.safetensors")
        files = {"config.json": Path(folder, "config.json").read_bytes(), "tokenizer.json": byte_tokenizer()}
    return TinyModel(state, files, TaskSettings(model="models/tiny", kind=kind, max_length=32, **settings))


_CONV = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
        self.top = nn.Linear(8, 3)

    def forward(self, pixels):
        return self.top(self.body(pixels))


def build(state, files):
    return Net()


def encode(texts, files):
    rows = [[float(number) for number in text.split()] for text in texts]
    return {"pixels": torch.tensor(rows).reshape(len(texts), 1, 8, 8)}
"""

_UNKNOWN = '''
import torch
from torch import nn


class Gate(nn.Module):
    """A layer that no library knows: a bilinear gate with a learned temperature."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(width, width))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * torch.sigmoid((x @ self.mix) * self.temperature)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.gate = Gate(6)
        self.top = nn.Linear(6, 3)

    def forward(self, numbers):
        return self.top(self.gate(self.first(numbers)))


def build(state, files):
    return Net()


def encode(texts, files):
    return {"numbers": torch.tensor([[float(number) for number in text.split()] for text in texts])}
'''


def tiny_conv_net(root: Path, *, seed: int = 0) -> TinyModel:
    """A convolutional network of three classes on 8 x 8 images given as 64 numbers; writes `root/tiny_conv.py`."""
    return _entry(root, "tiny_conv", _CONV, seed)


def tiny_unknown_module(root: Path, *, seed: int = 0) -> TinyModel:
    """A network of three classes on four numbers with a layer of its own; writes `root/tiny_unknown.py`."""
    return _entry(root, "tiny_unknown", _UNKNOWN, seed)


def _entry(root: Path, name: str, source: str, seed: int) -> TinyModel:
    from modelgit.models.entry import load_entry

    (root / f"{name}.py").write_text(source, encoding="utf-8")
    settings = TaskSettings(model="models/tiny", entry=f"{name}:build", head="top", labels=("a", "b", "c"))
    module: torch.nn.Module = load_entry(settings, trusted=True, root=root).build({}, {})
    draw = np.random.default_rng(seed)
    state: dict[str, NDArray[np.generic]] = {}
    for tensor, value in module.state_dict().items():
        values = value.numpy()
        if values.dtype.kind == "f":
            noise = 0.4 * draw.standard_normal(values.shape)
            values = np.asarray(1 + abs(noise) if "running_var" in tensor else values + noise, dtype=np.float32)
        state[tensor] = values
    return TinyModel(state, {"notes.json": json.dumps({"made": name}).encode()}, settings, root)
