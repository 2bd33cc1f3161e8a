"""A diff as one HTML file: no script, no request to anywhere, every name from the model escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelgit.objects.diffs import ModelDiff, TensorDiff
from modelgit.reporting.behaviour_html import behaviour_parts
from modelgit.reporting.diff_text import diff_lines, summary_line
from modelgit.reporting.heatmap import HeatMap, heat_map
from modelgit.reporting.markup import STYLE, document, text
from modelgit.reporting.samples import sample_parts
from modelgit.reporting.wording import amount, change, share

__all__ = ["ShownDiff", "diff_fragment", "diff_html"]

_MAX_TENSORS = 200
_CELL, _GAP, _LABEL, _HEAD = 26, 4, 190, 22


class ShownDiff(ModelDiff, frozen=True, kw_only=True):
    """A diff that shows itself: as a page, in a notebook, and as text."""

    def to_html(self) -> str:
        """One self-contained page: no script, no request to anywhere."""
        return diff_html(self)

    def _repr_html_(self) -> str:
        return diff_fragment(self)

    def __str__(self) -> str:
        return "\n".join(diff_lines(self))


def diff_html(diff: ModelDiff) -> str:
    """A complete document."""
    return document(f"{diff.old} → {diff.new}", diff_fragment(diff))


def diff_fragment(diff: ModelDiff) -> str:
    """The same without a document around it, for notebooks."""
    parts = [f'<style>{STYLE}</style><div class="mgit"><h1>{text(diff.old)} → {text(diff.new)}</h1>']
    for model in diff.models:
        parts.append(f"<h2>{text(model)}</h2><p>{text(summary_line(diff, model))}</p>")
        parts.append(_svg(heat_map(diff.of(model), sizes=diff.sizes.get(model), max_rows=200)))
        parts.append(_tensor_table(diff.of(model)))
    if diff.files:
        parts.append("<h2>Files</h2><table><tr><th>file</th><th>key</th><th>before</th><th>after</th></tr>")
        parts += _file_rows(diff)
        parts.append("</table>")
    if diff.behaviour is not None:
        parts += behaviour_parts(diff, diff.behaviour)
    if diff.samples is not None:
        parts += sample_parts(diff, diff.samples)
    parts.append("</div>")
    return "".join(parts)


def _svg(heat: HeatMap) -> str:
    if not heat.rows:
        return ""
    step = _CELL + _GAP
    width, height = _LABEL + len(heat.columns) * step + 90, _HEAD + len(heat.rows) * step
    parts = [f'<svg role="img" aria-label="heat map" width="{width}" height="{height}">']
    for column, name in enumerate(heat.columns):
        parts.append(
            f'<text x="{_LABEL + column * step + _CELL / 2:g}" y="14" text-anchor="middle">{text(name)}</text>'
        )
    for number, row in enumerate(heat.rows):
        y = _HEAD + number * step
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 17}" text-anchor="end">{text(row.label[-26:])}</text>')
        for column, cell in enumerate(row.cells):
            if cell is None:
                continue
            size = round(_CELL * heat.level(cell) / 8, 2)
            hover = f"{row.label} {heat.columns[column]}: {change(cell.heat)} in {cell.tensors} tensors"
            parts.append(
                f'<rect x="{_LABEL + column * step}" y="{y + _CELL - size:g}" width="{_CELL}" height="{size:g}">'
                f"<title>{text(hover)}</title></rect>"
            )
        x = _LABEL + len(heat.columns) * step + 80
        parts.append(f'<text x="{x}" y="{y + 17}" text-anchor="end">{share(row.changed, row.elements)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def _tensor_table(tensors: tuple[TensorDiff, ...]) -> str:
    ranked = sorted(tensors, key=lambda tensor: (-_order(tensor), tensor.name))
    rows = "".join(_tensor_row(tensor) for tensor in ranked[:_MAX_TENSORS])
    more = len(ranked) - _MAX_TENSORS
    note = f"<p>and {more:,} more tensors with smaller changes</p>" if more > 0 else ""
    heads = ("values", "changed", "‖Δ‖/‖W‖", "max |Δ|", "rms Δ")
    head = "".join(f'<th class="n">{name}</th>' for name in heads)
    return f"<table><tr><th>tensor</th><th>change</th>{head}</tr>{rows}</table>{note}"


def _order(tensor: TensorDiff) -> float:
    """What came, went or changed its shape first, then by relative norm."""
    return math.inf if tensor.kind != "changed" else tensor.relative_norm or 0.0


def _tensor_row(tensor: TensorDiff) -> str:
    changed = "" if tensor.values_changed is None else share(tensor.values_changed, tensor.elements)
    numbers = (
        amount(tensor.elements),
        changed,
        *("" if value is None else change(value) for value in (tensor.relative_norm, tensor.max_abs, tensor.rms)),
    )
    specs = [spec for spec in (tensor.spec_old, tensor.spec_new) if spec is not None]
    shown = " → ".join(dict.fromkeys(f"{spec.dtype} {list(spec.shape)}" for spec in specs))
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    return f"<tr><td><code>{text(tensor.name)}</code></td><td>{tensor.kind} {text(shown)}</td>{cells}</tr>"


def _file_rows(diff: ModelDiff) -> Iterator[str]:
    for file in diff.files:
        if not file.keys:
            yield f"<tr><td><code>{text(file.path)}</code></td><td>{file.kind}</td><td></td><td></td></tr>"
        for key in file.keys:
            sides = "".join(f"<td><code>{text(side or '')}</code></td>" for side in (key.old, key.new))
            yield f"<tr><td><code>{text(file.path)}</code></td><td>{text(key.key)}</td>{sides}</tr>"
