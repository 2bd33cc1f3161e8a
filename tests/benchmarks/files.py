"""Whole files through `mgit commit` at each effort: what the store grows by, what it costs, and what comes back."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import peers
from process import Measured, Shell, store_bytes
from table import Row
from variants import Variants, words_of

__all__ = ["CASES", "file_rows"]

EFFORTS = ("fast", "balanced", "tight")


class Case(NamedTuple):
    """`after` committed on `before` (None: a first commit) in `dtype`, with bars on the ratio by effort."""

    what: str
    dtype: str
    before: str | None
    after: str
    bars: dict[str, float] = {}


CASES = (
    Case("base", "bf16", None, "base"),
    Case("base", "fp32", None, "base"),
    Case("base", "fp16", None, "base"),
    Case("fine-tune", "bf16", "base", "dense_200", {"fast": 7.2, "tight": 8.5}),
    Case("consecutive", "bf16", "dense_150", "dense_200", {"fast": 10, "tight": 13}),
    Case("heavy", "bf16", "base", "heavy_300"),
    Case("fine-tune", "fp16", "base", "dense_200"),
    Case("fine-tune", "fp32", "base", "dense_200", {"balanced": 2.5, "tight": 2.5}),
    Case("consecutive", "fp32", "dense_150", "dense_200"),
    Case("heavy", "fp32", "base", "heavy_300"),
    Case("sparse 0.5 %", "fp32", "base", "sparse"),
    Case("sparse 0.5 % at random", "fp32", "base", "sparse_rand"),
    Case("sparse 0.5 %", "bf16", "base", "sparse"),
    Case("sparse 0.5 % at random", "bf16", "base", "sparse_rand"),
    Case("LoRA merged", "fp32", "base", "lora_merged"),
    Case("LoRA merged in fp32, then cast", "bf16", "base", "lora_merged"),
    Case("LoRA merged into bf16", "bf16", "base", "lora_on_bf16"),
    Case("base", "int8", None, "base"),
    Case("base", "fp8", None, "base"),
    Case("base", "int4", None, "base"),
    Case("base", "bf16 in fp32", None, "base"),
    Case("fine-tune", "int8", "base", "dense_200"),
    Case("fine-tune", "fp8", "base", "dense_200"),
    Case("fine-tune", "int4", "base", "dense_200"),
    Case("fine-tune", "bf16 in fp32", "base", "dense_200"),
)
_LORA_BARS = {"fp32": 7.0, "bf16": 5.5}


class Outcome(NamedTuple):
    """What one commit added, and what it and restoring the file cost."""

    added: int
    commit: Measured
    restore: Measured
    repacked: int | None


def file_rows(variants: Variants, work: Path, *, runs: int, only: str = "") -> Iterator[Row]:
    """Every case at every effort."""
    group = "Whole files, committed"
    smaller: list[str] = []
    slower: list[str] = []
    cases = [case for case in CASES if only in f"{case.dtype} {case.what}"]
    for case in cases:
        path = variants.path(case.after, case.dtype)
        size = path.stat().st_size
        others = _others(variants, case)
        found: dict[str, list[Outcome]] = {effort: [] for effort in EFFORTS}
        for _ in range(runs):
            for effort in EFFORTS:
                found[effort].append(_commit(variants, case, effort, work / "files"))
        sizes = [found[effort][0].added for effort in EFFORTS]
        costs = [median(outcome.commit.cpu_s for outcome in found[effort]) for effort in EFFORTS]
        if not (_clearly_smaller(sizes[1], sizes[0]) and _clearly_smaller(sizes[2], sizes[1])):
            smaller.append(f"{case.dtype} {case.what}")
        if not costs[0] < costs[1] < costs[2]:
            slower.append(f"{case.dtype} {case.what}")
        for effort, added, cpu in zip(EFFORTS, sizes, costs, strict=True):
            restore = median(outcome.restore.cpu_s for outcome in found[effort])
            note = f"{added:,} bytes; commit {cpu:.2f}, restore {restore:.2f} CPU s"
            if effort == EFFORTS[0] and others:
                note += "; " + ", ".join(f"{name} {size / other:.2f}" for name, other in others.items())
            yield Row(group, f"{case.dtype} {case.what}, {effort}", size / added, "x", case.bars.get(effort), note=note)
        if case.what.startswith("LoRA"):
            yield from _lora_rows(variants, case, found)
    total = len(cases)
    yield Row("Effort", "cases whose size falls from fast to balanced to tight", total - len(smaller), f"of {total}",
              total, note=f"not: {'; '.join(smaller)}" if smaller else "")  # fmt: skip
    yield Row("Effort", "cases whose commit takes longer each time", total - len(slower), f"of {total}", total,
              note=f"not: {'; '.join(slower)}" if slower else "")  # fmt: skip


def _clearly_smaller(size: int, other: int) -> bool:
    """By more than names, times and identities of commits make two runs differ anyway."""
    return other - size > max(1024, other // 5000)


def _commit(variants: Variants, case: Case, effort: str, work: Path) -> Outcome:
    """Commit in a fresh repository, take the file away, restore and compare it; LoRA also after `mgit repack`."""
    shell = Shell.fresh(work / "repo", {"MGIT_STORAGE__EFFORT": effort})
    file, store = shell.folder / "model.safetensors", shell.folder / ".mgit"
    first = variants.path(case.before or case.after, case.dtype)
    shutil.copyfile(first, file)
    shell.run("mgit init && mgit track model.safetensors")
    grown = store_bytes(store)
    if case.before is not None:
        shell.run("mgit commit -m before")
        grown = store_bytes(store)
        shutil.copyfile(variants.path(case.after, case.dtype), file)
    commit = shell.run("mgit commit -m after")
    added = store_bytes(store) - grown
    repacked = None
    if case.what.startswith("LoRA"):
        shell.run("mgit repack --prune=now")
        repacked = store_bytes(store) - grown
    file.unlink()
    restore = shell.run("mgit restore model.safetensors")
    if not filecmp.cmp(file, variants.path(case.after, case.dtype), shallow=False):
        raise RuntimeError(f"{case.dtype} {case.what}, {effort}: the file did not come back as it went in")
    return Outcome(added, commit, restore, repacked)


def _lora_rows(variants: Variants, case: Case, found: dict[str, list[Outcome]]) -> Iterator[Row]:
    """Ratios on the tensors that the adapter changed: the rest of the file costs nothing and would flatter."""
    after, before = variants.arrays(case.after, case.dtype), variants.arrays("base", case.dtype)
    changed = sum(array.nbytes for name, array in after.items() if not _same(array, before[name]))
    for effort, outcomes in found.items():
        ratio = changed / outcomes[0].added
        yield Row("LoRA, changed tensors", f"{case.dtype} {case.what}, {effort}, commit", ratio, "x")
        repacked = outcomes[0].repacked
        if repacked is not None:
            ratio, bar = changed / max(1, repacked), _LORA_BARS[case.dtype] if effort == "tight" else None
            yield Row("LoRA, changed tensors", f"{case.dtype} {case.what}, {effort}, after repack", ratio, "x", bar)


def _same(array: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(words_of(array), words_of(other))


def _others(variants: Variants, case: Case) -> dict[str, int]:
    """Bytes of the same tensors by other tools' methods, coded tensor by tensor."""
    after = {name: words_of(array) for name, array in variants.arrays(case.after, case.dtype).items()}
    if case.before is None:
        return {"zstd-3": sum(peers.zstd_bytes(words) for words in after.values())}
    before = {name: words_of(array) for name, array in variants.arrays(case.before, case.dtype).items()}
    changed = [(words, before[name]) for name, words in after.items() if not np.array_equal(words, before[name])]
    found = {"XOR + zstd-3": sum(peers.xor_zstd_bytes(*pair) for pair in changed)}
    if case.dtype in ("bf16", "fp32"):
        found["BitX layout"] = sum(peers.bitx_bytes(*pair) for pair in changed)
        if peers.has_zipnn():
            found["ZipNN delta"] = sum(peers.zipnn_delta_bytes(*pair, case.dtype) for pair in changed)
    return found
