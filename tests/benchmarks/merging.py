"""Every bar of merging that can be measured, in one run, as one table for each part.

    python tests/benchmarks/merging.py [--only tasks,posterior,intermediate,speed,memory] [--mergekit PYTHON]
                                       [--quick] [--json FILE] [--work FOLDER]

`tasks`: two tasks in one body, every strategy, and the search beside a sweep (`merging_tasks`).  `intermediate`: a task
with few labels helped by another's fine-tune.  `posterior`: linear-Gaussian models (`merging_posterior`).  `speed` and
`memory`: `mgit merge-file` beside mergekit, whose Python `--mergekit` names, and under a limit (`merging_speed`).
Fine-tunes are made once and kept in the work folder: with `--work` they outlive the run.  One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from merging_intermediate import rows as intermediate_rows
from merging_posterior import rows as posterior_rows
from merging_speed import memory_rows, speed_rows
from merging_tasks import rows as task_rows
from science_data import Plan
from table import Row, as_json, lines, verdict


def main() -> None:
    """Parse arguments, run the parts, print each table as its part ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="parts, with commas")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the Python of an environment that has mergekit 0.1.5")
    parser.add_argument("--quick", action="store_true", help="few texts, small files: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where fine-tunes are kept (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mgit-merging-") as folder:
        work = (options.work or Path(folder)).resolve()
        plan = Plan(work, options.quick)
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "posterior": lambda: posterior_rows(plan),
            "tasks": lambda: task_rows(plan),
            "intermediate": lambda: intermediate_rows(plan),
            "speed": lambda: speed_rows(work, mergekit=options.mergekit, quick=options.quick),
            "memory": lambda: memory_rows(work / "memory", quick=options.quick),
        }
        chosen = options.only.split(",") if options.only else list(parts)
        if unknown := set(chosen) - set(parts):
            parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
        print(f"{os.cpu_count()} processors, {platform.machine()}, torch {torch.__version__}, one thread")
        rows: list[Row] = []
        for part in chosen:
            found, began = list(parts[part]()), time.monotonic()
            rows += found
            print("\n".join(lines(found)), flush=True)
            print(f"{part}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    judged = [verdict(row) for row in rows if row.bar is not None]
    print(f"\n{judged.count('met')} of {len(judged)} bars met")
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1))


if __name__ == "__main__":
    main()
