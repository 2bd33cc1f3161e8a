"""Every bar of the science, measured on the real model and real texts in one run, as one table for each part.

    python tests/benchmarks/science.py [--only estimators,kl,masks,patches] [--quick] [--json FILE] [--work FOLDER]

A part is a module `science_NAME.py` beside this one with `rows(plan)`; all seeds are stated there.  Rates and other
choices are made on validation texts, figures are from test texts that nothing else saw.  Everything runs in one thread.
Fine-tunes that several parts need are made once and kept in the work folder: with `--work` they outlive the run.
`--quick` takes fewer texts and seeds, to see that a part runs at all; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from science_data import Plan
from table import Row, as_json, lines, verdict

PARTS = sorted(
    path.stem.removeprefix("science_")
    for path in Path(__file__).parent.glob("science_*.py")
    if path.stem != "science_data"
)


def main() -> None:
    """Parse arguments, run the parts, print each table as its part ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--quick", action="store_true", help="few texts and seeds: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where fine-tunes are kept (default: a temporary folder)")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} processors, {platform.machine()}, torch {torch.__version__}, one thread")
    rows: list[Row] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mgit-science-") as folder:
        plan = Plan(options.work or Path(folder), options.quick)
        for part in parts:
            found, began = [], time.monotonic()
            for row in importlib.import_module(f"science_{part}").rows(plan):
                print(f"{part}: {row.what}: {row.measured:.4g} {row.unit} {verdict(row)}", file=sys.stderr, flush=True)
                found.append(row)
            rows += found
            print("\n".join(lines(found)), flush=True)
            print(f"{part}: {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    judged = [verdict(row) for row in rows if row.bar is not None]
    print(f"\n{judged.count('met')} of {len(judged)} bars met, {(time.monotonic() - started) / 60:.1f} minutes")
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1))


if __name__ == "__main__":
    main()
