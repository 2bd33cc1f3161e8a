"""Benchmarks of several parts: arguments, a work folder, and one table for each part as it ends."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from table import Row, as_json, lines, verdict

__all__ = ["Plan", "run_parts", "side_by_side"]

T = TypeVar("T")


class Plan(NamedTuple):
    """What every part is given: a folder for what is kept, whether to be quick and meaningless, mergekit's Python."""

    work: Path
    quick: bool = False
    mergekit: str | None = None


class _Taken:
    """How long something took from here on, and how much of that a processor worked for it, child processes included:
    on a machine that does other things the latter says how long a quiet one takes.
    """

    def __init__(self) -> None:
        self._began, self._worked = time.monotonic(), _worked()

    def __str__(self) -> str:
        minutes = (time.monotonic() - self._began) / 60
        return f"{minutes:.1f} minutes, {(_worked() - self._worked) / 60:.1f} of processor time"


def _worked() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def side_by_side(function: Callable[[Plan, str], T], plan: Plan, names: Sequence[str]) -> list[T]:
    """`function(plan, name)` for every name, each in a process of its own with one thread.

    The function is one of a module and what it gives can be pickled.  Only for what is not timed: processes that share
    a processor's caches slow each other down.
    """
    with ProcessPoolExecutor(
        len(names), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return list(pool.map(function, [plan] * len(names), names))


def run_parts(description: str | None, parts: Mapping[str, Callable[[Plan], Iterator[Row]]]) -> None:
    """Run the parts that were asked for (`--only`; all), one after the other and in one thread each process."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(parts), help="parts, with commas")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the Python of an environment that has mergekit 0.1.5")
    parser.add_argument("--quick", action="store_true", help="few texts, small files: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where models are kept (default: a temporary folder)")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} processors, {platform.machine()}, torch {torch.__version__}, one thread")
    rows: list[Row] = []
    whole = _Taken()
    with tempfile.TemporaryDirectory(prefix="mgit-parts-") as folder:
        plan = Plan((options.work or Path(folder)).resolve(), options.quick, options.mergekit)
        for part in chosen:
            found, taken = [], _Taken()
            for row in parts[part](plan):
                print(f"{part}: {row.what}: {row.measured:.4g} {row.unit} {verdict(row)}", file=sys.stderr, flush=True)
                found.append(row)
            rows += found
            print("\n".join(lines(found)), flush=True)
            print(f"{part}: {taken}", file=sys.stderr)
    judged = [verdict(row) for row in rows if row.bar is not None]
    print(f"\n{judged.count('met')} of {len(judged)} bars met, {whole}")
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1))
