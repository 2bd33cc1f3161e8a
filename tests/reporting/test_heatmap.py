from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelgit.objects import TensorSpec
from modelgit.objects.diffs import TensorDiff
from modelgit.reporting.heatmap import BLOCKS, heat_map, place


def tensor(name: str, delta: float | None, *, changed: int = 10, elements: int = 1000, norm: float = 1.0) -> TensorDiff:
    spec = TensorSpec(dtype="BF16", shape=(elements,))
    return TensorDiff(
        model="models/bot",
        name=name,
        kind="changed",
        spec_old=spec,
        spec_new=spec,
        elements=elements,
        values_changed=changed,
        norm_delta=delta,
        norm_old=None if delta is None else norm,
    )


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.16.self_attn.q_proj.weight", "model.layers.16", "q"),
        ("model.layers.16.self_attn.o_proj.weight", "model.layers.16", "o"),
        ("model.layers.16.mlp.gate_proj.weight", "model.layers.16", "gate"),
        ("model.layers.16.mlp.down_proj.weight", "model.layers.16", "down"),
        ("model.layers.16.post_attention_layernorm.weight", "model.layers.16", "ln"),
        ("model.layers.16.self_attn.q_norm.weight", "model.layers.16", "ln"),
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", "model.layers.3", "down"),
        ("model.layers.3.block_sparse_moe.gate.weight", "model.layers.3", "rest"),
        ("bert.encoder.layer.11.attention.self.query.weight", "bert.encoder.layer.11", "q"),
        ("bert.encoder.layer.11.attention.self.value.bias", "bert.encoder.layer.11", "v"),
        ("bert.encoder.layer.11.attention.output.dense.weight", "bert.encoder.layer.11", "o"),
        ("bert.encoder.layer.11.attention.output.LayerNorm.bias", "bert.encoder.layer.11", "ln"),
        ("bert.encoder.layer.11.intermediate.dense.weight", "bert.encoder.layer.11", "up"),
        ("bert.encoder.layer.11.output.dense.weight", "bert.encoder.layer.11", "down"),
        ("transformer.h.0.attn.c_attn.weight", "transformer.h.0", "qkv"),
        ("transformer.h.0.attn.c_proj.weight", "transformer.h.0", "o"),
        ("transformer.h.0.mlp.c_fc.weight", "transformer.h.0", "up"),
        ("transformer.h.0.mlp.c_proj.weight", "transformer.h.0", "down"),
        ("h.0.ln_1.weight", "h.0", "ln"),
        ("encoder.block.2.layer.0.SelfAttention.o.weight", "encoder.block.2", "o"),
        ("encoder.block.2.layer.1.DenseReluDense.wo.weight", "encoder.block.2", "down"),
        ("layer1.0.conv1.weight", "layer1.0", "rest"),
        ("model.embed_tokens.weight", "", "model.embed_tokens"),
        ("classifier.bias", "", "classifier"),
        ("logit_scale", "", "logit_scale"),
    ],
)
def test_tensors_find_their_place(name: str, layer: str, kind: str) -> None:
    assert place(name) == (layer, kind)


def test_golden_map() -> None:
    tensors = [
        tensor("model.layers.10.self_attn.q_proj.weight", 0.0001, changed=3),
        tensor("model.layers.2.self_attn.v_proj.weight", 0.0025, changed=1),
        tensor("model.layers.10.self_attn.v_proj.weight", 0.0100, changed=20),
        tensor("model.layers.10.mlp.gate_proj.weight", 0.0036),
        tensor("model.layers.10.input_layernorm.weight", 0.0049, elements=10, changed=10),
        tensor("model.embed_tokens.weight", 0.0016, changed=5, elements=100_000),
    ]
    sizes = {"model.layers.2.self_attn.q_proj.weight": 1000} | {one.name: one.elements for one in tensors}
    heat = heat_map(tensors, sizes=sizes)
    assert heat.render(80) == [
        "                         q    v gate   ln rest    changed",
        "  layers.2                 ▄▄▄▄                    0.05 %",
        "  layers.10           ▁▁▁▁ ████ ▅▅▅▅ ▆▆▆▆          1.43 %",
        "  model.embed_tokens                      ▄▄▄▄    <0.01 %",
        "  █ is a ‖Δ‖/‖W‖ of 0.01; heights by square root",
    ]
    assert heat.render(40) == [
        "                    q v g l r    changed",
        "  layers.2            ▄           0.05 %",
        "  layers.10         ▁ █ ▅ ▆       1.43 %",
        "  model…bed_tokens          ▄    <0.01 %",
        "  █ is a ‖Δ‖/‖W‖ of 0.01; heights by square root",
    ]


def test_nan_and_changes_from_zero_are_full_blocks() -> None:
    heat = heat_map([tensor("h.0.mlp.c_fc.weight", float("nan")), tensor("h.1.mlp.c_fc.weight", 1.0, norm=0.0)])
    assert [heat.level(row.cells[0]) for row in heat.rows] == [8, 8]
    assert heat.render()


def test_levels_follow_the_square_root_of_the_relative_norm() -> None:
    heats = (0.0001, 0.0025, 0.01)
    heat = heat_map([tensor(f"layers.{n}.q_proj.weight", delta) for n, delta in enumerate(heats)])
    assert [heat.level(row.cells[0]) for row in heat.rows] == [1, 4, 8]
    assert heat.scale == 0.01


def test_weights_and_biases_share_a_cell_and_weigh_by_norm() -> None:
    heat = heat_map([tensor("h.0.mlp.c_fc.weight", 3.0, norm=6.0), tensor("h.0.mlp.c_fc.bias", 4.0, norm=8.0)])
    (row,) = heat.rows
    (cell,) = row.cells
    assert cell is not None
    assert (cell.heat, cell.tensors) == (0.5, 2)


def test_without_norms_the_share_of_changed_values_is_shown() -> None:
    heat = heat_map(
        [tensor("h.0.mlp.c_fc.weight", None, changed=250), tensor("h.1.mlp.c_fc.weight", 1.0, changed=1000)]
    )
    assert [row.cells[0].heat for row in heat.rows if row.cells[0]] == [0.25, 1.0]
    assert "share of values changed" in heat.render()[-1]


def test_small_rows_are_left_out_and_counted() -> None:
    heat = heat_map([tensor(f"h.{n}.mlp.c_fc.weight", 0.001 * (n + 1)) for n in range(60)], max_rows=8)
    assert [row.label for row in heat.rows] == [f"h.{n}" for n in range(52, 60)]
    assert heat.render()[-2] == "  … and 52 more rows with smaller changes"


def test_layers_of_two_stacks_keep_their_whole_names() -> None:
    heat = heat_map([tensor(f"{side}.block.0.layer.0.SelfAttention.q.weight", 1.0) for side in ("encoder", "decoder")])
    assert [row.label for row in heat.rows] == ["decoder.block.0", "encoder.block.0"]


def test_nothing_changed_gives_no_lines() -> None:
    assert heat_map([]).render() == []


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=60), st.floats(0, 1e6)), max_size=12, unique_by=lambda one: one[0]),
    st.integers(40, 140),
)
def test_any_names_render_within_the_width_and_without_control_characters(
    named: list[tuple[str, float]], width: int
) -> None:
    lines = heat_map([tensor(name, delta) for name, delta in named]).render(width)
    assert all(len(line) <= width for line in lines[:-1])
    assert all(len(line) <= 70 for line in lines[-1:])
    assert all(line.isprintable() for line in lines)
    assert len(BLOCKS) == 8
