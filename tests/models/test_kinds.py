"""From settings and config.json to an adapter, and from models of every kind to a Fisher estimate."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from modelgit.config.schema import EvalSettings, Limit, Settings, TaskSettings
from modelgit.errors import UsageError
from modelgit.evals.suites import load_suites
from modelgit.models.base import ADAPTERS
from modelgit.models.kinds import ModelConfig, task_kind
from modelgit.models.load import adapter_of

torch = pytest.importorskip("torch")

from modelgit.fisher.estimate import estimate  # noqa: E402
from modelgit.testing.models import tiny_conv_net, tiny_transformer, tiny_unknown_module  # noqa: E402


def files(**config: object) -> dict[str, bytes]:
    return {"config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("config", "settings", "adapter"),
    [
        ({"model_type": "bert"}, {}, "bert-classifier"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, {"labels": ("a", "b")}, "bert-classifier"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, {"labels": ("a", "b")}, "bert-classifier"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, {}, "transformers"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, {}, "transformers"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, {"kind": "sentence-embedding"}, "transformers"),
        ({"model_type": "bert"}, {"kind": "sequence-classification", "adapter": "bert-classifier"}, "bert-classifier"),
        ({"model_type": "gpt2"}, {}, "transformers"),
    ],
)
def test_which_adapter_builds_a_model(config: dict, settings: dict, adapter: str) -> None:
    assert adapter_of(TaskSettings(model="m", **settings), files(**config)) is ADAPTERS.get(adapter)


def test_a_directory_that_says_nothing_needs_an_adapter_or_an_entry() -> None:
    for config in ({}, {"config.json": b"{"}, files(model_type=3)):
        with pytest.raises(UsageError, match="neither `adapter` nor `entry`") as caught:
            adapter_of(TaskSettings(model="m"), config)
        assert "bert-classifier, transformers" in caught.value.hint


def test_the_kind_is_that_of_the_task_or_of_the_head() -> None:
    config = files(model_type="gpt2", architectures=["GPT2LMHeadModel"])
    assert task_kind(TaskSettings(model="m"), config) == "causal-lm"
    assert task_kind(TaskSettings(model="m", kind="sentence-embedding"), config) == "sentence-embedding"
    assert ModelConfig.read(files(architectures=["T5ForConditionalGeneration"])).kind is None


def test_a_model_without_a_known_head_is_told_the_kinds() -> None:
    with pytest.raises(UsageError, match="names no head") as caught:
        adapter = adapter_of(TaskSettings(model="m"), files(model_type="gpt2"))
        adapter.build(TaskSettings(model="m"), {}, files(model_type="gpt2"))
    assert "causal-lm" in caught.value.hint


def test_the_plain_classifier_computes_no_other_kind() -> None:
    adapter = ADAPTERS.get("bert-classifier")
    with pytest.raises(UsageError, match="of kind `causal-lm`") as caught:
        adapter.build(TaskSettings(model="m", kind="causal-lm"), {}, {})
    assert 'adapter = "transformers"' in caught.value.hint


def test_suites_measure_classes_only() -> None:
    task = TaskSettings(model="m", kind="causal-lm", test="t.jsonl")
    suite = EvalSettings(task="prose", accuracy=Limit(max_drop=0.1))
    with pytest.raises(UsageError, match="suite `smoke` measures a task of kind `causal-lm`"):
        load_suites(Settings(task={"prose": task}, eval={"smoke": suite}))
    images = msgspec.structs.replace(task, kind="image-classification")
    assert load_suites(Settings(task={"prose": images}, eval={"smoke": suite}))[0].name == "smoke"


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
BERT = {"model_type": "bert", "vocab_size": 260, "max_position_embeddings": 40, "num_labels": 3, **SIZES}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [6],
    "depths": [1],
    "layer_type": "basic",
    "num_labels": 3,
}
WORDS = [["ab", "c"], ["d"], ["a", "bc", "def"], ["e", "f"]]


def made(kind: str, root: Path):
    """A tiny model of a kind, and its data as records."""
    if kind == "convolution":
        numbers = np.random.default_rng(0).standard_normal((4, 64)).round(3)
        return tiny_conv_net(root), [{"text": " ".join(map(str, row)), "label": "a"} for row in numbers]
    if kind == "unknown module":
        return tiny_unknown_module(root), [{"text": f"{at} 1 -{at} 0.5", "label": "b"} for at in range(4)]
    texts = [" ".join(words) for words in WORDS]
    if kind == "token-classification":
        return tiny_transformer("AutoModelForTokenClassification", BERT, kind), [{"text": words} for words in WORDS]
    if kind == "question-answering":
        records = [{"question": "a?", "context": text} for text in texts]
        return tiny_transformer("AutoModelForQuestionAnswering", BERT | {"num_labels": 2}, kind), records
    if kind == "image-classification":
        draw = np.random.default_rng(0)
        return (
            tiny_transformer("AutoModelForImageClassification", RESNET, kind),
            [{"image": draw.standard_normal((3, 9, 9)).round(3).tolist()} for _ in range(4)],
        )
    if kind == "sentence-embedding":
        return tiny_transformer("AutoModel", BERT, kind, normalize=True), [{"text": text} for text in texts]
    return tiny_transformer("AutoModelForSequenceClassification", BERT, kind), [{"text": text} for text in texts]


def definition(task, data) -> dict[str, np.ndarray]:
    """The diagonal by its definition: for each example and each output, J^T (diag p - p p^T) J of its logits."""
    parameters = dict(task.module.named_parameters())
    totals = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    for batch in data.batches(1):
        out = task.module(**batch.inputs)[0]
        rows = out[None] if out.ndim == 1 else out
        for at, row in enumerate(rows):
            if batch.counted is not None and not batch.counted[0, at]:
                continue
            p = row.detach().double().softmax(0)
            middle = torch.diag(p) - p[:, None] * p if task.likelihood == "categorical" else torch.eye(len(row))
            jacobian = [
                torch.autograd.grad(value, parameters.values(), retain_graph=True, allow_unused=True) for value in row
            ]
            for name, columns in zip(parameters, zip(*jacobian, strict=True), strict=True):
                if columns[0] is not None:
                    stacked = torch.stack([column.double().flatten() for column in columns])
                    totals[name] += ((middle.double() @ stacked) * stacked).sum(0).reshape(totals[name].shape) / len(
                        data
                    )
    return {task.tensor_of[name]: value.numpy() for name, value in totals.items()}


@pytest.mark.parametrize(
    "kind",
    [
        "sequence-classification",
        "regression",
        "token-classification",
        "question-answering",
        "sentence-embedding",
        "image-classification",
        "convolution",
        "unknown module",
    ],
)
def test_the_fisher_diagonal_of_every_kind_is_its_definition(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tiny, records = made(kind, tmp_path)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task, data = tiny.build(), tiny.encode(tmp_path / "d.jsonl")
    found = estimate(task, data, estimator="exact", limit=None).values
    expected = definition(task, data)
    largest = max(value.max() for value in expected.values())
    assert largest > 0
    for tensor, value in expected.items():
        np.testing.assert_allclose(found[tensor], value, rtol=2e-4, atol=1e-7 * largest, err_msg=tensor)
