"""A mask in words: where in the model its values lie, one bar per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from modelgit.objects import Mask
from modelgit.reporting.heatmap import natural, place
from modelgit.reporting.wording import amount, printable, share, shortened

__all__ = ["LayerDensity", "density_lines", "layer_densities"]

_BAR = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


class LayerDensity(NamedTuple):
    """How many of a layer's (or, outside of layers, a module's) values a mask holds."""

    layer: str
    chosen: int
    elements: int


def layer_densities(mask: Mask, sizes: Mapping[str, int] | None = None) -> list[LayerDensity]:
    """The layers that a mask holds values of, in their order.

    `sizes` counts the elements of all tensors of the model; without it, those of tensors that the mask does not name
    are not known and a layer seems denser than it is.
    """
    known = {region.name: region.spec.elements for region in mask.regions} | dict(sizes or {})
    counts = {region.name: region.count for region in mask.regions}
    found: dict[str, LayerDensity] = {}
    for name, elements in known.items():
        layer, module = place(name)
        label = layer or module
        before = found.get(label, LayerDensity(label, 0, 0))
        found[label] = LayerDensity(label, before.chosen + counts.get(name, 0), before.elements + elements)
    return sorted((item for item in found.values() if item.chosen), key=lambda item: natural(item.layer))


def density_lines(layers: list[LayerDensity], width: int = 100) -> list[str]:
    """One line per layer: its name, a bar as long as the root of its density, values, and the density."""
    densest = max((item.chosen / item.elements for item in layers), default=0.0)
    room = max(12, width - _BAR - 26)
    longest = min(room, max((len(printable(item.layer)) for item in layers), default=0))
    lines = []
    for item in layers:
        # By square root, as in the heat map: beside a head that trains whole, shares of 0.5 % would all look alike.
        eighths = max(1, round(8 * _BAR * math.sqrt(item.chosen / item.elements / densest)))
        bar = ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(_BAR)
        label = shortened(printable(item.layer), longest).ljust(longest)
        lines.append(f"  {label}  {bar}  {amount(item.chosen):>9}  {share(item.chosen, item.elements):>7}")
    return [*lines, "  lengths by square root"] if lines else []
