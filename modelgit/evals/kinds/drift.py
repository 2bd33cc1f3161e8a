"""`kl`: how far the outputs moved, KL(baseline || candidate) in nats; no labels are needed.

For a classifier it is one number for each example, from predictions that are kept.  Models with several outputs for an
example (tokens of a language model, tags, embeddings) are run side by side, and it is one number for each output.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from modelgit.config.suites import KlTest
from modelgit.errors import CheckFailed
from modelgit.evals.base import Dataset, Side, SuiteRun
from modelgit.evals.checks import Row, Spread, divergence_row
from modelgit.evals.kept import kept_as, output_key
from modelgit.evals.metrics import kl_divergences
from modelgit.evals.paired import predictions_at
from modelgit.models.kinds import GAUSSIAN_KINDS, LANGUAGE_KINDS, PER_EXAMPLE_KINDS
from modelgit.objects import CheckResult, Decision

__all__ = ["run"]


def run(test: KlTest, run: SuiteRun) -> Iterator[Row]:
    """The mean against each baseline, and with `p99_max` the 99th percentile."""
    data = run.data_of(test)
    if not run.baselines:
        yield _line(test, "baseline", "")
        return
    per_example = data.task.kind in PER_EXAMPLE_KINDS
    noun = "examples" if per_example or data.task.kind in GAUSSIAN_KINDS else _noun(data)
    for side in run.baselines:
        try:
            spread = _of_examples(run, side, data) if per_example else _of_outputs(run, side, data)
        except CheckFailed as error:
            # Outputs that are no numbers are a bad model, and no fault of the test.
            yield _line(test, "fail", side.name, error.message)
            continue
        if isinstance(spread, str):
            yield _line(test, "error", side.name, spread)
            continue
        count = int(run.order(data).size)
        yield divergence_row("kl", spread, spread.mean, test.max, against=side.name, examples=count, noun=noun)
        if test.p99_max is not None:
            yield divergence_row(
                "kl p99", spread, spread.p99, test.p99_max, against=side.name, examples=count, noun=noun
            )


def _noun(data: Dataset) -> str:
    return "tokens" if data.task.kind in LANGUAGE_KINDS or data.task.kind == "token-classification" else "outputs"


def _line(test: KlTest, decision: Decision, against: str, detail: str = "") -> Row:
    limit = "" if test.max is None else f"max {test.max:g} nats"
    result = CheckResult(name="kl", decision=decision, unit="nats", limit=limit, detail=detail, against=against)
    return Row(result, decision)


def _of_examples(run: SuiteRun, side: Side, data: Dataset) -> Spread | str:
    """From the predictions of both sides; a sentence where they do not compare."""
    indices = np.sort(run.order(data))
    new = predictions_at(run, run.candidate, data, indices)
    old = predictions_at(run, side, data, indices)
    classes = new.log_probs.shape[1], old.log_probs.shape[1]
    if classes[0] != classes[1]:
        return f"the candidate has {classes[0]} classes, the baseline {classes[1]}"
    return Spread.of(kl_divergences(old.log_probs, new.log_probs))


def _of_outputs(run: SuiteRun, side: Side, data: Dataset) -> Spread | str:
    """With both models in memory; kept for the two of them, since nothing but these numbers is left of it."""
    candidate, indices = run.candidate, np.sort(run.order(data))
    settings = run.settings
    drawn = None if settings.examples is None else (settings.examples, settings.seed, run.identity)
    key = output_key("divergence", run, side, data, side.weights, candidate.model_path(data.task), drawn)
    known = kept_as(Spread, candidate.scores(key))
    if known is not None:
        return known
    from modelgit.evals.streams import output_divergences

    old, new = ((one.model(data), one.encode(data, indices)) for one in (side, candidate))
    divergences = output_divergences(old, new, check=run.check, progress=run.progress)
    if not divergences.size:
        return "the examples have no outputs that count"
    spread = Spread.of(divergences)
    candidate.keep_scores(key, msgspec.to_builtins(spread))
    return spread
