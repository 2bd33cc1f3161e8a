"""Generation against the definition, and its independence of everything but seed, prompt and model."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from modelgit.errors import CheckFailed, UsageError  # noqa: E402
from modelgit.evals.samples import Decoding, Generated, generate, predict_one  # noqa: E402
from modelgit.models.base import Batch  # noqa: E402
from modelgit.models.bind import BoundModel  # noqa: E402
from tests.fisher.language import VOCABULARY, language_model  # noqa: E402

PROMPT = (3, 1, 4, 1, 5)


def batch(ids: tuple[int, ...] = PROMPT, **more: torch.Tensor) -> Batch:
    tokens = torch.tensor([ids])
    return Batch({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **more}, torch.tensor([-1]), (0,))


def said(model: BoundModel, ids: tuple[int, ...] = PROMPT, *, name: str = "p", **options: Any) -> Generated:
    stop, positions = options.pop("stop", frozenset()), options.pop("positions", None)
    return generate(model, batch(ids), Decoding(**options), name=name, stop=stop, positions=positions)


class WithoutLast(torch.nn.Module):
    """A language model that gives no row for the last token, as those of transformers are wrapped."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(**inputs)[:, :-1]


def test_greedy_is_the_most_likely_token_each_time() -> None:
    model = language_model()
    ids = list(PROMPT)
    for _ in range(6):
        ids.append(int(model.module(torch.tensor([ids]))[0, -1].argmax()))
    expected = Generated(tuple(ids[len(PROMPT) :]), False)
    assert said(model, n_tokens=6, temperature=0) == expected
    shorter = BoundModel(WithoutLast(model.module), {}, frozenset(), VOCABULARY)
    assert said(shorter, n_tokens=6, temperature=0) == expected


def test_a_seed_and_a_prompt_decide_the_draw() -> None:
    model = language_model()
    first = said(model, n_tokens=20, seed=1, temperature=5)
    assert said(copy.deepcopy(model), n_tokens=20, seed=1, temperature=5) == first
    assert said(model, n_tokens=20, seed=2, temperature=5) != first
    assert said(model, n_tokens=20, seed=1, temperature=5, name="another") != first
    # A shorter answer is the beginning of a longer one.
    assert said(model, n_tokens=7, seed=1, temperature=5).ids == first.ids[:7]


def test_draws_follow_the_distribution() -> None:
    model = language_model()
    p = (model.module(torch.tensor([PROMPT]))[0, -1].double() / 0.7).softmax(0).detach().numpy()
    counts = Counter(said(model, n_tokens=1, seed=seed).ids[0] for seed in range(1500))
    found = np.array([counts[token] / 1500 for token in range(VOCABULARY)])
    assert np.abs(found - p).max() < 4 * np.sqrt(p.max() / 1500)


def test_equal_distributions_say_the_same_and_near_ones_nearly() -> None:
    old, new = language_model(), language_model()
    with torch.no_grad():
        new.module.mlp.bias.add_(1e-4)
    alike = sum(said(old, n_tokens=10, seed=seed) == said(new, n_tokens=10, seed=seed) for seed in range(20))
    assert alike >= 18


def test_stop_tokens_end_a_text_and_open_a_prompt_that_was_closed() -> None:
    model = language_model()
    free = said(model, n_tokens=12, temperature=0)
    third = free.ids[2]
    at = free.ids.index(third)
    assert said(model, n_tokens=12, temperature=0, stop=frozenset({third})) == Generated(free.ids[:at], True)
    end = frozenset({VOCABULARY - 1})
    closed = said(model, (*PROMPT, VOCABULARY - 1), n_tokens=4, temperature=0, stop=end)
    assert closed == said(model, n_tokens=4, temperature=0, stop=end)


def test_padding_and_positions() -> None:
    model = language_model()
    tokens = torch.tensor([[*PROMPT, 0, 0]])
    padded = Batch({"input_ids": tokens, "attention_mask": torch.tensor([[1] * 5 + [0] * 2])}, torch.tensor([-1]), (0,))
    decoding = Decoding(n_tokens=5)
    assert generate(model, padded, decoding, name="p") == generate(model, batch(), decoding, name="p")
    assert len(said(model, n_tokens=50, positions=12).ids) == 12 - len(PROMPT)
    assert said(model, n_tokens=50, positions=3).ids == ()


def test_what_cannot_be_continued_is_refused() -> None:
    model = language_model()
    with pytest.raises(UsageError, match="not one row of `input_ids`"):
        generate(model, Batch({"pixels": torch.zeros(1, 3)}, torch.tensor([0]), (0,)), Decoding(), name="p")
    with pytest.raises(UsageError, match="at least 1"):
        Decoding(n_tokens=0)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="temperature"):
            Decoding(temperature=temperature)
    with torch.no_grad():
        model.module.mlp.bias.fill_(float("nan"))
    with pytest.raises(CheckFailed, match="prompt `p` are not finite"):
        said(model)


def test_predictions_are_probabilities_or_means() -> None:
    linear = torch.nn.Linear(3, 4)
    given = Batch({"input": torch.ones(1, 3)}, torch.tensor([0]), (0,))
    model = BoundModel(linear, {}, frozenset(), 4)
    row = linear(torch.ones(1, 3)).detach().double()
    assert predict_one(model, given, name="p").values == pytest.approx(row.softmax(1).numpy())
    model.likelihood = "gaussian"
    assert predict_one(model, given, name="p").values == pytest.approx(row.numpy())
    lm = language_model()
    counted = given._replace(
        inputs={"input_ids": torch.tensor([PROMPT])}, counted=torch.tensor([[False, True, False, True, True]])
    )
    found = predict_one(lm, counted, name="p")
    assert found.values.shape == (3, VOCABULARY) and found.tokens == PROMPT
    assert found.values.sum(axis=1) == pytest.approx(1)
