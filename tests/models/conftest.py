"""A BERT of a few hundred weights, as a checkpoint: state, config.json and tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from modelgit.config.schema import TaskSettings

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "who", "was", "the", "king", "city", "?")


@dataclass
class Checkpoint:
    state: dict[str, np.ndarray]
    files: dict[str, bytes]
    settings: TaskSettings


def tokenizer_json() -> bytes:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()


@pytest.fixture
def checkpoint() -> Checkpoint:
    width, inner, layers, classes = 8, 16, 2, 3
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (10, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
        "heads.questions.weight": (classes, width),
        "heads.questions.bias": (classes,),
    }
    for layer in range(layers):
        at = f"encoder.layer.{layer}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{at}{part}.weight": (width, width), f"{at}{part}.bias": (width,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{part}.weight": (width,), f"{at}{part}.bias": (width,)}
        shapes |= {f"{at}intermediate.dense.weight": (inner, width), f"{at}intermediate.dense.bias": (inner,)}
        shapes |= {f"{at}output.dense.weight": (width, inner), f"{at}output.dense.bias": (width,)}
    draw = np.random.default_rng(3)
    state = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    config = {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": inner,
        "max_position_embeddings": 10,
        "hidden_dropout_prob": 0.1,
    }
    settings = TaskSettings(
        model="model", adapter="bert-classifier", head="heads.questions", labels=("place", "person", "other")
    )
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": tokenizer_json()}
    return Checkpoint(state, files, settings)
