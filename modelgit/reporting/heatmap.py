"""Where in a model a change lies: one row per layer, one column per kind of tensor, a block as high as the change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelgit.objects.diffs import TensorDiff, relative_norm
from modelgit.reporting.wording import change, printable, share, shortened

__all__ = ["COLUMNS", "HeatCell", "HeatMap", "HeatRow", "heat_map", "layer_sums", "natural", "place"]

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = ("qkv", "q", "k", "v", "o", "gate", "up", "down", "ln", "rest")
_MAX_CELL, _MIN_CELL = 4, 1

# Kinds of tensors by the part of the name after the layer's number, as Llama, Qwen, Mistral, Gemma, Mixtral, BERT,
# DistilBERT, GPT-2, GPT-NeoX, OPT and T5 name them.  The first that matches counts.
_KINDS = tuple(
    (column, re.compile(rf"(?:^|\.)(?:{pattern})(?:\.|$)"))
    for column, pattern in (
        ("ln", r"ln_?\d*|ln_\w+|\w*norm\w*|\w*LayerNorm\w*|\w*layer_?norm\w*"),
        ("qkv", r"c_attn|qkv|qkv_proj|query_key_value|Wqkv|in_proj_weight|in_proj_bias"),
        ("q", r"q_proj|query|q_lin|wq|q_a_proj|q_b_proj|SelfAttention\.q|EncDecAttention\.q"),
        ("k", r"k_proj|key|k_lin|wk|SelfAttention\.k|EncDecAttention\.k"),
        ("v", r"v_proj|value|v_lin|wv|SelfAttention\.v|EncDecAttention\.v"),
        (
            "o",
            r"o_proj|out_proj|out_lin|wo|attention\.output\.dense|attn\.c_proj|attention\.dense|SelfAttention\.o"
            r"|EncDecAttention\.o",
        ),
        ("gate", r"gate_proj|gate_up_proj|w1|wi_0"),
        ("up", r"up_proj|intermediate\.dense|c_fc|fc1|lin1|w3|wi|wi_1|dense_h_to_4h"),
        ("down", r"down_proj|output\.dense|mlp\.c_proj|fc2|lin2|w2|DenseReluDense\.wo|dense_4h_to_h"),
    )
)
_FEED_FORWARD_OUT = re.compile(r"DenseReluDense\.wo(?:\.|$)")
_LAYER = re.compile(r"^(?:(?P<before>.*?)\.)?(?P<number>\d+)\.(?P<rest>.+)$")
_SUFFIX = re.compile(r"\.(?:weight|bias|lora_[AB](?:\.\w+)?\.weight)$")


@dataclass(frozen=True)
class HeatCell:
    """The change of one kind of tensor in one layer.

    `heat` is ‖Δ‖/‖W‖ where norms are known, else the share of values that changed.
    """

    heat: float
    tensors: int


@dataclass(frozen=True)
class HeatRow:
    """One layer, or one module outside the layers (its cell is in the column "rest").

    `changed` and `elements` count values of the whole row.
    """

    label: str
    cells: tuple[HeatCell | None, ...]
    changed: int
    elements: int


@dataclass(frozen=True)
class HeatMap:
    """Layers in their order, then other modules; `omitted` counts rows with smaller changes that were left out."""

    columns: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    omitted: int
    by_norm: bool

    @property
    def scale(self) -> float:
        """The heat of a full block."""
        found = [cell.heat for row in self.rows for cell in row.cells if cell is not None]
        return max((heat for heat in found if math.isfinite(heat)), default=0.0)

    def level(self, cell: HeatCell | None) -> int:
        """0 for no change, else 1 to 8, by the square root of the heat."""
        if cell is None:
            return 0
        if math.isinf(cell.heat):
            return len(BLOCKS)
        scale = self.scale
        return max(1, math.ceil(len(BLOCKS) * math.sqrt(cell.heat / scale) - 1e-9)) if scale else 1

    def render(self, width: int = 100) -> list[str]:
        """Lines of at most `width` characters where `width` is 40 or more; none for an empty map."""
        if not self.rows:
            return []
        columns = len(self.columns)
        cell = _MAX_CELL
        longest = max(len(printable(row.label)) for row in self.rows)
        while cell > _MIN_CELL and 2 + min(longest, 12) + 2 + columns * (cell + 1) + 10 > width:
            cell -= 1
        label_width = max(4, min(longest, width - (2 + 2 + columns * (cell + 1) + 10)))
        heads = " ".join(name[:cell].rjust(cell) for name in self.columns)
        lines = [f"  {'':<{label_width}}  {heads}{'changed':>11}"]
        for row in self.rows:
            label = shortened(printable(row.label), label_width).ljust(label_width)
            levels = map(self.level, row.cells)
            blocks = " ".join((BLOCKS[level - 1] if level else " ") * cell for level in levels)
            lines.append(f"  {label}  {blocks}{share(row.changed, row.elements):>11}")
        if self.omitted:
            lines.append(f"  … and {self.omitted:,} more rows with smaller changes")
        meaning = "‖Δ‖/‖W‖" if self.by_norm else "share of values changed"
        lines.append(f"  █ is a {meaning} of {change(self.scale)}; heights by square root")
        return lines


def place(name: str) -> tuple[str, str]:
    """Where a tensor belongs: (layer, kind), the layer "" outside of layers, where the kind is the module's name.

    The layer is everything up to the first number: `model.layers.16`.
    """
    match = _LAYER.match(name)
    if match is None:
        return "", _SUFFIX.sub("", name)
    before, number, rest = match["before"], match["number"], match["rest"]
    layer = f"{before}.{number}" if before else number
    if _FEED_FORWARD_OUT.search(rest):  # T5 calls two different projections `wo` and `o`
        return layer, "down"
    return layer, next((column for column, pattern in _KINDS if pattern.search(rest)), "rest")


def layer_sums(values: Mapping[str, float]) -> dict[str, float]:
    """Sums of numbers by tensor over layers, and over modules outside of them, in the order of a heat map's rows."""
    layers: dict[str, float] = {}
    modules: dict[str, float] = {}
    for name, value in values.items():
        layer, kind = place(name)
        sums, key = (layers, layer) if layer else (modules, kind)
        sums[key] = sums.get(key, 0.0) + value
    ordered = sorted(layers, key=natural)
    short = _short_labels(ordered)
    return {short[layer]: layers[layer] for layer in ordered} | {module: modules[module] for module in sorted(modules)}


