"""Wall and CPU time of whole commands on the same files: mgit, git-lfs made durable, and `cp` with `sync`.

git-lfs renames its objects into place without flushing them.  To compare like with like, the object (after a commit)
or the work file (after a checkout) is flushed by `sync FILE`, which is one fsync and nothing else's; mgit flushes by
itself.  Commands take turns, so that a slow minute hits all of them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from blake3 import blake3
from process import Measured, Shell, medians
from safetensors.numpy import save_file
from table import Row
from variants import Arrays, Variants

from modelgit.environment import Environment
from modelgit.objects.tensors import LEAF_BYTES
from modelgit.repo.repository import Repository

__all__ = ["big_model", "speed_rows", "start_rows", "unchanged_rows"]

_FILE = "model.safetensors"
_STACK = 4
_BLOCKS = {"bf16": 6, "fp32": 3}
_COMMIT_OVER = {"base": 5.0, "fast": 5.0, "tight": 2.5}
_CHECKOUT_OVER = {"base": 5.0, "fast": 5.0, "tight": 2.0}


def has_git_lfs() -> bool:
    """Whether git-lfs can be started."""
    return shutil.which("git-lfs") is not None


def big_model(variants: Variants, name: str, dtype: str) -> Path:
    """A model of over 530 MB with the statistics of the real one.

    The embeddings once, and the encoder several times: in every block each tensor is four copies, one below another,
    of the real one with its rows shuffled (alike for every `name`, so that a fine-tune stays one).  No two tensors
    are equal, and matrices are of the size that language models have.
    """
    path = variants.path(name, dtype).with_name(f"big-{name}-{dtype}.safetensors")
    if path.exists():
        return path
    made: Arrays = {}
    for key, array in variants.arrays(name, dtype).items():
        if "encoder" not in key:
            made[key] = array
            continue
        for block in range(_BLOCKS[dtype]):
            orders = [np.random.default_rng((block, copy)).permutation(array.shape[0]) for copy in range(_STACK)]
            made[f"block.{block}.{key}"] = np.concatenate([array[order] for order in orders])
    save_file(made, path, metadata={"format": "pt"})
    return path


class _Mgit:
    """A repository that has committed nothing yet."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.shell = Shell.fresh(folder, settings)
        self.file = self.shell.folder / _FILE
        self.shell.run("mgit init")

    def commit(self, source: Path) -> Measured:
        is_first = not self.file.exists()
        shutil.copyfile(source, self.file)
        if is_first:
            self.shell.run(f"mgit track {_FILE}")
        return self.shell.run("mgit commit -m state")

    def checkout(self) -> Measured:
        self.file.unlink()
        return self.shell.run(f"mgit restore {_FILE}")


