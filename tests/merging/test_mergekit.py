"""The methods that mergekit has too: the same values to within one rounding where it is right, and why not elsewhere.

`mergekit_fixtures/` holds what mergekit itself made of small models; `record.py` beside it makes them again.
"""

import json
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from modelgit.environment import Environment
from modelgit.errors import UsageError
from modelgit.merging.direct.mergekit_methods import METHODS, setting_at
from modelgit.repo.merges.config import merge_by_config
from modelgit.repo.merges.merge_file import MergedFiles

FIXTURES = Path(__file__).parent / "mergekit_fixtures"
SPEC = util.spec_from_file_location("record", FIXTURES / "record.py")
assert SPEC is not None and SPEC.loader is not None
RECORD = util.module_from_spec(SPEC)
SPEC.loader.exec_module(RECORD)
CASES = json.loads((FIXTURES / "cases.json").read_text())["cases"]
THEIRS = load_file(FIXTURES / "values.safetensors")

# Where mergekit's result is not what its method is meant to compute.
WRONG = {
    "sce-small": "below a sum of 1e-6 of mean squares, its weights are silently equal",
    "model_stock-small": "it takes |a||b| for at least 1e-6, which makes cosines of small changes too small",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mergekit")
    RECORD.write(made)
    return made


def run(folder: Path, text: str, out: Path, **options: object) -> MergedFiles:
    (out.parent / f"{out.name}.yml").write_text(text)
    environment = replace(Environment.capture({"HOME": str(folder)}), cwd=folder)
    return merge_by_config(environment, out.parent / f"{out.name}.yml", out, shown="merge.yml", **options)  # type: ignore[arg-type]


def merged(folder: Path, text: str, out: Path) -> dict[str, np.ndarray]:
    run(folder, text, out)
    return load_file(out / "model.safetensors")


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].reshape(-1).astype(np.float64) for name in sorted(tensors)])


def test_every_case_is_recorded() -> None:
    assert CASES == RECORD.CASES
    covered = {text.split("merge_method: ")[1].split()[0] for text in CASES.values()}
    assert covered == set(METHODS)


@pytest.mark.parametrize("case", sorted(set(CASES) - set(WRONG)))
def test_the_same_values_as_mergekit_within_one_rounding(case: str, folder: Path, tmp_path: Path) -> None:
    ours, theirs = flat(merged(folder, CASES[case], tmp_path / "out")), THEIRS[case].astype(np.float64)
    assert ours.shape == theirs.shape
    # It computes in float32, so its own sums are off by a rounding of the largest number that takes part (about 2).
    step = 2.0**-8 if case == "bfloat16" else 2.0**-23
    assert np.abs(ours - theirs).max() <= step * max(1.0, np.abs(theirs).max())
    assert np.mean(ours == theirs) > 0.3


def test_small_changes_keep_their_weights_in_sce(folder: Path, tmp_path: Path) -> None:
    models = RECORD.models()
    base, one, two = ({k: v.astype(np.float64) for k, v in models[n].items()} for n in ("base", "small1", "small2"))
    exact = {}
    for name in base:
        changes = np.stack([one[name] - base[name], two[name] - base[name]])
        sizes = np.mean(np.square(changes).reshape(2, -1), axis=1).reshape(2, *[1] * base[name].ndim)
        agree = (changes >= 0) == (changes.sum(axis=0) >= 0)
        exact[name] = base[name] + (sizes * changes * agree).sum(axis=0) / (sizes * agree).sum(axis=0)
    ours = merged(folder, CASES["sce-small"], tmp_path / "out")
    assert np.abs(flat(ours) - flat(exact)).max() < 2.0**-23
    assert np.abs(THEIRS["sce-small"] - flat(exact)).max() > 1e-5


