"""What a diff does to the outputs, as lines of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from modelgit.objects.diffs import BehaviourDiff, ModelDiff, OutputFlip
from modelgit.reporting.heatmap import layer_sums
from modelgit.reporting.wording import amount, change, points, printable, rate, share, shortened

__all__ = ["behaviour_lines", "divergence_parts", "flip_words", "headlines", "mass_line", "signed_share"]

_MAX_LAYERS = 48
_MAX_FLIPS = 8
_MAX_TENSORS = 5
_BAR = 20
_LANGUAGE = ("causal-lm", "masked-lm")
_METHODS = {"jvp": "one Jacobian-vector product", "central differences": "central differences"}


def behaviour_lines(diff: ModelDiff, behaviour: BehaviourDiff, *, width: int = 100) -> Iterator[str]:
    """Divergence, accuracy or perplexity, flips, where the divergence comes from, Fisher mass, notes."""
    yield from headlines(behaviour)
    yield from _flips(behaviour, width)
    yield from _parts(behaviour, width)
    yield from mass_line(diff, behaviour)
    for note in behaviour.notes:
        yield f"note: {printable(note)}"


def headlines(behaviour: BehaviourDiff) -> Iterator[str]:
    """The numbers, one sentence a line."""
    where = f" of {printable(behaviour.data)}" if behaviour.data else ""
    yield f"task {printable(behaviour.task)}, {behaviour.examples:,} examples{where}:"
    yield from _divergences(behaviour)
    if behaviour.old_loss is not None and behaviour.new_loss is not None and behaviour.kind in _LANGUAGE:
        sides = " → ".join(map(_perplexity, (behaviour.old_loss, behaviour.new_loss)))
        yield f"perplexity {sides} on {amount(behaviour.labelled)} tokens"
    elif behaviour.labelled:
        old, new = (count / behaviour.labelled for count in (behaviour.old_correct, behaviour.new_correct))
        yield (
            f"accuracy {rate(old)} → {rate(new)} ({points(new - old)}) on {behaviour.labelled:,} labelled: "
            f"{behaviour.negative_flips:,} became wrong, {behaviour.positive_flips:,} right"
        )
    if behaviour.agreement is not None:
        what = f"most likely {_unit(behaviour)}" if behaviour.sequential else "prediction"
        yield (
            f"agreement {rate(behaviour.agreement)}: {behaviour.flipped:,} of {behaviour.examples:,} examples have "
            f"another {what}"
        )


def mass_line(diff: ModelDiff, behaviour: BehaviourDiff) -> Iterator[str]:
    """How much of the Fisher mass lies on what changed, if that is known."""
    if behaviour.fisher_share is not None:
        model = behaviour.model or None
        changed = share(diff.values_changed(model), diff.elements(model))
        mass = share(behaviour.fisher_share, 1.0)
        yield f"the {changed} of values that changed carry {mass} of the diagonal Fisher mass of {printable(diff.old)}"


def _divergences(behaviour: BehaviourDiff) -> Iterator[str]:
    """By output where examples have several, and by example."""
    how = _METHODS.get(behaviour.method, "")
    known = [
        (value, words)
        for value, words in (
            (behaviour.measured_kl, "measured"),
            (behaviour.directional_kl, "by the directional form" + (f" ({how})" if how else "")),
            (behaviour.diagonal_kl, "by the diagonal one"),
        )
        if value is not None
    ]
    if not known:
        return
    if behaviour.sequential:
        shown = ", ".join(f"{change(behaviour.per_output(value))} {words}" for value, words in known)
        yield f"KL(old‖new) in nats per {_unit(behaviour)}: {shown}"
        yield f"  over all {_unit(behaviour)}s of an example: {', '.join(change(value) for value, _ in known)}"
    else:
        yield f"KL(old‖new) {', '.join(f'{change(value)} nats {words}' for value, words in known)}"


def _perplexity(loss: float) -> str:
    value = math.exp(min(loss, 700.0))
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" if value < 1e9 else change(value)


def _unit(behaviour: BehaviourDiff) -> str:
    """What one output of an example is called."""
    return "token" if behaviour.kind in (*_LANGUAGE, "token-classification") else "output"


def _flips(behaviour: BehaviourDiff, width: int) -> Iterator[str]:
    shown = behaviour.flips[:_MAX_FLIPS]
    for flip in shown:
        head = f"  {shortened(printable(flip.id), 16)}  {flip_words(behaviour, flip)}"
        room = width - len(head) - 4
        text = printable(flip.text)
        yield f"{head}  “{_cut(text, room)}”" if text and room >= 12 else head
    if behaviour.flipped > len(shown):
        more = behaviour.flipped - len(shown)
        yield f"  … and {more:,} more example{'' if more == 1 else 's'}"


def flip_words(behaviour: BehaviourDiff, flip: OutputFlip) -> str:
    """`place → person (margin 0.31 → 0.12, right: place)`, or how many tokens of how many."""
    if not flip.old:
        return f"{flip.changed:,} of {flip.outputs:,} {_unit(behaviour)}s, KL {change(flip.kl)}"
    sides = [f"{margin:.2f}" for margin in (flip.old_margin, flip.new_margin) if margin is not None]
    right = f", label {printable(flip.label)}" if flip.label else ""
    return f"{printable(flip.old)} → {printable(flip.new)} (margin {' → '.join(sides)}{right})"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def divergence_parts(behaviour: BehaviourDiff) -> dict[str, float]:
    """Tensor by tensor, nats; empty where the divergence was not shared out."""
    return {tensor.name: tensor.divergence for tensor in behaviour.tensors if tensor.divergence is not None}


def signed_share(part: float, whole: float) -> str:
    """A part of the divergence in per cent; it may be negative, or more than all."""
    if whole <= 0:
        return "?"
    value = 100 * part / whole
    return f"{value:.1f} %" if abs(value) >= 10 else f"{value:.2f} %"


def _parts(behaviour: BehaviourDiff, width: int) -> Iterator[str]:
    """A bar for each layer, then the tensors that carry most."""
    parts = divergence_parts(behaviour)
    whole = behaviour.directional_kl
    if not parts or not whole:
        return
    yield "where the divergence comes from (directional form; parts add up, a negative one makes up for another):"
    layers = layer_sums(parts)
    yield from _bars(layers, whole, width)
    top = [name for name in parts if parts[name]][:_MAX_TENSORS]
    shown = ", ".join(f"{printable(name)} {signed_share(parts[name], whole)}" for name in top)
    yield f"most of it: {shown}"


def _bars(layers: Mapping[str, float], whole: float, width: int) -> Iterator[str]:
    scale = max(map(abs, layers.values())) or 1.0
    ranked = sorted(layers, key=lambda name: -abs(layers[name]))
    kept = set(ranked[:_MAX_LAYERS])
    label = min(max(len(printable(name)) for name in kept), max(12, width - _BAR - 24))
    for name, value in layers.items():
        if name in kept:
            size = max(1, round(_BAR * abs(value) / scale)) if value else 0
            bar = ("█" if value > 0 else "░") * size
            text = shortened(printable(name), label)
            yield f"  {text:<{label}}  {bar:<{_BAR}} {_signed(value):>9} {signed_share(value, whole):>9}"
    if len(ranked) > _MAX_LAYERS:
        yield f"  … and {len(ranked) - _MAX_LAYERS:,} more layers that carry less"


def _signed(value: float) -> str:
    """A divergence with its sign."""
    return f"-{change(-value)}" if value < 0 else change(value)
