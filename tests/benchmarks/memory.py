"""Anonymous memory of a commit and a restore under a hard limit, for files larger than most machines' memory.

Each command runs in a process that has imported everything first, then forbids itself more private memory than it has
by then plus the bar (RLIMIT_DATA: heap, private mappings, stacks of threads), and samples its anonymous resident
memory meanwhile.  A process that needs more dies of it and fails the benchmark.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from process import Shell, store_bytes
from safetensors.numpy import save_file
from table import Row

__all__ = ["memory_rows"]

LIMIT_MIB = 400
_FILE = "model.safetensors"
_BLOCK_WORDS = 32 << 20
_EXPERTS = 60_000
_METADATA_BAR = 1e6


def memory_rows(work: Path, *, quick: bool) -> Iterator[Row]:
    """A checkpoint of 10 GiB, one tensor of 5 GiB (a gigabyte and half of one with `quick`), and 60,000 tensors."""
    unit = 1 << (27 if quick else 30)
    yield from _checkpoint(work / "checkpoint", "a checkpoint", [unit // 4] * 40)
    yield from _checkpoint(work / "tensor", "one tensor", [5 * unit])
    yield from _experts(work / "experts")


def _checkpoint(work: Path, what: str, sizes: list[int]) -> Iterator[Row]:
    what = f"{what} of {sum(sizes) / 2**30:.3g} GiB"
    shell = Shell.fresh(work / "repo")
    file = shell.folder / _FILE
    write_checkpoint(file, sizes)
    shell.run(f"mgit init && mgit track {_FILE}")
    yield _limited(shell, "commit", f"{what}: first commit")
    change_in_place(file)
    yield _limited(shell, "commit", f"{what}: commit of a dense change")
    file.unlink()
    yield _limited(shell, "restore", f"{what}: restore")
    shutil.rmtree(work)


def _limited(shell: Shell, action: str, what: str) -> Row:
    done = subprocess.run(
        [sys.executable, __file__, action], cwd=shell.folder, env=shell.environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{what}: exit {done.returncode}\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    note = f"limit held; {found['wall_s']:.0f} s wall, {found['cpu_s']:.0f} CPU"
    return Row("Peak anonymous memory above imports", what, found["peak_mib"], "MiB", LIMIT_MIB, "at most", note)


def write_checkpoint(path: Path, sizes: list[int]) -> None:
    """A bf16 file of one tensor per size in bytes: normal values, all tensors different, never whole in memory."""
    block = np.random.default_rng(0).standard_normal(_BLOCK_WORDS, np.float32).astype(ml_dtypes.bfloat16).view("<u2")
    table: dict[str, object] = {}
    offset = 0
    for number, size in enumerate(sizes):
        table[f"layer.{number}.weight"] = {
            "dtype": "BF16", "shape": [size // 8192, 4096], "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as sink:
        sink.write(len(header).to_bytes(8, "little") + header)
        salt = 0
        for size in sizes:
            for start in range(0, size // 2, _BLOCK_WORDS):
                salt += 1
                words = block[: min(_BLOCK_WORDS, size // 2 - start)]
                # Only mantissa bits differ from part to part: the exponents stay those of normal values.
                sink.write((np.roll(words, 4099 * salt) ^ np.uint16(salt % 128)).data)


def change_in_place(path: Path) -> None:
    """Flip the lowest bit of every second word: a dense change, cheap to make."""
    with path.open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        words = np.memmap(path, "<u2", "r+", start)
        for at in range(0, words.size, _BLOCK_WORDS):
            words[at : at + _BLOCK_WORDS : 2] ^= np.uint16(1)
        words.flush()


def _experts(work: Path) -> Iterator[Row]:
    """A mixture of experts: 60,000 small tensors, of which one changes."""
    group = f"{_EXPERTS:,} tensors"
    shell = Shell.fresh(work / "repo")
    values = np.random.default_rng(0).standard_normal((_EXPERTS, 32, 16), np.float32).astype(ml_dtypes.bfloat16)

    def save() -> None:
        named = {f"model.layers.{n // 1000}.mlp.experts.{n % 1000}.up_proj.weight": v for n, v in enumerate(values)}
        save_file(named, shell.folder / _FILE, metadata={"format": "pt"})

    save()
    shell.run(f"mgit init && mgit track {_FILE}")
    first = shell.run("mgit commit -m first")
    grown = store_bytes(shell.folder / ".mgit")
    values[777] = values[778]
    values[777][0, 0] = 1.0
    save()
    second = shell.run("mgit commit -m second")
    added = store_bytes(shell.folder / ".mgit") - grown
    status = shell.run("mgit status")
    note = f"{second.wall_s:.1f} s wall, {second.cpu_s:.1f} CPU; status {status.wall_s:.2f} s"
    yield Row(group, "store grown by a commit that changes one", added, "B", _METADATA_BAR, "at most", note)
    yield Row(group, "first commit", first.wall_s, "s wall", note=f"{first.cpu_s:.1f} CPU; store {grown / 1e6:.1f} MB")
    shutil.rmtree(work)


# -- the process under the limit


def _memory(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0])


def _child(action: str) -> None:
    from modelgit.codecs.base import CODECS
    from modelgit.environment import Environment
    from modelgit.evals import builtin
    from modelgit.repo.gates import gate
    from modelgit.repo.repository import Repository
    from modelgit.repo.tracking import commit, record, switch

    del builtin, commit, gate, record
    for name in CODECS.names():
        CODECS.get(name)
    with Repository.open(".", environment=Environment.capture()) as repo:
        before = _memory("RssAnon")
        allowed = (_memory("VmData") << 10) + (LIMIT_MIB << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
        peak = before
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, _memory("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        started, cpu = time.monotonic(), time.process_time()
        try:
            if action == "commit":
                repo.commit("state")
            else:
                switch.restore(repo, (_FILE,))
        finally:
            done.set()
            watcher.join()
        spent = {"wall_s": time.monotonic() - started, "cpu_s": time.process_time() - cpu}
    print(json.dumps({"peak_mib": (peak - before) / 1024, **spent}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("commit", "restore"))
    _child(parser.parse_args().action)