def test_small_changes_keep_their_cosine_in_model_stock(folder: Path, tmp_path: Path) -> None:
    models = RECORD.models()
    name = "model.norm.weight"
    base, one, two = (models[n][name].astype(np.float64) for n in ("base", "small1", "small2"))
    a, b = one - base, two - base
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    exact = base + 2 * cosine / (1 + cosine) * (a + b) / 2
    ours = merged(folder, CASES["model_stock-small"], tmp_path / "out")
    assert np.abs(ours[name] - exact).max() < 2.0**-24
    at = sum(int(np.prod(shape)) for other, shape in RECORD.shapes().items() if other < name)
    theirs = THEIRS["model_stock-small"][at : at + exact.size]
    assert np.abs(theirs - exact).max() > 1e-5


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_tensors_of_one_element_do_not_stop_della(method: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        save_file({"logit_scale": np.float32([value])}, tmp_path / name / "model.safetensors")
    text = f"merge_method: {method}\nbase_model: base\nparameters: {{weight: 1, density: 0.5}}\n"
    text += "models: [{model: a}, {model: b}]"
    value = float(merged(tmp_path, text, tmp_path / "out")["logit_scale"][0])
    sums = {0.0, 2.0, 6.0, 8.0} if method == "della_linear" else {0.0, 2.0, 6.0, 4.0}
    assert value in sums


def test_what_is_drawn_keeps_the_expected_change(folder: Path, tmp_path: Path) -> None:
    text = "merge_method: dare_linear\nbase_model: base\nmodels: [{model: a}]\n"
    text += "parameters: {weight: 1, density: 0.5, rescale: false}"
    models = RECORD.models()
    ours = merged(folder, text, tmp_path / "out")
    change = flat(ours) - flat(models["base"])
    full = flat(models["a"]) - flat(models["base"])
    kept = change != 0
    np.testing.assert_allclose(change[kept], full[kept], atol=1e-7)
    assert 0.4 < kept.mean() < 0.6
    doubled = flat(merged(folder, text.replace("false", "true"), tmp_path / "again")) - flat(models["base"])
    np.testing.assert_allclose(doubled[kept], 2 * full[kept], atol=2e-7)


def test_gradients_and_filters() -> None:
    assert [setting_at([0, 1, 0.5], "x", depth, "y") for depth in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 0.5]
    by_filter = [{"filter": "mlp", "value": [1, 3]}, {"value": 7}]
    assert setting_at(by_filter, "a.mlp.b", 0.5, "y") == 2
    assert setting_at(by_filter, "a.attn.b", 0.5, "y") == 7
    assert setting_at({"filter": "mlp", "value": 1}, "a.attn", 0, "y") is None
    assert setting_at("1e-4", "x", 0, "y") == "1e-4"


def test_slices_renumber_layers_and_say_so_in_the_configuration(folder: Path, tmp_path: Path) -> None:
    tensors = merged(folder, CASES["passthrough"], tmp_path / "out")
    models = RECORD.models()
    proj = "model.layers.{}.mlp.up_proj.weight"
    for out, (model, layer) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2)]):
        np.testing.assert_array_equal(tensors[proj.format(out)], models[model][proj.format(layer)])
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], models["a"]["model.embed_tokens.weight"])
    np.testing.assert_array_equal(tensors["lm_head.weight"], models["b"]["lm_head.weight"])
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 4


def test_a_chain_of_merges_leaves_its_last_one(folder: Path, tmp_path: Path) -> None:
    chain = (
        "name: second\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: first}, {model: c}]\n---\n"
        "name: first\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n---\n"
        "merge_method: passthrough\nmodels: [{model: second}]\n"
    )
    found = merged(folder, chain, tmp_path / "out")
    models = RECORD.models()
    for name, value in found.items():
        first = ((models["a"][name].astype(np.float64) + models["b"][name]) / 2).astype(np.float32)
        np.testing.assert_array_equal(value, ((first.astype(np.float64) + models["c"][name]) / 2).astype(np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.yml"]
    card = (tmp_path / "out/README.md").read_text()
    assert chain.rstrip() in card


GOOD = "merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a: [", "is not YAML"),
        (GOOD.replace("merge_method", "merge_metod"), "`merge_metod` is not known; did you mean `merge_method`?"),
        (GOOD.replace("ties", "tie"), "the method `tie` is not known; did you mean `ties`?"),
        (GOOD.replace("weight", "wieght"), "`ties` has no parameter `wieght`; did you mean `weight`?"),
        (GOOD.replace("weight", "gamma"), "`ties` has no parameter `gamma`"),
        (GOOD.replace("base_model: base\n", ""), "needs a `base_model`"),
        (GOOD.replace("{weight: 1}", "{density: 1}"), "`ties` needs `weight` for a"),
        (GOOD.replace("model: a", "model: nobody"), "there is nothing at nobody"),
        (GOOD.replace("model: a", "model: a+lora"), "adds an adapter"),
        (GOOD + "dtype: int8\n", "`int8` is not known"),
        (GOOD + "modules: {text: {}}\n", "has `modules`, which is not read"),
        (GOOD + "slices: [{}]\n", "needs `models` or `slices`, and not both"),
        (GOOD + "tokenizer_source: union\n", "needs a tokenizer, and base has none"),
        (GOOD + "tokenizer: {tokens: {x: {source: a}}}\n", "`tokenizer.tokens` cannot be done here"),
        (GOOD + "chat_template: chatml\n", "the name of a template that comes with mergekit"),
        (GOOD + "parameters: {rescale: true}\n", "`rescale` is for methods that draw"),
        (GOOD + "---\n" + GOOD, "2 documents without a `name`"),
        (CASES["passthrough"].replace("[1, 3]", "[1, 9]"), "b has 3 layers, and [1, 9] are asked for"),
        ("merge_method: slerp\nparameters: {t: 1}\nbase_model: base\n" + RECORD.PLAIN, "`slerp` is not for"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(text: str, words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        run(folder, text, tmp_path / "out")
    assert words in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.yml"]


def test_tokenizers_that_agree_and_chat_templates(folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    for name in ("base", "a"):
        copytree(folder / name, tmp_path / name)
        vocabulary = {"model": {"vocab": {"x": 0, "y": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(vocabulary))
        template = "{{ base }}" if name == "base" else "{{ a }}"
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "x": name}))
    text = GOOD + "tokenizer_source: a\nchat_template: '{{ mine }}'\n"
    run(tmp_path, text, tmp_path / "out")
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text()) == {"chat_template": "{{ mine }}", "x": "a"}
    (tmp_path / "a/tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0, "z": 1}}}))
    with pytest.raises(UsageError, match="the tokenizers of base and a differ"):
        run(tmp_path, GOOD + "tokenizer_source: union\n", tmp_path / "other")
