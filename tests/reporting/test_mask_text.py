"""Where a mask's values lie, by layer, in their order, against the sizes of whole layers."""

from __future__ import annotations

from modelgit.objects import Mask, MaskRegion, TensorSpec
from modelgit.reporting.mask_text import LayerDensity, density_lines, layer_densities


def region(name: str, count: int, *shape: int) -> MaskRegion:
    return MaskRegion(name=name, spec=TensorSpec(dtype="F32", shape=shape), count=count)


MASK = Mask(
    model="bot",
    regions=(
        region("layers.10.q.weight", 4, 10, 10),
        region("layers.2.q.weight", 1, 10, 10),
        region("layers.2.norm.weight", 5, 10),
        region("head.weight", 20, 2, 10),
    ),
    origin="by hand",
)


def test_layers_are_summed_in_their_order() -> None:
    assert layer_densities(MASK) == [
        LayerDensity("head", 20, 20),
        LayerDensity("layers.2", 6, 110),
        LayerDensity("layers.10", 4, 100),
    ]
    sizes = {"layers.2.k.weight": 90, "layers.3.k.weight": 7, "layers.2.q.weight": 100}
    assert layer_densities(MASK, sizes)[1] == LayerDensity("layers.2", 6, 200)
    assert layer_densities(Mask(model="m", regions=(), origin="")) == []


def test_bars_are_roots_of_densities_and_lines_fit() -> None:
    lines = density_lines(layer_densities(MASK), 60)
    assert len(lines) == 4 and all(len(line) <= 60 for line in lines)
    assert [line.count("█") for line in lines[:3]] == [24, 5, 4]
    assert lines[0].split()[0] == "head" and lines[0].endswith("100 %")
    hidden = density_lines([LayerDensity("layers.\x1b[2J" + "x" * 200, 1, 10**9)], 80)
    assert "\x1b" not in hidden[0] and len(hidden[0]) <= 80 and "▏" not in hidden[0]
    assert density_lines([]) == []
