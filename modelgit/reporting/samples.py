"""Answers of both sides to the same prompts, next to each other: as text, and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import zip_longest

from modelgit.objects.diffs import ModelDiff, Sample, SamplesDiff
from modelgit.reporting.markup import paragraph, text
from modelgit.reporting.wording import printable

__all__ = ["sample_lines", "sample_parts"]

_NARROWEST = 16
_MAX_PROMPT_LINES = 6
_GAP = " │ "


def sample_lines(diff: ModelDiff, samples: SamplesDiff, *, width: int = 100) -> Iterator[str]:
    """A heading, then each prompt with both answers in two columns; an answer that both give is shown once."""
    yield heading(samples)
    column = max(_NARROWEST, (width - 4 - len(_GAP)) // 2)
    for pair in samples.pairs:
        prompt = _wrapped(f"{pair.id}  {pair.prompt}", max(_NARROWEST, width - 4))
        yield from (f"  {line}".rstrip() for line in prompt[:_MAX_PROMPT_LINES])
        if len(prompt) > _MAX_PROMPT_LINES:
            yield f"  … and {len(prompt) - _MAX_PROMPT_LINES:,} more lines"
        sides = [_wrapped(_answer(side), column) for side in (pair.old, pair.new)]
        if sides[0] == sides[1]:
            yield from (f"    {line}".rstrip() for line in (*sides[0], "(both)"))
            continue
        heads = [[printable(label)[:column]] for label in (diff.old, diff.new)]
        for old, new in zip_longest(heads[0] + sides[0], heads[1] + sides[1], fillvalue=""):
            yield f"    {old:<{column}}{_GAP}{new}".rstrip()
    for note in samples.notes:
        yield f"note: {printable(note)}"


def heading(samples: SamplesDiff) -> str:
    """What was asked, and how many answers are alike."""
    count, same = len(samples.pairs), sum(pair.same for pair in samples.pairs)
    how = "predictions"
    if samples.kind == "generation":
        drawn = f"temperature {samples.temperature:g}, seed {samples.seed}" if samples.temperature else "greedy"
        how = f"up to {samples.n_tokens:,} tokens, {drawn}"
    prompts = f"{count:,} prompt{'' if count == 1 else 's'}"
    return f"task {printable(samples.task)}, {prompts} ({how}): {same:,} answered alike"


def _answer(sample: Sample) -> str:
    if sample.classes:
        return ", ".join(f"{name} {probability:.3f}" for name, probability in sample.classes)
    return sample.text + (" ⏹" if sample.ended else "")


def _wrapped(value: str, width: int) -> list[str]:
    """Lines of at most `width` characters; line breaks of the text stay."""
    lines: list[str] = []
    for line in value.splitlines():
        lines += textwrap.wrap(printable(line), width, drop_whitespace=True) or [""]
    return lines or [""]


def sample_parts(diff: ModelDiff, samples: SamplesDiff) -> Iterator[str]:
    """The section about samples; rows whose answers differ are marked."""
    yield f"<h2>Samples</h2><p>{text(heading(samples))}</p>"
    for note in samples.notes:
        yield f'<p class="note">note: {text(note)}</p>'
    yield f"<table><tr><th>prompt</th><th>{text(diff.old)}</th><th>{text(diff.new)}</th></tr>"
    for pair in samples.pairs:
        mark = "" if pair.same else ' class="other"'
        answers = "".join(f'<td class="text">{paragraph(_answer(side))}</td>' for side in (pair.old, pair.new))
        prompt = f"<code>{text(pair.id)}</code> {paragraph(pair.prompt)}"
        yield f'<tr{mark}><td class="text">{prompt}</td>{answers}</tr>'
    yield "</table>"