class _GitLfs:
    """The same with git-lfs, durable if asked for."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.shell = Shell.fresh(folder)
        self.file = self.shell.folder / _FILE
        self._durable = durable
        self.shell.run("git init -q -b main && git lfs install --local && git lfs track '*.safetensors'")
        self.shell.run("git add .gitattributes && git commit -qm start")

    def commit(self, source: Path) -> Measured:
        shutil.copyfile(source, self.file)
        flush = " && sync $(find .git/lfs/objects -type f -newer .git/mark)" if self._durable else ""
        (self.shell.folder / ".git/mark").touch()
        return self.shell.run(f"git add {_FILE} && git commit -qm state{flush}")

    def checkout(self) -> Measured:
        self.file.unlink()
        return self.shell.run(f"git checkout -q {_FILE}" + (f" && sync {_FILE}" if self._durable else ""))


def _copy(source: Path, folder: Path) -> Measured:
    return Shell.fresh(folder).run(f"cp {source} {_FILE} && sync {_FILE}")


def _in_turn(runs: int, measures: dict[str, Callable[[], dict[str, Measured]]]) -> dict[str, Measured]:
    found: dict[str, list[Measured]] = {}
    for _ in range(runs):
        for tool, measure in measures.items():
            for step, cost in measure().items():
                found.setdefault(f"{tool} {step}", []).append(cost)
    return {what: medians(costs) for what, costs in found.items()}


def start_rows(variants: Variants, work: Path, *, runs: int) -> Iterator[Row]:
    """The 91 MB model with the default settings, start-up included."""
    base, tuned = variants.path("base", "fp32"), variants.path("dense_200", "fp32")

    def play(tool: _Mgit | _GitLfs) -> dict[str, Measured]:
        return {
            "commit, base": tool.commit(base),
            "checkout, base": tool.checkout(),
            "commit, fine-tune": tool.commit(tuned),
            "checkout, fine-tune": tool.checkout(),
        }

    measures = {"mgit": lambda: play(_Mgit(work / "mgit", {}))}
    if has_git_lfs():
        measures["git-lfs"] = lambda: play(_GitLfs(work / "lfs", durable=True))
        measures["hasty"] = lambda: play(_GitLfs(work / "lfs", durable=False))
    costs = _in_turn(runs, measures)
    group = "91 MB float32, start-up included, durable (wall time over git-lfs)"
    bars = {"commit, base": 0.6, "checkout, base": 1.0}
    for step in ("commit, base", "checkout, base", "commit, fine-tune", "checkout, fine-tune"):
        own = costs[f"mgit {step}"]
        note = f"mgit {own.wall_s:.2f} s wall, {own.cpu_s:.2f} CPU"
        if (other := costs.get(f"git-lfs {step}")) is None:
            yield Row(group, step, own.wall_s, "s", note=note)
            continue
        hasty = costs[f"hasty {step}"]
        note += f"; git-lfs {other.wall_s:.2f} s wall, {other.cpu_s:.2f} CPU, {hasty.wall_s:.2f} s wall if not flushed"
        yield Row(group, step, own.wall_s / other.wall_s, "", bars.get(step), "at most", note)


def speed_rows(variants: Variants, work: Path, *, runs: int) -> Iterator[Row]:
    """Base and fine-tune of half a gigabyte and more, per dtype."""
    for dtype in ("bf16", "fp32"):
        base, tuned = big_model(variants, "base", dtype), big_model(variants, "dense_200", dtype)

        def play(tool: _Mgit | _GitLfs, base: Path = base, tuned: Path = tuned) -> dict[str, Measured]:
            found = {"base commit": tool.commit(base), "base checkout": tool.checkout()}
            found |= {"fine-tune commit": tool.commit(tuned), "fine-tune checkout": tool.checkout()}
            shutil.rmtree(tool.shell.folder)
            return found

        measures: dict[str, Callable[[], dict[str, Measured]]] = {
            effort: lambda effort=effort: play(_Mgit(work / "mgit", {"MGIT_STORAGE__EFFORT": effort}))
            for effort in ("fast", "balanced", "tight")
        }
        if has_git_lfs():
            measures["git-lfs"] = lambda: play(_GitLfs(work / "lfs", durable=True))
        measures["cp"] = lambda base=base: {"copy": _copy(base, work / "cp")}
        costs = _in_turn(runs, measures)
        yield from _compared(dtype, base.stat().st_size, costs)
        base.unlink()
        tuned.unlink()


def _compared(dtype: str, size: int, costs: dict[str, Measured]) -> Iterator[Row]:
    group = f"{dtype}, {size / 1e6:.0f} MB, durable (wall time; CPU in brackets)"
    copy = costs["cp copy"]
    for step, bars in (("commit", _COMMIT_OVER), ("checkout", _CHECKOUT_OVER)):
        for state, effort, bar in (
            ("base", "fast", bars["base"]),
            ("base", "balanced", None),
            ("base", "tight", None),
            ("fine-tune", "fast", bars["fast"]),
            ("fine-tune", "balanced", None),
            ("fine-tune", "tight", bars["tight"]),
        ):
            own = costs[f"{effort} {state} {step}"]
            note = f"{own.wall_s:.2f} s ({own.cpu_s:.2f}), {size / own.cpu_s / 1e6:.0f} MB per CPU s"
            if (other := costs.get(f"git-lfs {state} {step}")) is not None:
                note += f"; git-lfs {other.wall_s:.2f} ({other.cpu_s:.2f}), CPU {other.cpu_s / own.cpu_s:.2f}x"
                yield Row(
                    group, f"{state} {step}, {effort}, over git-lfs", other.wall_s / own.wall_s, "x", bar, note=note
                )
            else:
                yield Row(group, f"{state} {step}, {effort}", own.wall_s, "s", note=note)
        own = costs[f"fast base {step}"]
        bar = 0.6 if step == "commit" else 0.9
        note = f"cp and sync {copy.wall_s:.2f} s ({copy.cpu_s:.2f})"
        yield Row(group, f"base {step}, fast, over cp + fsync", copy.wall_s / own.wall_s, "x", bar, note=note)


def unchanged_rows(variants: Variants, work: Path) -> Iterator[Row]:
    """Tensors that are as they were: hashed when `stat` cannot vouch for the file, else not even read."""
    group = "Unchanged tensors"
    source = big_model(variants, "base", "bf16")
    tool = _Mgit(work / "mgit", {"MGIT_STORAGE__EFFORT": "fast"})
    tool.commit(source)
    environment = Environment.capture(tool.shell.environment, cwd=tool.shell.folder)
    size = source.stat().st_size
    with Repository.open(tool.shell.folder, environment=environment) as repo:
        repo.status()
        best = alone = 0.0
        for _ in range(5):
            os.utime(tool.file)
            time.sleep(0.1)  # a file that was written this very moment is never vouched for
            best = max(best, size / _cpu_seconds(repo.status) / 1e9)
            alone = max(alone, _blake3_speed())
        note = f"best of 5, reading included; blake3 alone, in memory: {alone:.2f}"
        yield Row(group, "touched, so hashed (`status`)", best, "GB/s per core", 5.0, note=note)
        before = _bytes_read()
        if not repo.status().is_clean:
            raise RuntimeError("the file was not changed, and `status` says that it was")
        read = _bytes_read() - before
    yield Row(group, "vouched for by `stat`: bytes read by `status`", read, "B", 1e5, "at most", f"of {size:,}")
    source.unlink()


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return max(time.process_time() - started, 1e-3)


def _blake3_speed() -> float:
    data = memoryview(np.random.default_rng(0).bytes(64 << 20))
    spent = _cpu_seconds(
        lambda: [blake3(data[at : at + LEAF_BYTES]).digest() for at in range(0, len(data), LEAF_BYTES)]
    )
    return len(data) / spent / 1e9


def _bytes_read() -> int:
    """Bytes that system calls gave this process; without /proc, nothing is known and 0 returned."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split("rchar:")[1].split()[0])
