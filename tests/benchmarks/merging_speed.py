"""`mgit merge-file` beside mergekit on the same files: CPU, peak memory, equal values; large files in little memory.

mergekit (0.1.5) runs in its own environment, named by `--mergekit PYTHON`; without one, only this side is measured.
Run by `merging.py`; what is done in a process of its own is started as this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from memory import write_checkpoint
from process import Measured, Shell
from safetensors.numpy import load_file, save_file
from table import Row

__all__ = ["memory_rows", "speed_rows"]

_LIMIT_MIB = 300
_WIDTH, _LAYERS, _VOCABULARY = 768, 10, 25000
_METHODS = {
    "linear": ("average", "merge_method: linear\nparameters: {weight: 1.0}\n"),
    "ties": ("ties density=0.2 trim=tensor", "merge_method: ties\nparameters: {weight: 1.0, density: 0.2}\n"),
}


def speed_rows(work: Path, *, mergekit: str | None, quick: bool = False) -> Iterator[Row]:
    """Two and four checkpoints of 360 MB (a tenth of that with `quick`)."""
    shell = Shell.fresh(work / "speed", {"OMP_NUM_THREADS": "1"})
    names = ["base", "a", "b", "c", "d"]
    for number, name in enumerate(names):
        # In a process of its own: what this one ever held would count as the peak of every command it starts.
        place, layers = shell.folder / f"{name}.safetensors", 1 if quick else _LAYERS
        subprocess.run([sys.executable, __file__, "--write", str(place), str(number), str(layers)], check=True)
    imports = _floor(shell, mergekit)
    for sides in (2, 4):
        for method in _METHODS:
            yield from _compared(shell, method, names[1 : sides + 1], mergekit, imports)
    shutil.rmtree(work / "speed")


def _write(path: Path, seed: int, *, layers: int) -> None:
    """The tensors of a BERT base in float32: a common start, and a fine-tune's changes to it."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    shapes = {"embeddings.word.weight": (_VOCABULARY * layers // _LAYERS, _WIDTH)}
    for layer in range(layers):
        for name, shape in (("attention.query", (_WIDTH, _WIDTH)), ("attention.key", (_WIDTH, _WIDTH)),
                            ("attention.value", (_WIDTH, _WIDTH)), ("attention.output", (_WIDTH, _WIDTH)),
                            ("intermediate", (4 * _WIDTH, _WIDTH)), ("output", (_WIDTH, 4 * _WIDTH))):  # fmt: skip
            shapes[f"layer.{layer}.{name}.weight"] = shape
            shapes[f"layer.{layer}.{name}.bias"] = shape[:1]
    tensors = {}
    for name, shape in shapes.items():
        value = 0.05 * common.standard_normal(shape, np.float32)
        tensors[name] = value + 1e-3 * own.standard_normal(shape, np.float32) if seed else value
    save_file(tensors, path, metadata={"format": "pt"})


def _floor(shell: Shell, mergekit: str | None) -> dict[str, Measured]:
    """What starting costs, with all imports, on either side; the first run writes bytecode, as an installation does."""
    own = f"{sys.executable} -c 'import modelgit.cli.main, modelgit.repo.merges.merge_file, modelgit.merging.average'"
    commands = {"mgit": own}
    if mergekit is not None:
        commands["mergekit"] = f"{mergekit} -c 'import mergekit.scripts.merge_raw_pytorch'"
    for command in commands.values():
        shell.run(command)
    return {name: shell.run(command) for name, command in commands.items()}


def _compared(
    shell: Shell, method: str, sides: list[str], mergekit: str | None, imports: dict[str, Measured]
) -> Iterator[Row]:
    strategy, config = _METHODS[method]
    files = " ".join(f"{name}.safetensors" for name in sides)
    base = "--base base.safetensors " if method == "ties" else ""
    ours = shell.run(f"mgit merge-file {files} {base}-o ours.safetensors --force --strategy '{strategy}'")
    group = f"{method}, {len(sides)} checkpoints of {(shell.folder / 'a.safetensors').stat().st_size / 1e6:.0f} MB"
    own = imports["mgit"].cpu_s
    yield Row(group, "mgit: CPU", ours.cpu_s, "s", note=f"start-up {own:.1f} s of it")
    yield Row(group, "mgit: peak resident memory", ours.peak_mib, "MiB")
    if mergekit is None:
        return
    text = config + ("base_model: base.safetensors\n" if method == "ties" else "") + "models:\n"
    (shell.folder / "merge.yml").write_text(text + "".join(f"- model: {name}.safetensors\n" for name in sides))
    command = f"{mergekit} -c 'from mergekit.scripts.merge_raw_pytorch import main; main()' merge.yml theirs"
    theirs = shell.run(f"rm -rf theirs && {command}")
    # Before any ratio: a run that made nothing must not be compared with.
    asked = [sys.executable, __file__, "--differences", str(shell.folder), method, *sides]
    differing, largest, total, why = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    start = imports["mergekit"].cpu_s
    yield Row(group, "mergekit: CPU", theirs.cpu_s, "s", note=f"start-up {start:.1f} s of it")
    yield Row(group, "mergekit: peak resident memory", theirs.peak_mib, "MiB")
    yield Row(group, "CPU, mergekit / mgit", theirs.cpu_s / ours.cpu_s, "times", 2.0)
    yield Row(group, "CPU without start-up, mergekit / mgit", (theirs.cpu_s - start) / (ours.cpu_s - own), "times", 2.0)
    yield Row(group, "peak memory, mergekit / mgit", theirs.peak_mib / ours.peak_mib, "times", 4.0)
    bar = 0.0 if method == "linear" else None
    why = f"by {largest:.2g} at most; {why}"
    yield Row(group, "values that differ", differing, f"of {total:,}", bar, "at most", why)


