"""`mgit diff --samples`, and `--fisher` on a language model, as a reviewer meets them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from modelgit.testing.models import tiny_language_model, tiny_unknown_module  # noqa: E402

PROMPTS = ("who is", "it rains in the city of", "w")
TEXTS = ("hello world, a text of some length", "a b", "who is the king?", "where", "it rains in the city of")


def lines(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def writer(mgit: Any) -> Any:
    """A repository of one language model, with a change of its first layer in the work tree."""
    root = mgit.directory
    mgit("init")
    tiny_language_model().write(root / "models/tiny")
    (root / "test.jsonl").write_text(lines([{"text": text} for text in TEXTS]))
    (root / "prompts.jsonl").write_text(lines([{"id": f"p{at}", "prompt": text} for at, text in enumerate(PROMPTS)]))
    (root / "mgit.toml").write_text(
        '[track]\npaths = ["models/tiny"]\n\n[task.write]\nmodel = "models/tiny"\ntest = "test.jsonl"\n'
        'max_length = 32\nkind = "causal-lm"\n'
    )
    mgit("commit", "-m", "first")
    return mgit


def change(writer: Any, size: float) -> None:
    tiny = tiny_language_model()
    for name, value in tiny.state.items():
        if ".h.0." in name:
            noise = np.random.default_rng(3).standard_normal(value.shape)
            tiny.state[name] = (value + size * noise).astype(np.float32)
    tiny.write(writer.directory / "models/tiny")


def samples(writer: Any, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(writer("diff", "--samples", "prompts.jsonl", "--json", *arguments).out)
    return found["samples"]


def test_generations_of_both_sides(writer: Any) -> None:
    change(writer, 0.5)
    found = samples(writer, "--n-tokens", "12")
    assert (found["task"], found["kind"], found["n_tokens"], found["seed"]) == ("write", "generation", 12, 0)
    assert [pair["prompt"] for pair in found["pairs"]] == list(PROMPTS)
    assert all(0 <= side["tokens"] <= 12 for pair in found["pairs"] for side in (pair["old"], pair["new"]))
    assert not all(pair["same"] for pair in found["pairs"])
    assert samples(writer, "--n-tokens", "12") == found
    assert samples(writer, "--n-tokens", "12", "--seed", "5") != found
    # The other prompts play no part.
    (writer.directory / "prompts.jsonl").write_text(lines([{"id": "p1", "prompt": PROMPTS[1]}]))
    assert samples(writer, "--n-tokens", "12")["pairs"] == [found["pairs"][1]]


def test_the_same_weights_say_the_same(writer: Any) -> None:
    found = samples(writer)
    assert all(pair["same"] and pair["old"] == pair["new"] for pair in found["pairs"])
    text = writer("diff", "--samples", "prompts.jsonl").out
    assert "task write, 3 prompts (up to 40 tokens, temperature 0.7, seed 0): 3 answered alike" in text
    assert text.count("(both)") == 3


def test_side_by_side_on_the_terminal_and_on_a_page(writer: Any) -> None:
    change(writer, 0.5)
    ran = writer("diff", "--samples", "prompts.jsonl", "--n-tokens", "60", "--temperature", "0", "--html", "out.html")
    assert "(up to 60 tokens, greedy)" in ran.out
    assert "  p0  who is\n" in ran.out and " │ worktree\n" in ran.out
    rows = [line for line in ran.out.splitlines() if " │ " in line]
    assert len({line.index(" │ ") for line in rows}) == 1
    assert max(map(len, rows)) <= 100
    page = (writer.directory / "out.html").read_text(encoding="utf-8")
    assert "<h2>Samples</h2>" in page and 'class="other"' in page and "who is" in page


def test_a_language_model_is_measured_by_token(writer: Any) -> None:
    change(writer, 0.02)
    document = json.loads(writer("diff", "--fisher", "--json").out)
    found = document["behaviour"]
    tokens = sum(len(text.encode()) + 1 for text in TEXTS)
    assert 0 < found["outputs"] <= tokens and found["examples"] == len(TEXTS)
    assert found["method"] == "jvp" and found["reliable"], found["notes"]
    assert found["directional_kl"] == pytest.approx(found["measured_kl"], rel=0.2)
    parts = [item["divergence"] for item in found["tensors"] if item["divergence"] is not None]
    assert sum(parts) == pytest.approx(found["directional_kl"], rel=1e-3)
    assert found["labelled"] == found["outputs"]
    text = writer("diff", "--fisher").out
    assert "KL(old‖new) in nats per token: " in text
    assert "perplexity " in text and "h.0" in text


def test_another_tokenizer_is_said(writer: Any) -> None:
    file = writer.directory / "models/tiny/tokenizer.json"
    change(writer, 0.02)
    file.write_text(file.read_text() + "\n")
    notes = json.loads(writer("diff", "--fisher", "--json").out)["behaviour"]["notes"]
    assert "tokenizer.json differs: both sides were given the data as the new one reads them" in notes


def test_predictions_of_a_classifier(mgit: Any) -> None:
    root = mgit.directory
    mgit("init")
    tiny_unknown_module(root).write(root / "models/tiny")
    (root / "prompts.jsonl").write_text(lines([{"text": "1 2 3 4"}, {"text": "-1 0 2 -2"}]))
    (root / "mgit.toml").write_text(
        '[track]\npaths = ["models/tiny"]\n\n[task.sort]\nmodel = "models/tiny"\nentry = "tiny_unknown:build"\n'
        'head = "top"\nlabels = ["a", "b", "c"]\n'
    )
    mgit("commit", "-m", "first")
    assert "not trusted" in mgit("diff", "--samples", "prompts.jsonl", code=2).err
    mgit("trust")
    tiny_unknown_module(root, seed=1).write(root / "models/tiny")
    found = json.loads(mgit("diff", "--samples", "prompts.jsonl", "--json").out)["samples"]
    assert found["kind"] == "prediction" and found["n_tokens"] == 0
    for pair in found["pairs"]:
        for side in (pair["old"], pair["new"]):
            assert sum(probability for _, probability in side["classes"]) == pytest.approx(1, abs=1e-5)
            assert {name for name, _ in side["classes"]} == {"a", "b", "c"}
        assert pair["same"] == (pair["old"]["classes"][0][0] == pair["new"]["classes"][0][0])
    assert " │ " in mgit("diff", "--samples", "prompts.jsonl").out


def test_what_is_missing_is_said_in_one_sentence(writer: Any) -> None:
    assert "cannot be read" in writer("diff", "--samples", "nowhere.jsonl", code=2).err
    (writer.directory / "prompts.jsonl").write_text('{"prompt": ""}\n')
    assert "prompts.jsonl:1" in writer("diff", "--samples", "prompts.jsonl", code=2).err
    assert "need a task" in writer("diff", "--no-index", "a", "b", "--samples", "prompts.jsonl", code=2).err
    assert writer("diff", "--samples", "prompts.jsonl", "--n-tokens", "0", code=2).err
    (writer.directory / "mgit.toml").write_text('[track]\npaths = ["models/tiny"]\n')
    assert "[task.NAME]" in writer("diff", "--samples", "prompts.jsonl", code=2).err
