"""The BERT adapter computes what the definition of BERT says, and says what to write when a checkpoint does not fit."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example
from modelgit.models.bert import initial_head
from modelgit.models.load import build_task, encode_examples

torch = pytest.importorskip("torch")

TEXTS = ("where is the king ?", "who was the king", "city", "the city is the city ?")


def examples(texts: tuple[str, ...] = TEXTS) -> tuple[Example, ...]:
    return tuple(Example(str(at), text, at % 3) for at, text in enumerate(texts))


def reference_logits(state: dict[str, np.ndarray], ids: tuple[int, ...]) -> np.ndarray:
    """One sentence through BERT in float64 numpy, straight from the definition."""
    weights = {name: value.astype(np.float64) for name, value in state.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = (
        weights["embeddings.word_embeddings.weight"][list(ids)]
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(f"{at}.attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = q[:, head] @ k[:, head].T / math.sqrt(4)
            attend = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(attend / attend.sum(-1, keepdims=True) @ v[:, head])
        x = norm(f"{at}.attention.output.LayerNorm", linear(f"{at}.attention.output.dense", np.hstack(mixed)) + x)
        inner = linear(f"{at}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", linear(f"{at}.output.dense", inner) + x)
    return linear("heads.questions", x.mean(0))


def test_logits_are_those_of_the_definition_whatever_the_padding(checkpoint) -> None:
    task = build_task(checkpoint.settings, checkpoint.state, checkpoint.files)
    data = encode_examples(checkpoint.settings, examples(), "f", checkpoint.files)
    (batch,) = data.batches(8)
    assert batch.inputs["attention_mask"].min() == 0  # at least one sentence is padded
    with torch.no_grad():
        logits = task.module(**batch.inputs).numpy()
    for row, at in enumerate(batch.indices):
        np.testing.assert_allclose(logits[row], reference_logits(checkpoint.state, data.ids[at]), atol=2e-5)


def test_parameters_are_bound_to_checkpoint_names(checkpoint) -> None:
    task = build_task(checkpoint.settings, checkpoint.state, checkpoint.files)
    parameters = dict(task.module.named_parameters())
    assert set(task.tensor_of) == set(parameters)
    assert set(task.tensor_of.values()) == {name for name in checkpoint.state if not name.startswith("pooler")}
    assert {task.tensor_of[name] for name in task.head} == {"heads.questions.weight", "heads.questions.bias"}
    for name, tensor in task.tensor_of.items():
        np.testing.assert_array_equal(parameters[name].detach().numpy(), checkpoint.state[tensor])
    with torch.no_grad():
        parameters["head.bias"].add_(1)
    assert not np.array_equal(parameters["head.bias"].detach().numpy(), checkpoint.state["heads.questions.bias"])


def test_the_prefix_of_whole_bert_models_is_found(checkpoint) -> None:
    plain = build_task(checkpoint.settings, checkpoint.state, checkpoint.files)
    renamed = {n if n.startswith("heads") else f"bert.{n}": value for n, value in checkpoint.state.items()}
    prefixed = build_task(checkpoint.settings, renamed, checkpoint.files)
    assert "bert.encoder.layer.1.output.dense.weight" in prefixed.tensor_of.values()
    for one, other in zip(plain.module.parameters(), prefixed.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_half_precision_weights_are_widened(checkpoint) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = dict(checkpoint.state)
    half["heads.questions.weight"] = half["heads.questions.weight"].astype(np.float16)
    half["heads.questions.bias"] = half["heads.questions.bias"].astype(ml_dtypes.bfloat16)
    task = build_task(checkpoint.settings, half, checkpoint.files)
    weights = dict(task.module.named_parameters())
    for part in ("weight", "bias"):
        assert weights[f"head.{part}"].dtype == torch.float32
        expected = half[f"heads.questions.{part}"].astype(np.float32)
        np.testing.assert_array_equal(weights[f"head.{part}"].detach().numpy(), expected)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda c: c.state.pop("encoder.layer.1.output.dense.bias"), "encoder.layer.1.output.dense.bias", "entry ="),
        (lambda c: c.state.pop("heads.questions.weight"), "heads.questions.weight", "head ="),
        (lambda c: c.state.pop("heads.questions.bias"), "heads.questions.bias", "head ="),
        (lambda c: c.state.update({"heads.questions.weight": np.zeros((4, 8), "f4")}), "4 outputs", "labels ="),
        (lambda c: c.state.update({"embeddings.LayerNorm.bias": np.zeros(9, "f4")}), r"\[9\].*\[8\]", "entry ="),
        (lambda c: c.state.update({"embeddings.LayerNorm.bias": np.zeros(8, "u2")}), "uint16", "entry ="),
        (lambda c: c.files.pop("config.json"), "config.json", None),
        (lambda c: c.files.update({"config.json": b'{"model_type": "bert"}'}), "not that of a BERT", "entry ="),
    ],
)
def test_what_does_not_fit_is_named(checkpoint, change, message, hint) -> None:
    change(checkpoint)
    with pytest.raises(UsageError, match=message) as caught:
        build_task(checkpoint.settings, checkpoint.state, checkpoint.files)
    assert (caught.value.hint is None) if hint is None else (hint in caught.value.hint)


@pytest.mark.parametrize("field", [{"model_type": "roberta"}, {"hidden_act": "silu"}, {"num_attention_heads": 3}])
def test_other_architectures_are_refused_rather_than_computed_wrongly(checkpoint, field) -> None:
    checkpoint.files["config.json"] = json.dumps(json.loads(checkpoint.files["config.json"]) | field).encode()
    with pytest.raises(UsageError, match=str(next(iter(field.values())))):
        build_task(checkpoint.settings, checkpoint.state, checkpoint.files)


def test_a_bert_model_needs_no_adapter_setting_and_others_do(checkpoint) -> None:
    settings = msgspec.structs.replace(checkpoint.settings, adapter=None)
    assert build_task(settings, checkpoint.state, checkpoint.files).classes == 3
    with pytest.raises(UsageError, match="names no head"):
        build_task(settings, checkpoint.state, {"config.json": b'{"model_type": "llama"}'})
    with pytest.raises(UsageError, match="did you mean `bert-classifier`"):
        build_task(msgspec.structs.replace(settings, adapter="bert-clasifier"), {}, {})


def test_a_new_head_fits_and_needs_labels(checkpoint) -> None:
    settings = msgspec.structs.replace(checkpoint.settings, head="heads.new", labels=("a", "b", "c", "d"))
    head = initial_head(settings, 8, seed=1)
    task = build_task(settings, checkpoint.state | head, checkpoint.files)
    assert task.classes == 4
    np.testing.assert_array_equal(initial_head(settings, 8, seed=1)["heads.new.weight"], head["heads.new.weight"])
    assert not np.array_equal(initial_head(settings, 8, seed=2)["heads.new.weight"], head["heads.new.weight"])
    with pytest.raises(UsageError, match="labels"):
        initial_head(TaskSettings(model="m"), 8)


def test_texts_are_cut_and_batched_by_length(checkpoint) -> None:
    texts = tuple(" ".join(["the"] * (1 + at * 7 % 20)) for at in range(40))
    settings = msgspec.structs.replace(checkpoint.settings, max_length=64)  # the model has 10 positions
    data = encode_examples(settings, examples(texts), "print", checkpoint.files)
    assert len(data) == 40
    assert data.fingerprint == "print"
    assert max(map(len, data.ids)) == 10
    ordered = [batch.indices for batch in data.batches(4)]
    lengths = [len(data.ids[at]) for batch in ordered for at in batch]
    assert lengths == sorted(lengths)
    assert [b.indices for b in data.batches(4, seed=1)] == [b.indices for b in data.batches(4, seed=1)]
    assert [b.indices for b in data.batches(4, seed=1)] != [b.indices for b in data.batches(4, seed=2)]
    for seed in (None, 1):
        assert sorted(at for batch in data.batches(4, seed=seed) for at in batch.indices) == list(range(40))
        assert sorted(at for batch in data.batches(4, seed=seed, limit=7) for at in batch.indices) == list(range(7))
    for batch in data.batches(4, seed=1):
        for row, at in enumerate(batch.indices):
            size = len(data.ids[at])
            assert tuple(batch.inputs["input_ids"][row, :size].tolist()) == data.ids[at]
            assert batch.inputs["attention_mask"][row].sum() == size
            assert batch.labels[row] == at % 3
    with pytest.raises(UsageError, match="batch of 0"):
        next(data.batches(0))


def test_a_missing_or_broken_tokenizer_is_named(checkpoint) -> None:
    del checkpoint.files["tokenizer.json"]
    with pytest.raises(UsageError, match=r"tokenizer\.json") as caught:
        encode_examples(checkpoint.settings, examples(), "f", checkpoint.files)
    assert "tokenizer =" in caught.value.hint
    checkpoint.files["own.json"] = b"{"
    settings = msgspec.structs.replace(checkpoint.settings, tokenizer="data/own.json")
    with pytest.raises(UsageError, match=r"own\.json.*not a tokenizer"):
        encode_examples(settings, examples(), "f", checkpoint.files)


def test_an_empty_model_does_not_make_torch_load_its_compiler() -> None:
    script = (
        "import sys, torch\n"
        "from modelgit.models.bert import BertClassifier, BertConfig\n"
        "config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, "
        "intermediate_size=4)\n"
        "with torch.device('meta'):\n"
        "    BertClassifier(config, 2)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