def _differences(folder: Path, method: str, *sides: str) -> tuple[int, float, int, str]:
    """How many values differ, by how much, of how many, and who is right about them (or that they are ties)."""
    ours, theirs = load_file(folder / "ours.safetensors"), {}
    for file in sorted((folder / "theirs").glob("*.safetensors")):
        theirs |= load_file(file)
    if set(theirs) != set(ours):
        raise RuntimeError(f"mergekit made {len(theirs)} tensors, and {len(ours)} are asked for: nothing to compare")
    inputs = [load_file(folder / f"{name}.safetensors") for name in sides]
    base = load_file(folder / "base.safetensors")
    differing, largest, right, wrong, tied = 0, 0.0, 0, 0, 0
    for name, mine in ours.items():
        other = theirs[name]
        where = mine != other
        differing += int(np.count_nonzero(where))
        largest = max(largest, float(np.abs(mine - other).max()))
        if method == "linear":
            exact = (sum(model[name].astype(np.float64) for model in inputs) / len(inputs)).astype(np.float32)
            right += int(np.count_nonzero(where & (mine == exact)))
            wrong += int(np.count_nonzero(where & (other == exact)))
            continue
        at_cut = np.zeros(mine.shape, bool)
        for model in inputs:
            change = np.abs(model[name] - base[name])  # as mergekit computes it
            count = max(1, int(0.2 * change.size))
            at_cut |= change == np.partition(change.reshape(-1), change.size - count)[change.size - count]
        tied += int(np.count_nonzero(where & at_cut & (np.abs(mine - other) > 1e-6)))
        right += int(np.count_nonzero(where & (np.abs(mine - other) <= 1e-6)))
    if method == "linear":
        why = f"correctly rounded there: mgit {right}, mergekit {wrong}"
    else:
        why = f"{tied} equal changes at the threshold, {right} by less than 1e-6, {differing - tied - right} others"
    return differing, largest, sum(value.size for value in ours.values()), why


# -- large files under a limit


def memory_rows(work: Path, *, quick: bool) -> Iterator[Row]:
    """Two checkpoints of 1 GiB, in a process that may not take more than the bar."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    size = (1 << 27) if quick else (1 << 30)
    for name in ("a", "b"):
        write_checkpoint(work / f"{name}.safetensors", [size // 8] * 8)
    raw = np.memmap(work / "b.safetensors", "<u2", "r+", 4096)
    for start in range(0, raw.size, 1 << 24):  # every tensor differs, so that none is merely copied
        raw[start : start + (1 << 24) : 3] ^= np.uint16(3)
    raw.flush()
    for strategy in ("average", "ties"):
        done = subprocess.run(
            [sys.executable, __file__, "--child", strategy], cwd=work, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{strategy}: exit {done.returncode}\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout)
        note = f"limit held; {found['cpu_s']:.1f} s CPU; {found['copied']} of {found['tensors']} tensors copied"
        what = f"{strategy}, two of {size / 2**30:.3g} GiB: above imports"
        yield Row("Memory of a merge of large files", what, found["peak_mib"], "MiB", _LIMIT_MIB, "at most", note)
    shutil.rmtree(work)


def _child(strategy: str) -> None:
    import resource
    import threading
    import time

    from memory import _memory

    from modelgit.environment import Environment
    from modelgit.merging.base import STRATEGIES
    from modelgit.repo.merges.merge_file import merge_files

    STRATEGIES.get(strategy)
    before, peak, stop = _memory("RssAnon"), 0, threading.Event()
    allowed = (_memory("VmData") << 10) + (_LIMIT_MIB << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, _memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        sides, base = ["a.safetensors", "b.safetensors"], "a.safetensors" if strategy == "ties" else None
        done = merge_files(
            Environment.capture(), sides, Path("out.safetensors"), base=base, strategy=strategy, overwrite=True
        )
    finally:
        stop.set()
        watcher.join()
    figures = {"peak_mib": (peak - before) / 1024, "cpu_s": time.process_time()}
    sys.stdout.write(json.dumps({**figures, "copied": done.copied, "tensors": done.tensors}))


def main() -> None:
    """One step of the above, in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child")
    parser.add_argument("--write", nargs=3)
    parser.add_argument("--differences", nargs="+")
    options = parser.parse_args()
    if options.child:
        _child(options.child)
    elif options.write:
        place, seed, layers = options.write
        _write(Path(place), int(seed), layers=int(layers))
    else:
        sys.stdout.write(json.dumps(_differences(Path(options.differences[0]), *options.differences[1:])))


if __name__ == "__main__":
    main()
