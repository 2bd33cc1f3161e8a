"""The gate's bars: how many examples decide, how often wrongly, and at what cost, as one table for each part.

    python tests/benchmarks/gate.py [--only errors,examples,cost] [--quick] [--json FILE] [--work FOLDER]

`errors` simulates suites with flips on and beside the limit.  `examples` draws from 4,000 real test texts of two tasks
(movie reviews; 20 Newsgroups) on patches of a real model, made by the recipes in `gate_examples.py`.  `cost` runs the
commands of a user.  All seeds are stated there; everything runs in one thread.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from science_data import Plan
from table import Row, as_json, lines, verdict

PARTS = ("errors", "examples", "cost")


def main() -> None:
    """Parse arguments, run the parts, print each table as its part ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--quick", action="store_true", help="few texts and runs: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where models are kept (default: a temporary folder)")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mgit-gate-") as folder:
        plan = Plan(options.work or Path(folder), options.quick)
        for part in parts:
            began = time.monotonic()
            found = list(importlib.import_module(f"gate_{part}").rows(plan))
            rows += found
            print("\n".join(lines(found)), flush=True)
            print(f"{part}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    judged = [verdict(row) for row in rows if row.bar is not None]
    print(f"\n{judged.count('met')} of {len(judged)} bars met")
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1))


if __name__ == "__main__":
    main()
