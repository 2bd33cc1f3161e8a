"""Models with many outputs, measured batch by batch, against the definitions on everything at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modelgit.errors import CheckFailed, UsageError
from modelgit.evals import streams
from modelgit.models.base import ExampleSet, TaskModel

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from modelgit.testing.models import tiny_conv_net, tiny_language_model  # noqa: E402

TEXTS = ("hello world, of some length", "a b", "who is the king?", "where", "it rains in the city", "x y z")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskModel, TaskModel, ExampleSet]:
    data = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    old, new = tiny_language_model(seed=0), tiny_language_model(seed=1)
    return old.build(), new.build(), old.encode(data)


def one_by_one(model: TaskModel, examples: ExampleSet) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(log-probabilities `[T, V]`, next tokens `[T]`) of each text, alone in its batch."""
    found = {}
    with torch.no_grad():
        for batch in examples.batches(1):
            found[batch.indices[0]] = (model.module(**batch.inputs)[0].double().log_softmax(1), batch.labels[0])
    return [found[at] for at in range(len(examples))]


def test_losses_equal_the_definition_in_any_batch(
    sides: tuple[TaskModel, TaskModel, ExampleSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, examples = sides
    losses = streams.output_losses(model, examples)
    expected = [float(-rows.gather(1, labels[:, None]).sum()) for rows, labels in one_by_one(model, examples)]
    assert np.allclose(losses.sums, expected, rtol=1e-6)
    assert losses.counts.tolist() == [len(labels) for _, labels in one_by_one(model, examples)]
    assert np.isclose(losses.mean, sum(expected) / losses.outputs)
    monkeypatch.setattr("modelgit.models.outputs._BATCH", 2)
    monkeypatch.setattr("modelgit.models.outputs._CHUNK_ELEMENTS", 700)
    assert np.allclose(streams.output_losses(model, examples).sums, losses.sums, rtol=1e-6)


def test_divergences_are_one_for_each_token(sides: tuple[TaskModel, TaskModel, ExampleSet]) -> None:
    old, new, examples = sides
    measured = np.sort(streams.output_divergences((old, examples), (new, examples)))
    pairs = zip(one_by_one(old, examples), one_by_one(new, examples), strict=True)
    expected = torch.cat([(p.exp() * (p - q)).sum(1) for (p, _), (q, _) in pairs]).numpy()
    assert np.allclose(measured, np.sort(expected), rtol=1e-5)
    assert (streams.output_divergences((old, examples), (old, examples)) == 0).all()


def test_sides_that_read_differently_do_not_compare(sides: tuple[TaskModel, TaskModel, ExampleSet]) -> None:
    old, new, examples = sides
    for other in (examples.select([0, 1]), examples.select([1, 0, 2, 3, 4, 5])):
        with pytest.raises(UsageError, match="differently"):
            streams.output_divergences((old, examples), (new, other))


def test_a_budget_ends_it_between_batches(sides: tuple[TaskModel, TaskModel, ExampleSet]) -> None:
    class Over(Exception):
        pass

    def over() -> None:
        raise Over

    with pytest.raises(Over):
        streams.output_losses(sides[0], sides[2], check=over)
    assert not torch.is_inference_mode_enabled()


def test_values_that_are_not_finite_are_said(sides: tuple[TaskModel, TaskModel, ExampleSet]) -> None:
    broken = tiny_language_model(seed=0).build()
    with torch.no_grad():
        next(iter(broken.module.parameters())).fill_(float("nan"))
    with pytest.raises(CheckFailed, match="not finite"):
        streams.output_losses(broken, sides[2])


def test_the_embedding_of_a_classifier_is_what_its_head_is_given(tmp_path: Path) -> None:
    made = tiny_conv_net(tmp_path)
    draw = np.random.default_rng(0)
    data = tmp_path / "images.jsonl"
    images = [" ".join(f"{number:.3f}" for number in draw.normal(size=64)) for _ in range(5)]
    data.write_text("".join(json.dumps({"text": image}) + "\n" for image in images))
    model, examples = made.build(), made.encode(data)
    batch = next(iter(examples.batches(5)))
    with torch.no_grad():
        expected = model.module.body(batch.inputs["pixels"]).numpy()
    measured = streams.embeddings(model, examples)
    assert np.allclose(measured[list(batch.indices)], expected, atol=1e-6)


def test_a_language_model_has_no_embedding(sides: tuple[TaskModel, TaskModel, ExampleSet]) -> None:
    with pytest.raises(UsageError, match="has no embedding"):
        streams.embeddings(sides[0], sides[2])
