"""Tiny task models and random token sets; no files, no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.config.schema import TaskSettings  # noqa: E402
from modelgit.models.base import Example  # noqa: E402
from modelgit.models.bert import BERT_CLASSIFIER, BertClassifier, BertConfig  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402
from modelgit.models.entry import InputSet  # noqa: E402
from modelgit.models.tokens import TokenSet  # noqa: E402

VOCABULARY = 30


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads cost more than they bring at these sizes


@pytest.fixture
def bert() -> Callable[..., BoundModel]:
    """A two-layer BERT with random weights; `scale` makes its predictions more or less sure."""

    def build(classes: int = 3, *, scale: float = 1.0) -> BoundModel:
        sizes = {
            "model_type": "bert",
            "vocab_size": VOCABULARY,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 20,
            "max_position_embeddings": 16,
        }
        files = {"config.json": json.dumps(sizes).encode()}
        module = BertClassifier(BertConfig.read(files), classes)
        with torch.no_grad():
            module.head.weight.mul_(scale)
        state = {
            name.removeprefix("body.").replace("head.", "classifier."): value.numpy()
            for name, value in module.state_dict().items()
        }
        return BERT_CLASSIFIER.build(TaskSettings(model="m"), state, files)

    return build


@pytest.fixture
def sentences() -> Callable[..., TokenSet]:
    """Random token ids of 3 to 12 tokens, some repeated within a sentence; ids 25 to 29 never occur."""

    def build(count: int = 24, *, classes: int = 3) -> TokenSet:
        draw = np.random.default_rng(1)
        ids = tuple(tuple(draw.integers(0, 25, draw.integers(3, 13)).tolist()) for _ in range(count))
        examples = tuple(Example(str(at), "", int(draw.integers(classes))) for at in range(count))
        return TokenSet(examples, "sentences", ids)

    return build


@pytest.fixture
def bound() -> Callable[..., BoundModel]:
    """Any module as a task model whose tensors are named like its parameters, or as `tensor_of` says."""

    def build(module: torch.nn.Module, classes: int = 3, **tied: str) -> BoundModel:
        names = {name: name for name, _ in module.named_parameters()} | {
            n.replace("__", "."): t for n, t in tied.items()
        }
        return BoundModel(module, names, frozenset(), classes)

    return build


@pytest.fixture
def vectors() -> Callable[..., InputSet]:
    """Random float inputs of one shape, or random ids for `high`."""

    def build(*shape: int, count: int = 20, high: int | None = None, name: str = "x", classes: int = 3) -> InputSet:
        draw = torch.Generator().manual_seed(5)
        if high is None:
            values = torch.randn(count, *shape, generator=draw)
        else:
            values = torch.randint(0, high, (count, *shape), generator=draw)
        examples = tuple(Example(str(at), "", at % classes) for at in range(count))
        return InputSet(examples, "vectors", {name: values})

    return build
