"""`mgit diff --fisher` as a user meets it: a small network of their own, named in mgit.toml."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)])
        self.classifier = nn.Linear(8, classes)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.classifier(x)


def build(state, files):
    return Net(state["classifier.weight"].shape[0])


def encode(texts, files):
    return {"x": torch.tensor([[float(part) for part in text.split()] for text in texts])}
"""

SETTINGS = """
[track]
paths = ["net.safetensors"]

[task.sort]
model = "net.safetensors"
entry = "net:build"
test = "test.jsonl"
labels = ["low", "middle", "high"]
"""


def weights(seed: int, *, classes: int = 3) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {"layers.0": (8, 4), "layers.1": (8, 8), "classifier": (classes, 8)}
    found = {}
    for name, shape in shapes.items():
        found[f"{name}.weight"] = (draw.standard_normal(shape) / 2).astype("<f4")
        found[f"{name}.bias"] = np.zeros(shape[0], "<f4")
    return found


@pytest.fixture
def net(mgit: Any, files: Any) -> Any:
    """A repository with one commit, whose task is trusted."""
    root = mgit.directory
    mgit("init")
    draw = np.random.default_rng(9)
    rows = [
        {"id": f"q{at}", "text": " ".join(f"{value:.2f}" for value in draw.standard_normal(4)), "label": at % 3}
        for at in range(60)
    ]
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "net.py").write_text(CODE)
    (root / "mgit.toml").write_text(SETTINGS)
    (root / "net.safetensors").write_bytes(files.of_arrays(weights(0)))
    mgit("trust")
    mgit("commit", "-m", "first")
    return mgit


def change(net: Any, files: Any, size: float, *, only: str = "", seed: int = 1) -> None:
    """Noise of standard deviation `size` on the tensors whose names start with `only`."""
    draw = np.random.default_rng(seed)
    found = weights(0)
    for name, value in found.items():
        noise = draw.standard_normal(value.shape).astype("<f4")
        if name.startswith(only):
            found[name] = value + size * noise
    (net.directory / "net.safetensors").write_bytes(files.of_arrays(found))


def behaviour(net: Any, *arguments: str) -> dict[str, Any]:
    document = json.loads(net("diff", "--fisher", "--json", *arguments).out)
    assert document["schema"] == "mgit.diff/1"
    found: dict[str, Any] = document["behaviour"]
    return found