def heat_map(tensors: Iterable[TensorDiff], *, sizes: Mapping[str, int] | None = None, max_rows: int = 48) -> HeatMap:
    """The map of one model's changed tensors.

    `sizes` counts the elements of all tensors by name, so that shares are of whole layers.  Rows beyond `max_rows`
    with the smallest changes are left out.  Added, removed and re-shaped tensors have no place on a map of change.
    """
    changed = [tensor for tensor in tensors if tensor.kind == "changed"]
    by_norm = all(tensor.norm_delta is not None and tensor.norm_old is not None for tensor in changed)
    groups: dict[tuple[str, str], list[TensorDiff]] = {}
    for tensor in changed:
        groups.setdefault(place(tensor.name), []).append(tensor)
    counts: dict[tuple[str, str], int] = {}
    for name, elements in (sizes or {tensor.name: tensor.elements for tensor in changed}).items():
        spot = place(name)
        key = spot if not spot[0] else (spot[0], "")
        counts[key] = counts.get(key, 0) + elements
    cells = {spot: HeatCell(_heat(group, by_norm=by_norm), len(group)) for spot, group in groups.items()}
    present = {kind if layer else "rest" for layer, kind in cells}
    columns = tuple(column for column in COLUMNS if column in present)
    layers = sorted({layer for layer, _ in cells if layer}, key=natural)
    short = _short_labels(layers)
    rows = [
        HeatRow(
            short[layer],
            tuple(cells.get((layer, column)) for column in columns),
            sum(_values(tensor) for (where, _), group in groups.items() if where == layer for tensor in group),
            counts.get((layer, ""), 0),
        )
        for layer in layers
    ]
    rows += [
        HeatRow(
            module,
            tuple(cells["", module] if column == "rest" else None for column in columns),
            sum(map(_values, groups["", module])),
            counts.get(("", module), 0),
        )
        for module in sorted(kind for layer, kind in cells if not layer)
    ]
    kept, omitted = _largest(rows, max_rows)
    return HeatMap(columns, tuple(row for row in rows if row in kept), omitted, by_norm)


def _heat(group: list[TensorDiff], *, by_norm: bool) -> float:
    if by_norm:
        heat = relative_norm(group) or 0.0
        return math.inf if math.isnan(heat) else heat
    return sum(map(_values, group)) / max(1, sum(tensor.elements for tensor in group))


def _values(tensor: TensorDiff) -> int:
    return tensor.elements if tensor.values_changed is None else tensor.values_changed


def _largest(rows: list[HeatRow], count: int) -> tuple[set[HeatRow], int]:
    ranked = sorted(rows, key=lambda row: -max((cell.heat for cell in row.cells if cell is not None), default=0.0))
    return set(ranked[:count]), max(0, len(rows) - count)


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _short_labels(layers: list[str]) -> dict[str, str]:
    """`model.layers.16` as `layers.16`, unless two layers would then read alike."""
    short = {layer: ".".join(layer.split(".")[-2:]) for layer in layers}
    values = list(short.values())
    return {layer: label if values.count(label) == 1 else layer for layer, label in short.items()}
