"""Heads of transformers: outputs equal those of the library's own forward, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from modelgit.testing.models import TinyModel, tiny_language_model  # noqa: E402

TEXTS = ("hello world, a text of some length", "a b", "who is the king?", "where", "it rains in the city of")


def reference(tiny: TinyModel, family: str, folder: Path):
    """The model as transformers loads it from a directory."""
    tiny.write(folder)
    return getattr(transformers, family).from_pretrained(folder, attn_implementation="eager").eval()


def jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_language_model_predicts_the_next_token_and_its_embeddings_stay_tied(tmp_path: Path) -> None:
    tiny = tiny_language_model()
    assert "lm_head.weight" not in tiny.state
    task = tiny.build()
    other = reference(tiny, "AutoModelForCausalLM", tmp_path / "model")
    assert task.module.model.lm_head.weight is task.module.model.transformer.wte.weight
    assert task.tensor_of["model.transformer.wte.weight"] == "transformer.wte.weight"
    assert (task.classes, task.likelihood, task.head) == (260, "categorical", frozenset())
    data = tiny.encode(jsonl(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS]))
    (batch,) = data.batches(8)
    with torch.no_grad():
        rows = task.module(**batch.inputs)
        for row, position in enumerate(batch.indices):
            length = len(data.ids[position])
            ids = torch.tensor([data.ids[position]])
            assert batch.counted[row].sum() == length - 1
            assert batch.labels[row].tolist() == [*data.ids[position][1:], *[-1] * (rows.shape[1] - length + 1)]
            torch.testing.assert_close(rows[row, : length - 1], other(ids).logits[0, :-1], rtol=1e-5, atol=1e-5)
