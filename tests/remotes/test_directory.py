from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelgit.environment import Environment
from modelgit.errors import RemoteError, UsageError
from modelgit.remotes.base import TRANSPORTS, open_transport
from modelgit.remotes.directory import DirectoryTransport, initialise_bare
from modelgit.remotes.url import parse_url


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(home=tmp_path / "home", config_home=tmp_path, cache_home=tmp_path, cwd=tmp_path)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("{tmp}/a.mgit", "{tmp}/a.mgit"),
        ("a.mgit", "{tmp}/repo/a.mgit"),
        ("./a b", "{tmp}/repo/a b"),
        ("../a.mgit", "{tmp}/repo/../a.mgit"),
        ("file:a.mgit", "{tmp}/repo/a.mgit"),
        ("file:{tmp}/a", "{tmp}/a"),
        ("file://{tmp}/a%20b", "{tmp}/a b"),
        ("file://localhost{tmp}/a", "{tmp}/a"),
        ("FILE:a", "{tmp}/repo/a"),
        ("~/a.mgit", "{tmp}/home/a.mgit"),
        ("./odd:name", "{tmp}/repo/odd:name"),
        ("C:\\models", "{tmp}/repo/C:\\models"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths of another kind")
def test_urls_of_directories(url: str, expected: str, tmp_path: Path, environment: Environment) -> None:
    transport = open_transport(url.format(tmp=tmp_path), environment=environment, relative_to=tmp_path / "repo")
    assert isinstance(transport, DirectoryTransport)
    assert str(transport._given) == expected.format(tmp=tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "", "-oProxyCommand=x", "--upload-pack=x", "ssh://-oProxyCommand=x/", "ssh://user@-oProxyCommand=x/y",
        "file:-rf", "file:%2drf", "a\nb", "a\0b", "file:a%00b", "file:a%0ab", "file:///a%1b[31m", "a\u202eb",
        "file://otherhost/a", "file:", "file://", "x" * 5000,
    ],
    ids=ascii,
)  # fmt: skip
def test_strange_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(url)
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("url", ["gopher://host/path", "host.example:models/bot.mgit"])
def test_unknown_schemes_name_the_known_ones(url: str, environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no transport `") as caught:
        open_transport(url, environment=environment, relative_to=tmp_path)
    assert "file" in str(caught.value.hint)
    assert "file" in TRANSPORTS


def test_a_bare_repository_has_the_format_of_one_with_a_work_tree(tmp_path: Path) -> None:
    initialise_bare(tmp_path / "x", branch="trunk", author="a")
    transport = DirectoryTransport(tmp_path / "x")
    assert transport.root().view.branch == "trunk"
    assert transport.root().checked_out is None


def test_a_missing_remote_is_named_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="nothing does not exist") as caught:
        DirectoryTransport(tmp_path / "nothing").root()
    assert "`mgit push`" in str(caught.value.hint)
    with pytest.raises(RemoteError, match="is not an mgit repository"):
        DirectoryTransport(tmp_path).root()


def test_nothing_is_made_in_a_foreign_directory_or_below_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RemoteError, match=r"not empty: it holds 'thesis\.tex'"):
        DirectoryTransport(tmp_path).create(branch="main", author="a")
    with pytest.raises(RemoteError, match="unmounted does not exist"):
        DirectoryTransport(tmp_path / "unmounted" / "bot.mgit").create(branch="main", author="a")
    with pytest.raises(RemoteError, match="is a file"):
        DirectoryTransport(tmp_path / "thesis.tex").create(branch="main", author="a")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_repository_that_was_half_made_is_finished_and_a_whole_one_kept(tmp_path: Path) -> None:
    transport = DirectoryTransport(tmp_path / "x")
    assert transport.create(branch="main", author="a")
    before = transport.root()
    assert not transport.create(branch="other", author="a")
    (tmp_path / "x" / "format").unlink()  # as if killed before the last step
    again = DirectoryTransport(tmp_path / "x")
    assert again.create(branch="other", author="a")
    assert again.root() == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    initialise_bare(tmp_path / "x", author="a")
    (tmp_path / "x" / "format").write_text("mgit repository, format 9\x1b[31m\n")
    with pytest.raises(RemoteError, match="format 9") as caught:
        DirectoryTransport(tmp_path / "x").root()
    assert caught.value.message.isprintable()


def test_many_may_make_the_same_remote_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    roots = []

    def make() -> None:
        start.wait()
        transport = DirectoryTransport(tmp_path / "x")
        transport.create(branch="main", author="a")
        roots.append(transport.root())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(roots) == 8
    assert all(root == roots[0] for root in roots)


_PUSHER = """
import sys
from pathlib import Path
from modelgit.objects import View
from modelgit.remotes.base import RefUpdate
from modelgit.remotes.directory import DirectoryTransport
from modelgit.remotes.sync import push
from modelgit.store.fs import FileSystemStore
from modelgit.store.oplog import OperationLog
from modelgit.store.root import FileRoot
path = Path(sys.argv[1])
store = FileSystemStore(path)
commit = OperationLog(path).read(FileRoot(path).read().root.operation).view.refs["heads/main"]
transport = DirectoryTransport(Path(sys.argv[2]))
for number in range(10):
    push(store, transport, [RefUpdate(f"heads/{sys.argv[3]}-{number}", commit)], author="a")
"""


def test_processes_that_push_at_once_lose_nothing(
    make_side: Callable[[str], Any], weights: Any, tmp_path: Path
) -> None:
    side = make_side("alice")
    commit = side.commit(weights)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _PUSHER, str(side.path), str(tmp_path / "origin.mgit"), f"p{number}"],
            stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]
    errors = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    transport = DirectoryTransport(tmp_path / "origin.mgit")
    assert transport.root().view.refs == {f"heads/p{p}-{n}": commit for p in range(3) for n in range(10)}
    transport.close()
