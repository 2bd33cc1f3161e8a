"""Records what mergekit makes of small random models: run in an environment that has it, never by the tests.

    python record.py FOLDER      (any empty folder for the models)

Writes `values.safetensors` (per case all tensors of the result in the order of their names, as one array) and
`cases.json` (the configuration of each case, and versions) beside this file.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
BASE = "base_model: base\n"
TWO = "models:\n- {model: a, parameters: {weight: 0.7}}\n- {model: b, parameters: {weight: 0.5}}\n"
THREE = (
    "models:\n- {model: a, parameters: {weight: 0.7, density: 0.4}}\n"
    "- {model: b, parameters: {weight: 0.5, density: 0.6}}\n- {model: c, parameters: {weight: -0.2, density: 0.5}}\n"
)
PLAIN = "models:\n- model: a\n- model: b\n- model: c\n"
SMALL = "base_model: base\nmodels:\n- model: small1\n- model: small2\n"
# Angles in float32 are off by more than a rounding: these are computed in float64 there, too.
EXACT = "dtype: float64\nout_dtype: float32\n"
CASES = {
    "linear": "merge_method: linear\n" + TWO,
    "linear-sum": "merge_method: linear\nparameters: {normalize: false}\n" + TWO,
    "linear-four": "merge_method: linear\nparameters: {weight: 1}\n"
    "models: [{model: base}, {model: a}, {model: b}, {model: c}]",
    "slerp": EXACT + "merge_method: slerp\nparameters: {t: 0.3}\nmodels:\n- model: other\n" + BASE,
    "slerp-gradient": EXACT + "merge_method: slerp\nmodels:\n- model: other\n" + BASE + "parameters:\n  t:\n"
    "  - {filter: self_attn, value: [0, 0.5, 1]}\n  - {filter: mlp, value: [1, 0.2]}\n  - value: 0.5\n",
    "nuslerp": EXACT + "merge_method: nuslerp\n" + TWO,
    "nuslerp-base": EXACT + "merge_method: nuslerp\n" + TWO + BASE,
    "nuslerp-rows": EXACT + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n" + TWO + BASE,
    "karcher": EXACT + "merge_method: karcher\nparameters: {max_iter: 100, tol: 1e-9}\n"
    "models:\n- model: a\n- model: other\n- model: b\n",
    "task_arithmetic": "merge_method: task_arithmetic\nparameters: {lambda: 0.8}\n" + TWO + BASE,
    "task_arithmetic-normalized": "merge_method: task_arithmetic\nparameters: {normalize: true}\n" + TWO + BASE,
    "ties": "merge_method: ties\n" + THREE + BASE,
    "ties-sum": "merge_method: ties\nparameters: {normalize: false, lambda: 1.2}\n" + THREE + BASE,
    "ties-gradient": "merge_method: ties\nparameters: {weight: [0.2, 1.0], density: [0.9, 0.1]}\n" + PLAIN + BASE,
    "breadcrumbs": "merge_method: breadcrumbs\nparameters: {gamma: 0.1}\n" + THREE + BASE,
    "breadcrumbs_ties": "merge_method: breadcrumbs_ties\nparameters: {gamma: 0.1}\n" + THREE + BASE,
    "dare_linear-whole": "merge_method: dare_linear\n" + TWO + BASE,
    "dare_ties-whole": "merge_method: dare_ties\n" + TWO + BASE,
    "della-whole": "merge_method: della\n" + TWO + BASE,
    "della_linear-whole": "merge_method: della_linear\n" + TWO + BASE,
    "sce": "merge_method: sce\nparameters: {select_topk: 0.5}\n" + PLAIN + BASE,
    "model_stock": EXACT + "merge_method: model_stock\n" + PLAIN + BASE,
    "model_stock-rows": EXACT + "merge_method: model_stock\nparameters: {filter_wise: true}\n" + PLAIN + BASE,
    "passthrough": "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
    "- sources: [{model: b, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}}]\n",
    "slices": "merge_method: linear\nslices:\n- sources:\n"
    "  - {model: a, layer_range: [0, 2], parameters: {weight: [1, 3]}}\n"
    "  - {model: b, layer_range: [1, 3], parameters: {weight: 1}}\n- sources:\n"
    "  - {model: c, layer_range: [2, 3], parameters: {weight: 1}}\n"
    "  - {model: b, layer_range: [0, 1], parameters: {weight: 2}}\n",
    "sce-small": "merge_method: sce\n" + SMALL,
    "model_stock-small": "merge_method: model_stock\n" + SMALL,
    "bfloat16": "merge_method: linear\nout_dtype: bfloat16\n" + TWO,
}


def shapes(layers: int = 3, width: int = 8) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (9, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj"):
            found[f"{prefix}.{name}.weight"] = (width, width)
        found |= {f"{prefix}.self_attn.{name}_proj.weight": (width // 2, width) for name in "kv"}
        found |= {f"{prefix}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return found | {"lm_head.weight": (9, width)}


def models() -> dict[str, dict[str, np.ndarray]]:
    """The inputs: changes of a usual size, very small ones, and a model that is no relative."""
    rng = np.random.default_rng(11)

    def noise(scale: float) -> dict[str, np.ndarray]:
        return {name: scale * rng.standard_normal(shape) for name, shape in shapes().items()}

    base = {name: value.astype(np.float32) for name, value in noise(0.5).items()}
    found = {"base": base}
    for name in "abc":
        found[name] = {key: (base[key] + value).astype(np.float32) for key, value in noise(1e-2).items()}
    # Of one task, mostly: their changes have a common part, and the second one's are larger.
    shared, own, more = noise(1e-4), noise(1e-5), noise(2e-5)
    found["small1"] = {key: (base[key] + shared[key] + own[key]).astype(np.float32) for key in base}
    found["small2"] = {key: (base[key] + 3 * shared[key] + more[key]).astype(np.float32) for key in base}
    found["other"] = {name: value.astype(np.float32) for name, value in noise(0.5).items()}
    return found


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9,
    "torch_dtype": "float32", "tie_word_embeddings": False,
}  # fmt: skip


def write(folder: Path) -> None:
    for name, tensors in models().items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(CONFIG))


def main(folder: Path) -> None:
    import os

    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    write(folder)
    os.chdir(folder)
    torch.set_num_threads(1)
    found = {}
    for name, text in CASES.items():
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), f"out-{name}", options)
        made: dict[str, np.ndarray] = {}
        for file in sorted(Path(f"out-{name}").glob("*.safetensors")):
            made |= load_file(file)
        found[name] = np.concatenate([made[key].reshape(-1).astype(np.float32) for key in sorted(made)])
    save_file(found, HERE / "values.safetensors")
    versions = {name: version(name) for name in ("mergekit", "torch", "numpy")}
    (HERE / "cases.json").write_text(json.dumps({"versions": versions, "cases": CASES}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
