"""Commands under strace, which kills them or fails their system calls at chosen points."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import modelgit
from modelgit.environment import Environment
from modelgit.objects import CommitId
from modelgit.repo import Repository
from modelgit.repo.history.log import log
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.undo import undo
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.repack import repack

COMMITS = ("commit", "commit-from", "commit-borrowed", "commit-density")
FROM_THE_TREE = ("commit", "commit-borrowed", "commit-density")
COMMANDS = (*COMMITS, "switch", "merge")
HOUSEKEEPING = ("repack", "prune")
CALLS = (
    "openat", "open", "creat", "write", "pwrite64", "writev", "rename", "renameat", "renameat2", "link", "linkat",
    "unlink", "unlinkat", "fsync", "fdatasync", "mkdir", "mkdirat", "rmdir", "ftruncate", "fallocate", "chmod",
    "fchmod", "fchmodat", "copy_file_range", "sendfile", "utimensat",
)  # fmt: skip
DRIVER = Path(__file__).with_name("driver.py")
_LINE = re.compile(r"(\d+)\s+(\w+)\((.*)")


class Point(NamedTuple):
    """The `number`-th call of `call` in the main thread."""

    call: str
    number: int


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Scene(NamedTuple):
    """A repository prepared for a command, and the work trees before and after it."""

    folder: Path
    command: str
    server: Server
    before: dict[str, str]
    after: dict[str, str]
    head: CommitId
    other: CommitId
    points: list[Point]


def strace() -> str | None:
    """The program, where it is installed and may trace."""
    program = shutil.which("strace")
    if program is None or sys.platform != "linux":
        return None
    tried = subprocess.run([program, "-f", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return program if tried.returncode == 0 else None


def environment_of(folder: Path) -> Environment:
    home = folder / "home"
    return Environment(
        home=home,
        config_home=home / ".config",
        cache_home=home / ".cache",
        cwd=folder / "work",
        author="Ada <ada@example.org>",
        host="testhost",
        offline=True,
        overrides={"storage.threads": "1"},
    )


class Server:
    """The program that runs one command; see the driver."""

    def __init__(self, command: str, worktree: Path) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            line = [sys.executable, "-B", str(DRIVER), command, str(worktree), str(theirs.fileno())]
            one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # forks do not take threads along
            self._process = subprocess.Popen(line, pass_fds=[theirs.fileno()], env={**os.environ, **one_thread})
        assert self._requests.recv(16) == b"ready", "the driver did not start"

    def run(self, folder: Path, *options: str) -> Ran:
        """Run the command in `folder`, under strace when options for it are given."""
        mine, theirs = socket.socketpair()
        mine.settimeout(120)
        with (
            mine,
            mine.makefile("rb") as replies,
            (folder / "out").open("wb") as out,
            (folder / "err").open("wb") as err,
        ):
            with theirs:
                message = os.fsencode(folder / "work")
                socket.send_fds(self._requests, [message], [theirs.fileno(), out.fileno(), err.fileno()])
            process = replies.readline().decode().strip()
            line = ["strace", "-f", "-o", str(folder / "trace"), *options, "-p", process]
            with subprocess.Popen(line, stderr=subprocess.PIPE) if options else nullcontext() as tracer:
                if tracer is not None:
                    said = tracer.stderr.readline()
                    assert b"attached" in said, said
                mine.sendall(b".")
                code = int(replies.readline())
        return Ran(code, (folder / "out").read_text(), (folder / "err").read_text())

    def close(self) -> None:
        self._requests.close()
        self._process.wait(timeout=60)


def points_of(folder: Path) -> list[Point]:
    """The calls of the traced run that may have changed a file, in order."""
    counts: Counter[str] = Counter()
    points = []
    main = None
    for line in (folder / "trace").read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        main = main or match.group(1)
        call = match.group(2)
        if match.group(1) != main or call not in CALLS:
            continue
        counts[call] += 1
        if (call == "openat" and "O_CREAT" not in match.group(3)) or match.group(3).startswith(("1, ", "2, ")):
            continue
        points.append(Point(call, counts[call]))
    return points


def _write(files, worktree: Path, arrays: dict[str, np.ndarray]) -> None:
    tensors = {name: ("F32", array.shape, array.tobytes()) for name, array in arrays.items()}
    files.sharded(worktree / "bot", tensors, 2)


def prepare_housekeeping(files, folder: Path) -> None:
    """Branch `side` of four checkpoints, the second without a base in its parent; garbage; retention keeps the last."""
    worktree = folder / "work"
    worktree.mkdir(parents=True)
    with modelgit.init(worktree, environment=environment_of(folder)) as repo:
        arrays = files.floats(layers=3)
        _write(files, worktree, arrays)
        (worktree / "gone.txt").write_text("there")
        (worktree / "mgit.toml").write_text('[track]\npaths = ["bot", "gone.txt"]\n[retention.side]\nlast = 1\n')
        repo.forget_settings()
        repo.commit("base")
        repo.switch("side", create=True)
        for step in range(4):
            _write(files, worktree, {"other": arrays["layers.0.weight"][:2]} if step == 1 else arrays)
            arrays = {name: array + np.float32(0.001) * (array > 0.02 + 0.001 * step) for name, array in arrays.items()}
            if step:
                repo.commit(f"step {step}")
        _write(files, worktree, files.floats(9, layers=3))
        repo.commit("undone")
        undo(repo)
        restore(repo, ["."])
        repo.switch("main")


def prepare(files, folder: Path, command: str) -> None:
    """Branches `main` and `side` that differ in weights, in an added and in a removed file; main is current."""
    if command in HOUSEKEEPING:
        prepare_housekeeping(files, folder)
        return
    worktree = folder / "work"
    worktree.mkdir(parents=True)
    with modelgit.init(worktree, environment=environment_of(folder)) as repo:
        _write(files, worktree, files.floats(layers=6))
        (worktree / "gone.txt").write_text("there on main only")
        repo.track("bot")
        repo.track("gone.txt")
        repo.commit("base")
        repo.switch("side", create=True)
        arrays = files.floats(layers=6)
        arrays["layers.0.weight"][0] += np.float32(0.5)
        arrays["layers.5.weight"][:, 3] += np.float32(0.5)
        _write(files, worktree, arrays)
        (worktree / "gone.txt").unlink()
        (worktree / "docs").mkdir()
        (worktree / "docs" / "new.txt").write_text("there on side only")
        repo.track("docs")
        repo.commit("side")
        repo.switch("main")
        if command != "switch":
            arrays = files.floats(layers=6)
            arrays["layers.5.weight"][:, 3] -= np.float32(0.25)
            arrays["layers.3.weight"] += np.float32(0.01)
            if command != "commit-from":
                _write(files, worktree, arrays)
            if command in ("commit-from", "commit-borrowed"):
                _write(files, folder / "run", arrays)
        if command == "merge":
            repo.commit("ours")


@pytest.fixture(scope="session")
def scene_of(files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Scene]]:
    """Prepares a command once: the repository, its outcome, and every point at which it can be hit."""
    if strace() is None:
        pytest.skip("strace is not installed, or may not trace here")
    known: dict[str, Scene] = {}

    def make(command: str) -> Scene:
        if command in known:
            return known[command]
        folder = tmp_path_factory.mktemp(command)
        prepare(files, folder / "start", command)
        shutil.copytree(folder / "start", folder / "rehearsal")
        shutil.copytree(folder / "start", folder / "plain")
        server = Server(command, folder / "rehearsal" / "work")
        ran = server.run(folder / "plain", "-e", "trace=" + ",".join(CALLS))
        assert ran.code == 0, ran
        with modelgit.open(folder / "start" / "work", environment=environment_of(folder / "start")) as repo:
            head, other = repo.head(), repo.resolve("side")
        assert head is not None
        known[command] = Scene(
            folder / "start",
            command,
            server,
            files.digests(folder / "start" / "work"),
            files.digests(folder / "plain" / "work"),
            head,
            other,
            points_of(folder / "plain"),
        )
        return known[command]

    yield make
    for scene in known.values():
        scene.server.close()


@pytest.fixture
def hit(files, tmp_path: Path) -> Callable[[Scene, list[tuple[Point, str]]], Ran]:
    """Runs the command on a copy, hit at `point` as `how` says, then checks the repository that is left.

    More than one hit: the command is hit at the first point, and what is run next (and finds the first one's traces) at
    the next.
    """

    def act(scene: Scene, hits: list[tuple[Point, str]]) -> Ran:
        name = "-".join(f"{point.call}{point.number}{how.split('=')[-1]}" for point, how in hits)
        folder = tmp_path / f"{scene.command}-{name}"
        shutil.copytree(scene.folder, folder)
        for point, how in hits:
            inject = f"inject={point.call}:{how}:when={point.number}"
            ran = scene.server.run(folder, "-e", f"trace={point.call}", "-e", inject)
            if ran.code == 0:
                break
        check(files, scene, folder, acknowledged="acknowledged" in ran.out)
        shutil.rmtree(folder)
        return ran

    return act


def check(files, scene: Scene, folder: Path, *, acknowledged: bool) -> bool:
    """The state is exactly the old or the new one, all is sound, and work goes on.  Returns whether it is new."""
    worktree = folder / "work"
    if scene.command in HOUSEKEEPING:
        return check_housekeeping(files, scene, folder, acknowledged=acknowledged)
    with modelgit.open(worktree, environment=environment_of(folder)) as repo:
        view = repo.view()
        assert view.head is not None
        if scene.command == "switch":
            is_new = view.branch == "side"
            assert view.head == (scene.other if is_new else scene.head)
        else:
            assert view.branch == "main"
            is_new = view.head != scene.head
            if is_new:
                parents = (scene.head,) if scene.command in COMMITS else (scene.head, scene.other)
                assert tuple(repo.parents_of(view.head)) == parents
        assert is_new or not acknowledged, "an acknowledged command was lost"
        assert files.digests(worktree) == (scene.after if is_new else scene.before)
        assert repo.resolve("side") == scene.other
        status = repo.status()
        assert status.is_clean == (is_new or scene.command not in FROM_THE_TREE), status
        assert not repo.journal.pending
        if scene.command == "commit-density":
            here = {*files.digests(worktree).values(), *files.digests(repo.paths.rescue, everything=True).values()}
            assert {*scene.before.values()} <= here, "the dense weights were lost"
        else:
            assert not repo.paths.rescue.exists(), "recovery took its own files for edits of the user"
        report = fsck(repo)
        assert report.is_sound, report.findings
        go_on(repo, worktree)
    return is_new


def check_housekeeping(files, scene: Scene, folder: Path, *, acknowledged: bool) -> bool:
    """Refs, files and tensors are what they were, but for weights that were pruned, all or none of them."""
    worktree = folder / "work"
    with modelgit.open(worktree, environment=environment_of(folder)) as repo:
        view = repo.view()
        assert (view.branch, view.head, repo.resolve("side")) == ("main", scene.head, scene.other)
        assert files.digests(worktree) == scene.before
        report = fsck(repo)
        assert report.is_sound, report.findings
        lost = [entry for entry in log(repo, "side") if entry.pruned]
        assert len(lost) in ((0, 2) if scene.command == "prune" else (0,))
        assert lost or not acknowledged or scene.command != "prune", "an acknowledged pruning was lost"
        for entry in log(repo, "side"):
            if not entry.pruned:
                state = repo.load(entry.id.hex)
                assert all(state[name].raw() is not None for name in state)
        again = scene.server.run(folder)
        assert again.code == 0, again
        assert fsck(repo).is_sound
        assert repack(repo, dry_run=True).recoded == 0 or scene.command == "prune"
        go_on(repo, worktree)
    return bool(lost)


def go_on(repo: Repository, worktree: Path) -> None:
    """The next commit works and is clean."""
    (worktree / "gone.txt").write_text("work goes on")
    repo.track("gone.txt")
    made = repo.commit("next")
    assert repo.head() == made.id
    assert repo.status().is_clean
    assert not repo.paths.lock.exists()
