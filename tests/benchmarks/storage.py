"""Every bar of the storage, measured in one run, as one table.

    python tests/benchmarks/storage.py [--quick] [--only codecs,files,start,speed,unchanged,memory,scenario]
                                       [--json FILE] [--fine-tunes FOLDER] [--work FOLDER]

Ratios of sizes are exact.  Ratios of times compare commands that ran in turn in the same run; each is the median of
several rounds (`--quick`: one).  The fine-tunes are made once (`fixtures.py`, about six CPU minutes) and kept in the
user's cache.  The work folder needs 60 GB for `memory`, 6 GB for the rest.

Compared with, where installed: git-lfs, the `zipnn` package, zstd -3 alone and on an XOR, BitX's layout, `cp`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import codec_speed
import files
import memory
import peers
import scenario
import speed
from table import Row, as_json, lines, verdict
from variants import Variants


class Plan(NamedTuple):
    """What every part is given: the files, a folder of its own, and how thorough to be."""

    variants: Variants
    work: Path
    quick: bool
    case: str


PARTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "codecs": lambda plan: codec_speed.codec_rows(plan.variants, runs=3 if plan.quick else 15),
    "files": lambda plan: files.file_rows(plan.variants, plan.work, runs=1 if plan.quick else 3, only=plan.case),
    "start": lambda plan: speed.start_rows(plan.variants, plan.work, runs=3 if plan.quick else 9),
    "speed": lambda plan: speed.speed_rows(plan.variants, plan.work, runs=1 if plan.quick else 3),
    "unchanged": lambda plan: speed.unchanged_rows(plan.variants, plan.work),
    "memory": lambda plan: memory.memory_rows(plan.work, quick=plan.quick),
    "scenario": lambda plan: scenario.scenario_rows(plan.variants.path("base", "fp32"), plan.work),
}


def fine_tunes(folder: Path | None) -> dict[str, Path]:
    """The paths of the fine-tunes by name, made by `fixtures.py` if need be.

    In a process of its own: torch would stay in memory, and the peak memory of a child counts that of its parent.
    """
    command = [sys.executable, str(Path(__file__).with_name("fixtures.py"))]
    command += [] if folder is None else ["--into", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {Path(line).stem: Path(line) for line in done.stdout.splitlines()}


def main() -> None:
    """Parse arguments, run the parts, print each table as its part ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of everything, smaller files for memory")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--case", default="", help="of `files`, only the cases that contain this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fine-tunes", type=Path)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    missing = [
        name for name, there in (("git-lfs", shutil.which("git-lfs")), ("zipnn", peers.has_zipnn())) if not there
    ]
    print(f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}", end="")
    print(f"; left out, not installed: {', '.join(missing)}" if missing else "")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mgit-bench-", dir=options.work) as folder:
        variants = Variants(fine_tunes(options.fine_tunes), Path(folder) / "variants")
        for part in parts:
            found = []
            for row in PARTS[part](Plan(variants, Path(folder) / part, options.quick, options.case)):
                print(f"{part}: {row.what}: {row.measured:.4g} {row.unit} {verdict(row)}", file=sys.stderr, flush=True)
                found.append(row)
            rows += found
            print("\n".join(lines(found)), flush=True)
            shutil.rmtree(Path(folder) / part, ignore_errors=True)
    judged = [verdict(row) for row in rows if row.bar is not None]
    print(f"\n{judged.count('met')} of {len(judged)} bars met")
    if options.json:
        options.json.write_text(json.dumps(as_json(rows), indent=1))


if __name__ == "__main__":
    main()
