"""What a diff does to the outputs, as HTML; every name and text is escaped."""

from __future__ import annotations

from collections.abc import Iterator

from modelgit.objects.diffs import BehaviourDiff, ModelDiff
from modelgit.reporting.behaviour_text import divergence_parts, flip_words, headlines, mass_line, signed_share
from modelgit.reporting.heatmap import layer_sums
from modelgit.reporting.markup import text
from modelgit.reporting.wording import change, share

__all__ = ["behaviour_parts"]

_MAX_TENSORS = 200
_LABEL, _WIDTH, _STEP, _NUMBERS = 190, 320, 20, 150


def behaviour_parts(diff: ModelDiff, behaviour: BehaviourDiff) -> Iterator[str]:
    """The section about behaviour."""
    yield f"<h2>Behaviour on {text(behaviour.task)}</h2>"
    for line in (*headlines(behaviour), *mass_line(diff, behaviour)):
        yield f"<p>{text(line)}</p>"
    for note in behaviour.notes:
        yield f'<p class="note">note: {text(note)}</p>'
    yield from _flips(behaviour)
    parts = divergence_parts(behaviour)
    if parts and behaviour.directional_kl:
        yield "<h2>Where the divergence comes from</h2>"
        yield (
            "<p>Parts of the directional form by layer. They add up to it; a negative one makes up for a part of "
            "another.</p>"
        )
        yield _bars(layer_sums(parts), behaviour.directional_kl)
    yield _tensors(behaviour)


def _flips(behaviour: BehaviourDiff) -> Iterator[str]:
    if not behaviour.flips:
        return
    rows = "".join(
        f"<tr><td><code>{text(flip.id)}</code></td><td>{text(flip_words(behaviour, flip))}</td>"
        f'<td class="n">{change(flip.kl)}</td><td class="text">{text(flip.text)}</td></tr>'
        for flip in behaviour.flips
    )
    more = behaviour.flipped - len(behaviour.flips)
    yield f"<h2>Predictions that changed ({behaviour.flipped:,})</h2>"
    yield f'<table><tr><th>example</th><th>old → new</th><th class="n">KL</th><th>text</th></tr>{rows}</table>'
    if more > 0:
        yield f"<p>and {more:,} more that diverge less</p>"


def _bars(layers: dict[str, float], whole: float) -> str:
    scale = max(map(abs, layers.values())) or 1.0
    height = _STEP * len(layers)
    out = [f'<svg role="img" aria-label="divergence by layer" width="{_LABEL + _WIDTH + _NUMBERS}" height="{height}">']
    for row, (name, value) in enumerate(layers.items()):
        y = row * _STEP
        size = round(_WIDTH * abs(value) / scale, 2)
        out.append(f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{text(name[-26:])}</text>')
        kind = ' class="less"' if value < 0 else ""
        out.append(
            f'<rect{kind} x="{_LABEL}" y="{y + 3}" width="{size:g}" height="{_STEP - 6}">'
            f"<title>{text(name)}: {value:.3g} nats</title></rect>"
        )
        label = f"{value:.2g} nats, {signed_share(value, whole)}"
        out.append(f'<text x="{_LABEL + size + 6:g}" y="{y + 14}">{label}</text>')
    out.append("</svg>")
    return "".join(out)


def _tensors(behaviour: BehaviourDiff) -> str:
    shown = behaviour.tensors[:_MAX_TENSORS]
    if not shown:
        return ""
    whole = behaviour.directional_kl or 0.0
    rows = "".join(
        f"<tr><td><code>{text(item.name)}</code></td>"
        f'<td class="n">{"" if item.divergence is None else format(item.divergence, ".3g")}</td>'
        f'<td class="n">{"" if item.divergence is None else signed_share(item.divergence, whole)}</td>'
        f'<td class="n">{"" if item.fisher_share is None else share(item.fisher_share, 1.0)}</td></tr>'
        for item in shown
    )
    more = len(behaviour.tensors) - len(shown)
    heads = "".join(f'<th class="n">{head}</th>' for head in ("KL, nats", "share", "Fisher mass"))
    note = f"<p>and {more:,} more tensors that carry less</p>" if more > 0 else ""
    return f"<table><tr><th>tensor</th>{heads}</tr>{rows}</table>{note}"
