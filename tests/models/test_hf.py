"""Heads of transformers: outputs equal those of the library's own forward, whatever the batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from modelgit.errors import MissingExtraError, UsageError
from modelgit.models.load import build_task

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from modelgit.testing.models import (  # noqa: E402
    TinyModel,
    tiny_image_classifier,
    tiny_language_model,
    tiny_transformer,
)

TEXTS = (
    "hello world, of some length",
    "a b",
    "who is the king?",
    "where",
    "it rains in the city",
    "x y z",
    "no",
    "yes",
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BERT = {"model_type": "bert", "vocab_size": 260, "pad_token_id": 0, "max_position_embeddings": 64, **SIZES}
ROBERTA = BERT | {"model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 34, "layer_norm_eps": 1e-5}
LLAMA = {"model_type": "llama", "vocab_size": 260, "num_key_value_heads": 1, "pad_token_id": 0, **SIZES}
DISTIL = {"model_type": "distilbert", "vocab_size": 260, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
VIT = {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_labels": 3, **SIZES}
MOBILE = {"model_type": "mobilenet_v2", "depth_multiplier": 0.1, "min_depth": 4, "num_labels": 3}


def jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def text_records() -> list[dict[str, object]]:
    return [{"text": text, "label": at % 3, "second": TEXTS[at - 1]} for at, text in enumerate(TEXTS)]


def tag_records() -> list[dict[str, object]]:
    words = [text.split() for text in TEXTS]
    return [{"text": row, "label": [at % 3 for at in range(len(row))]} for row in words]


def answer_records() -> list[dict[str, object]]:
    return [
        {
            "question": TEXTS[at - 1],
            "context": text,
            "answer": text.split()[-1],
            "answer_start": text.rindex(text.split()[-1]),
        }
        for at, text in enumerate(TEXTS)
    ]


def image_records() -> list[dict[str, object]]:
    draw = np.random.default_rng(0)
    return [{"image": draw.integers(0, 256, (8, 8, 3)).tolist(), "label": at % 3} for at in range(8)]


class Case(NamedTuple):
    make: Callable[[], TinyModel]
    family: str
    records: Callable[[], list[dict[str, object]]]
    # What the wrapped module gives for one example, from the output and the inputs of the library's own.
    expected: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] = lambda output, inputs: output.logits
    classes: int = 3


def classifier(config: dict[str, Any], family: str, kind: str, **settings: Any) -> Callable[[], TinyModel]:
    return lambda: tiny_transformer(family, {"num_labels": 3, **config}, kind, **settings)


def mean(output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return output.last_hidden_state.mean(1)


SEQUENCE, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
CASES = {
    "bert": Case(classifier(BERT, SEQUENCE, "sequence-classification"), SEQUENCE, text_records),
    "bert pairs": Case(classifier(BERT, SEQUENCE, "sequence-classification", pair="second"), SEQUENCE, text_records),
    "roberta": Case(classifier(ROBERTA, SEQUENCE, "sequence-classification"), SEQUENCE, text_records),
    "roberta pairs": Case(
        classifier(ROBERTA, SEQUENCE, "sequence-classification", pair="second"), SEQUENCE, text_records
    ),
    "distilbert": Case(classifier(DISTIL, SEQUENCE, "sequence-classification"), SEQUENCE, text_records),
    "llama classifier": Case(classifier(LLAMA, SEQUENCE, "sequence-classification"), SEQUENCE, text_records),
    "regression": Case(classifier(BERT | {"num_labels": 1}, SEQUENCE, "regression"), SEQUENCE, text_records, classes=1),
    "tags": Case(classifier(BERT, TOKENS, "token-classification"), TOKENS, tag_records),
    "answers": Case(
        lambda: tiny_transformer("AutoModelForQuestionAnswering", BERT, "question-answering"),
        "AutoModelForQuestionAnswering",
        answer_records,
        lambda output, inputs: torch.stack((output.start_logits, output.end_logits), 1),
        classes=0,
    ),
    "gpt2": Case(
        tiny_language_model, "AutoModelForCausalLM", text_records, lambda output, inputs: output.logits[:, :-1], 260
    ),
    "llama": Case(
        lambda: tiny_transformer("AutoModelForCausalLM", LLAMA, "causal-lm"),
        "AutoModelForCausalLM",
        text_records,
        lambda output, inputs: output.logits[:, :-1],
        260,
    ),
    "masked": Case(
        lambda: tiny_transformer("AutoModelForMaskedLM", BERT, "masked-lm"),
        "AutoModelForMaskedLM",
        text_records,
        classes=260,
    ),
    "embedding": Case(
        lambda: tiny_transformer("AutoModel", BERT, "sentence-embedding"), "AutoModel", text_records, mean, 16
    ),
    "unit embedding": Case(
        lambda: tiny_transformer("AutoModel", BERT, "sentence-embedding", pooling="first", normalize=True),
        "AutoModel",
        text_records,
        lambda output, inputs: torch.nn.functional.normalize(output.last_hidden_state[:, 0], dim=1),
        16,
    ),
    "resnet": Case(tiny_image_classifier, "AutoModelForImageClassification", image_records, classes=4),
    "mobilenet": Case(
        lambda: tiny_transformer("AutoModelForImageClassification", MOBILE, "image-classification"),
        "AutoModelForImageClassification",
        image_records,
    ),
    "vit": Case(
        lambda: tiny_transformer("AutoModelForImageClassification", VIT, "image-classification"),
        "AutoModelForImageClassification",
        image_records,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_transformers_at_every_batch_size(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tiny = case.make()
    tiny.write(tmp_path / "model")
    other = getattr(transformers, case.family).from_pretrained(tmp_path / "model").eval()
    task = tiny.build()
    data = tiny.encode(jsonl(tmp_path / "data.jsonl", case.records()))
    assert task.classes == case.classes
    gaussian = tiny.settings.kind in ("regression", "sentence-embedding")
    assert task.likelihood == ("gaussian" if gaussian else "categorical")
    assert not task.module.training
    assert all(parameter.dtype == torch.float32 for parameter in task.module.parameters())
    assert set(task.tensor_of) == {parameter for parameter, _ in task.module.named_parameters()}
    assert set(task.tensor_of.values()) <= set(tiny.state)
    assert task.head <= set(task.tensor_of)
    with torch.no_grad():
        alone: dict[int, torch.Tensor] = {}
        for batch in data.batches(1):
            assert batch.inputs.keys() >= {"input_ids"} or batch.inputs.keys() == {"pixel_values"}
            out = task.module(**batch.inputs)
            assert out.dtype == torch.float32
            torch.testing.assert_close(out, case.expected(other(**batch.inputs), batch.inputs), rtol=1e-5, atol=1e-5)
            alone[batch.indices[0]] = out[0]
        (together,) = data.batches(8)
        out = task.module(**together.inputs)
        assert out.isfinite().all()
        for row, position in enumerate(together.indices):
            one = alone[position]
            part = out[row]
            if name == "answers":
                assert (part.softmax(1)[:, one.shape[1] :] == 0).all()
                part = part[:, : one.shape[1]]
            elif together.counted is not None:
                assert not together.counted[row, len(one) :].any()
                part = part[: len(one)]
            torch.testing.assert_close(part, one, rtol=1e-5, atol=1e-5)


def test_pairs_are_told_apart_where_the_model_does(tmp_path: Path) -> None:
    tiny = CASES["bert pairs"].make()
    (batch,) = tiny.encode(jsonl(tmp_path / "data.jsonl", text_records())).batches(8)
    assert batch.inputs["token_type_ids"].unique().tolist() == [0, 1]
    (batch,) = CASES["roberta pairs"].make().encode(tmp_path / "data.jsonl").batches(8)
    assert "token_type_ids" not in batch.inputs


def test_a_language_model_keeps_its_embeddings_tied(tmp_path: Path) -> None:
    tiny = tiny_language_model()
    assert "lm_head.weight" not in tiny.state
    task = tiny.build()
    assert task.module.model.lm_head.weight is task.module.model.transformer.wte.weight
    assert task.tensor_of["model.transformer.wte.weight"] == "transformer.wte.weight"
    assert task.head == frozenset()
    data = tiny.encode(jsonl(tmp_path / "t.jsonl", [{"text": text, "label": "no label"} for text in TEXTS]))
    (batch,) = data.batches(8)
    for row, position in enumerate(batch.indices):
        ids = data.ids[position]
        width = batch.labels.shape[1]
        assert batch.labels[row].tolist() == [*ids[1:], *[-1] * (width - len(ids) + 1)]
        assert batch.counted[row].tolist() == [True] * (len(ids) - 1) + [False] * (width - len(ids) + 1)


def test_a_checkpoint_may_hold_the_tied_weights_under_the_other_name() -> None:
    tiny = tiny_language_model()
    tiny.state["lm_head.weight"] = tiny.state.pop("transformer.wte.weight")
    task = tiny.build()
    assert task.tensor_of["model.transformer.wte.weight"] == "lm_head.weight"
    assert np.array_equal(task.module.model.transformer.wte.weight.detach().numpy(), tiny.state["lm_head.weight"])


def test_names_with_and_without_the_prefix_and_of_old_versions_are_found() -> None:
    tiny = CASES["bert"].make()
    expected = tiny.build().module.state_dict()
    bare = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): v for name, v in tiny.state.items()
    }
    task = build_task(tiny.settings, bare, tiny.files)
    for name, value in task.module.state_dict().items():
        assert torch.equal(value, expected[name])
    encoder = CASES["embedding"].make()
    prefixed = {f"bert.{name}": value for name, value in encoder.state.items()}
    assert (
        build_task(encoder.settings, prefixed, encoder.files)
        .tensor_of["model.embeddings.LayerNorm.bias"]
        .startswith("bert.")
    )


def test_the_head_may_lie_under_another_name() -> None:
    tiny = CASES["bert"].make()
    for part in ("weight", "bias"):
        tiny.state[f"heads.trec.{part}"] = tiny.state.pop(f"classifier.{part}")
    settings = msgspec.structs.replace(tiny.settings, head="heads.trec")
    task = build_task(settings, tiny.state, tiny.files)
    assert task.tensor_of["model.classifier.weight"] == "heads.trec.weight"
    assert task.head == {"model.classifier.weight", "model.classifier.bias"}


def test_computed_buffers_are_there_and_running_statistics_come_from_the_checkpoint() -> None:
    llama = CASES["llama"].make().build().module
    assert all(not buffer.is_meta for buffer in llama.buffers())
    tiny = tiny_image_classifier()
    name = next(name for name in tiny.state if name.endswith("running_mean"))
    assert np.array_equal(tiny.build().module.state_dict()[f"model.{name}"].numpy(), tiny.state[name])
    del tiny.state[name]
    with pytest.raises(UsageError, match=name):
        tiny.build()


def test_masks_of_a_masked_model_are_drawn_by_the_text_alone(tmp_path: Path) -> None:
    tiny = CASES["masked"].make()
    data = tiny.encode(jsonl(tmp_path / "a.jsonl", text_records()))
    again = tiny.encode(jsonl(tmp_path / "b.jsonl", text_records()[::-1]))
    assert data.ids == again.ids[::-1]
    for ids, targets, counted in zip(data.ids, data.targets, data.counted, strict=True):
        hidden = [at for at, token in enumerate(ids) if token == 3]
        assert hidden == [at for at, counts in enumerate(counted) if counts]
        assert hidden == [at for at, target in enumerate(targets) if target >= 4]
        assert len(hidden) == max(1, round(0.15 * (len(ids) - 2)))


def test_tags_belong_to_the_first_token_of_each_word(tmp_path: Path) -> None:
    tiny = CASES["tags"].make()
    data = tiny.encode(jsonl(tmp_path / "t.jsonl", [{"text": ["ab", "c", "d"], "label": [2, 0, 1]}]))
    assert data.targets == ((-1, 2, -1, 0, 1, -1),)
    assert data.counted == ((False, True, False, True, True, False),)


def test_answers_are_found_in_the_tokens_or_counted_as_cut_off(tmp_path: Path) -> None:
    tiny = CASES["answers"].make()
    record = {"question": "who?", "context": "the old king", "answer": "king", "answer_start": 8}
    squad = {"question": "who?", "context": "the old king", "answer": {"text": ["old"], "answer_start": [4]}}
    none = {"question": "who?", "context": "the old king", "answer": {"text": [], "answer_start": []}}
    far = {"question": "who?", "context": "the old " + "very " * 9 + "king", "answer": "king", "answer_start": 53}
    data = tiny.encode(jsonl(tmp_path / "t.jsonl", [record, squad, none, far]))
    # <s> w h o ? </s> t h e _ o l d _ k i n g </s>
    assert data.targets == ((14, 17), (10, 12), (-1, -1), (-1, -1))
    assert len(data.ids[3]) == 32


def test_long_texts_come_in_smaller_batches(tmp_path: Path) -> None:
    tiny = tiny_language_model()
    data = tiny.encode(jsonl(tmp_path / "t.jsonl", [{"text": "x" * 40}] * 6 + [{"text": "ab"}] * 6))
    assert data.tokens_per_batch == 16384
    data.tokens_per_batch = 64
    assert [batch.inputs["input_ids"].shape for batch in data.batches(6)] == [(6, 4), (2, 32), (2, 32), (2, 32)]
    assert sorted(at for batch in data.batches(6, seed=1) for at in batch.indices) == list(range(12))


def test_the_kind_comes_from_config_json_where_data_are_texts_with_labels() -> None:
    tiny = CASES["bert"].make()
    settings = msgspec.structs.replace(tiny.settings, kind=None)
    assert build_task(settings, tiny.state, tiny.files).module.model.config.architectures is not None
    tags = CASES["tags"].make()
    with pytest.raises(UsageError, match="describes a token-classification model") as caught:
        build_task(msgspec.structs.replace(tags.settings, kind=None), tags.state, tags.files)
    assert 'kind = "token-classification"' in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"model_type": "bertt"}, "`bertt`, which transformers .* did you mean `bert`", "entry"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "entry"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder", "entry"),
        ({"problem_type": "multi_label_classification"}, "several labels", "entry"),
        ({"hidden_size": 15}, "builds no sequence-classification model|does not understand config.json", "entry"),
        ({"intermediate_size": 25}, r"shape \[24, 16\] and the model expects \[25, 16\]", None),
        ({"num_labels": 7, "id2label": None, "label2id": None}, r"`classifier.weight` has shape", "labels = "),
    ],
)
def test_what_cannot_be_loaded_says_what_to_write(change: dict[str, Any], message: str, hint: str | None) -> None:
    tiny = CASES["bert"].make()
    config = json.loads(tiny.files["config.json"]) | change
    config = {key: value for key, value in config.items() if value is not None}
    tiny.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(UsageError, match=message) as caught:
        tiny.build()
    assert hint is None or hint in caught.value.hint


def test_missing_tensors_are_named() -> None:
    tiny = tiny_language_model()
    del tiny.state["transformer.h.1.mlp.c_fc.weight"]
    with pytest.raises(UsageError, match=r"no tensor `transformer\.h\.1\.mlp\.c_fc\.weight`"):
        tiny.build()


@pytest.mark.parametrize(
    ("name", "kind", "missing", "hint"),
    [
        ("bert", "sequence-classification", "classifier.weight", 'head = "..."'),
        ("bert", "masked-lm", "cls.predictions.bias", "no head for masked-lm: write another `kind`"),
        ("embedding", "question-answering", "qa_outputs.weight", "another `kind`"),
    ],
)
def test_a_checkpoint_without_the_head_says_so(name: str, kind: str, missing: str, hint: str) -> None:
    tiny = CASES[name].make()
    tiny.state.pop(missing, None)
    with pytest.raises(UsageError, match=rf"no tensor `{missing}`") as caught:
        build_task(msgspec.structs.replace(tiny.settings, kind=kind), tiny.state, tiny.files)
    assert hint in caught.value.hint


def test_code_of_the_model_s_own_is_never_run() -> None:
    tiny = tiny_language_model()
    config = json.loads(tiny.files["config.json"])
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    tiny.files["config.json"] = json.dumps(config).encode()
    assert type(tiny.build().module.model).__module__.startswith("transformers.")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_language_model()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError) as caught:
        tiny.build()
    assert caught.value.hint == "`pip install 'modelgit[transformers]'`"


def test_settings_decide_the_number_of_classes() -> None:
    tiny = CASES["bert"].make()
    with pytest.raises(UsageError, match=r"classifier\.weight") as caught:
        build_task(msgspec.structs.replace(tiny.settings, labels=("a", "b")), tiny.state, tiny.files)
    assert "labels" in caught.value.hint


def test_a_text_of_one_token_is_no_example_of_a_language_model(tmp_path: Path) -> None:
    tiny = tiny_language_model()
    tokenizer = json.loads(tiny.files["tokenizer.json"]) | {"post_processor": None}
    tiny.files["tokenizer.json"] = json.dumps(tokenizer).encode()
    with pytest.raises(UsageError, match="example `1` has one token"):
        tiny.encode(jsonl(tmp_path / "t.jsonl", [{"text": "x"}]))
