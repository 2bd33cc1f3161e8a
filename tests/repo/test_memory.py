"""A tensor of gigabytes goes in and comes out in a few hundred megabytes of anonymous memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from modelgit.repo import Repository

pytestmark = [
    pytest.mark.big,
    pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds anonymous memory on Linux only"),
]
GIB = 1 << 30
TENSOR_BYTES = 5 * GIB
LIMIT_BYTES = 400 << 20

# The limit counts private writable memory (heap, anonymous maps, stacks) and not the files that are mapped or cached.
# It is set above what the imports have taken, so that it bounds the work and not the interpreter.
_CHILD = """
import resource, sys
from pathlib import Path

import numpy, zstandard, blake3
import modelgit.repo.tracking.commit, modelgit.repo.gates.gate, modelgit.repo.tracking.switch, modelgit.evals.builtin
import modelgit
from modelgit.environment import Environment
from modelgit.repo.tracking.switch import restore

def data_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024

worktree, what, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
home = worktree.parent / "home"
environment = Environment(
    home=home, config_home=home, cache_home=home, cwd=worktree, author="Ada <a@example.org>",
    overrides={"storage.threads": "2"},
)
with modelgit.open(worktree, environment=environment) as repo:
    bound = data_bytes() + limit
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    if what == "commit":
        print(repo.commit("large").bytes_added)
    elif what == "restore":
        print(restore(repo, ["."]))
    else:
        bytearray(limit + (64 << 20))
"""


def run(repo: Repository, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _CHILD, str(repo.worktree), what, str(LIMIT_BYTES)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def large_file(path: Path) -> list[tuple[int, bytes]]:
    """A safetensors file with one tensor that is a hole but for some places; returns those."""
    table = {"emb": {"dtype": "F32", "shape": [TENSOR_BYTES // 4], "data_offsets": [0, TENSOR_BYTES]}}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    block = bytes(range(1, 60)) * 4000
    places = [(0, block), (TENSOR_BYTES // 2 + 4, block), (TENSOR_BYTES - len(block), block)]
    places += [(GIB + number * (7 << 20), struct.pack("<f", number)) for number in range(1, 100)]
    with path.open("wb") as file:
        file.write(head)
        for place, data in places:
            file.seek(len(head) + place)
            file.write(data)
    assert path.stat().st_size == len(head) + TENSOR_BYTES
    return [(len(head) + place, data) for place, data in places]


def test_five_gibibytes_pass_through_four_hundred_mebibytes(repo: Repository) -> None:
    target = repo.worktree / "large.safetensors"
    places = large_file(target)
    size = target.stat().st_size
    repo.track("large.safetensors")
    repo.close()
    checked = run(repo, "bytes")
    assert "MemoryError" in checked.stderr, "the limit does not limit: this test could not fail"
    committed = run(repo, "commit")
    assert committed.returncode == 0, committed.stderr[-2000:]
    assert int(committed.stdout) < 8 << 20
    target.unlink()
    restored = run(repo, "restore")
    assert restored.returncode == 0, restored.stderr[-2000:]
    with target.open("rb") as file:
        assert file.seek(0, 2) == size
        for place, data in places:
            file.seek(place)
            assert file.read(len(data)) == data
        file.seek(GIB // 2)
        assert not any(file.read(64 << 20))
    target.unlink()