def test_a_small_change(net: Any, files: Any) -> None:
    change(net, files, 0.01, only="layers")
    found = behaviour(net)
    assert found["task"] == "sort" and found["examples"] == 60 and found["method"] == "jvp"
    assert 0 < found["measured_kl"] < 0.05 and found["reliable"]
    assert found["directional_kl"] == pytest.approx(found["measured_kl"], rel=0.2)
    parts = {item["name"]: item["divergence"] for item in found["tensors"]}
    assert set(parts) == {f"layers.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    assert sum(parts.values()) == pytest.approx(found["directional_kl"], rel=1e-4)
    masses = [item["fisher_share"] for item in found["tensors"]]
    assert sum(masses) == pytest.approx(found["fisher_share"], rel=1e-6)
    assert 0 < found["fisher_share"] < 1
    assert found["labelled"] == 60
    assert behaviour(net, "--examples", "7")["examples"] == 7
    text = net("diff", "--fisher").out
    for line in ("task sort, 60 examples of test.jsonl:", "KL(old‖new)", "layers.0", "of the diagonal Fisher mass"):
        assert line in text
    # Committed, the same two sides give the same numbers.
    net("commit", "-m", "second")
    assert behaviour(net, "HEAD~1", "HEAD")["measured_kl"] == found["measured_kl"]


def test_a_large_change_says_that_the_measurement_counts(net: Any, files: Any) -> None:
    change(net, files, 1.5)
    found = behaviour(net)
    assert found["measured_kl"] > 0.05 and not found["reliable"]
    assert any("what was measured counts" in note for note in found["notes"])
    assert found["flipped"] == 60 - round(found["agreement"] * 60) > 0
    flip = found["flips"][0]
    assert {flip["old"], flip["new"]} <= {"low", "middle", "high"} and flip["old"] != flip["new"]
    text = net("diff", "--fisher").out
    assert f"{found['flipped']} of 60 examples have another prediction" in text
    assert f"{flip['old']} → {flip['new']} (margin" in text
    assert "note: the change is large" in text


def test_the_page_holds_everything(net: Any, files: Any) -> None:
    change(net, files, 1.0)
    net("diff", "--fisher", "--html", "out.html")
    page = (net.directory / "out.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    for part in ("Predictions that changed", "Where the divergence comes from", "layers.1", "Fisher mass", "note: "):
        assert part in page


def test_the_diagonal_is_shown_for_noise_alone(net: Any, files: Any) -> None:
    change(net, files, 0.003)
    shown = behaviour(net)
    # A coherent change of the same size: every bias of the classifier's first class, and what feeds it.
    found = weights(0)
    found["classifier.weight"] = found["classifier.weight"] * np.float32(1.02)
    (net.directory / "net.safetensors").write_bytes(files.of_arrays(found))
    hidden = behaviour(net)
    assert shown["diagonal_kl"] is None or 0.5 <= shown["diagonal_kl"] / shown["directional_kl"] <= 2
    assert hidden["reliable"]
    assert hidden["diagonal_kl"] is not None or any(
        "the diagonal form is not shown: it is" in n for n in hidden["notes"]
    )


def test_training_data_stand_in_with_a_note(net: Any, files: Any) -> None:
    settings = net.directory / "mgit.toml"
    settings.write_text(settings.read_text().replace("test = ", "train = "))
    change(net, files, 0.01)
    assert any("measured on training data" in note for note in behaviour(net)["notes"])


def test_a_head_of_another_size(net: Any, files: Any) -> None:
    settings = net.directory / "mgit.toml"
    settings.write_text(settings.read_text().replace('labels = ["low", "middle", "high"]\n', ""))
    net("commit", "-m", "no names")
    found = weights(0, classes=4)
    found["layers.0.bias"] = found["layers.0.bias"] + np.float32(0.05)
    (net.directory / "net.safetensors").write_bytes(files.of_arrays(found))
    result = behaviour(net)
    assert result["measured_kl"] is None and not result["reliable"]
    assert any("3 categorical outputs and 4 categorical outputs" in note for note in result["notes"])
    assert any("leaves out `classifier.bias` and 1 more" in note for note in result["notes"])
    parts = {item["name"]: item["divergence"] for item in result["tensors"]}
    assert parts["layers.0.bias"] == pytest.approx(result["directional_kl"], rel=1e-4)


def test_what_is_missing_is_said_in_one_sentence(net: Any, files: Any) -> None:
    change(net, files, float("nan"))
    assert "are not finite" in net("diff", "--fisher", code=None).err
    change(net, files, 0.01)
    assert "no task `other`" in net("diff", "--fisher", "--task", "other", code=2).err
    (net.directory / "net.py").write_text(CODE + "\n")
    assert "no longer trusted" in net("diff", "--fisher", code=2).err
    settings = net.directory / "mgit.toml"
    settings.write_text(settings.read_text().replace('test = "test.jsonl"\n', ""))
    assert "has no data" in net("diff", "--fisher", code=2).err
    settings.write_text('[track]\npaths = ["net.safetensors"]\n')
    ran = net("diff", "--fisher", code=2)
    assert "mgit.toml" in ran.err and "[task.NAME]" in ran.err


def test_a_plain_diff_needs_no_torch(net: Any, files: Any) -> None:
    change(net, files, 0.01)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from modelgit.cli.main import main\n"
        f"sys.exit(main(['-C', {str(net.directory)!r}, 'diff'], values={net.values!r}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "tensors" in ran.stdout, ran.stderr


def test_python_shows_a_diff(net: Any, files: Any, tmp_path: Any) -> None:
    import modelgit as mg

    change(net, files, 0.5)
    with mg.open(net.directory) as repo:
        found = repo.diff(fisher=True, examples=30)
    assert found.behaviour is not None and found.behaviour.examples == 30
    assert "<!doctype html>" in found.to_html()
    assert found._repr_html_() in found.to_html()
    assert str(found).splitlines()[-1].startswith("note: ")
