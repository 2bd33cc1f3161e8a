"""External bases: neither stored nor pushed, found in a Hugging Face cache, never taken on trust."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest

from modelgit.environment import Environment
from modelgit.errors import ExternalAbsentError, IntegrityError, MissingExtraError, NothingToDo, RemoteError, UsageError
from modelgit.objects import BlobId, External, TensorId, TensorSpec, check_external, encode, leaf_digests, parse_source
from modelgit.repo import Repository
from modelgit.repo.contents import file_bytes
from modelgit.repo.exchange.borrow import add, copy, remove
from modelgit.repo.exchange.cloning import clone
from modelgit.repo.exchange.hub import fetch_sources, pinned
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.sync import pull, push
from modelgit.repo.tracking.switch import restore
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect
from modelgit.store.base import is_external
from tests.conftest import Files, environment_at

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a Hugging Face cache is made of links")

SHA = "4f1c0b6f5d7e3a2b1c9d8e7f6a5b4c3d2e1f0a9b"
SOURCE = f"hf:acme/tiny@{SHA}"
MODEL = "model.safetensors"


@pytest.fixture
def weights(files: Files) -> dict[str, np.ndarray]:
    return files.floats(5, rows=128, columns=256)


def make_cache(cache: Path, data: bytes) -> Path:
    """A cache as `huggingface_hub` lays it out: blobs, and snapshots that link to them."""
    model = cache / "models--acme--tiny"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(SHA)
    (model / "blobs" / "aa11").write_bytes(data)
    snapshot = model / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (snapshot / MODEL).symlink_to("../../blobs/aa11")
    return model / "blobs" / "aa11"


@pytest.fixture
def cache(tmp_path: Path, files: Files, weights: dict[str, np.ndarray]) -> Path:
    make_cache(tmp_path / "hub", files.of_arrays(weights))
    return tmp_path / "hub"


def surroundings(tmp_path: Path, cache: Path | None, cwd: Path | None = None) -> Environment:
    return replace(environment_at(tmp_path, cwd or tmp_path), hub_cache=cache)


@pytest.fixture
def work(tmp_path: Path, cache: Path, files: Files, weights: dict[str, np.ndarray]) -> Repository:
    """A repository that knows the cache, with the published model in its work tree, tracked."""
    folder = tmp_path / "work"
    folder.mkdir()
    repo = Repository.init(folder, environment=surroundings(tmp_path, cache, folder))
    (folder / MODEL).write_bytes(files.of_arrays(weights))
    repo.track(MODEL)
    return repo


def tuned(files: Files, weights: dict[str, np.ndarray]) -> bytes:
    changed = {name: array.copy() for name, array in weights.items()}
    changed["layers.1.weight"][4, :30] -= np.float32(0.5)
    return files.of_arrays(changed)


def stored_bytes(repo: Repository | Path) -> int:
    folder = repo if isinstance(repo, Path) else repo.store.packs_path
    return sum(path.stat().st_size for path in folder.glob("*.pack"))


def test_a_published_model_is_recorded_and_not_stored(work: Repository) -> None:
    result = work.commit("as published", base=SOURCE)
    assert result.commit.trailers == {"base": SOURCE}
    assert stored_bytes(work) < 8000
    report = fsck(work)
    assert report.is_sound and report.external == 3 and not report.absent


def test_large_tensors_are_recorded_while_others_are_staged(tmp_path: Path, files: Files) -> None:
    random = np.random.default_rng(3)
    weights = {f"big.{number}": random.standard_normal(5 << 19).astype("<f4") for number in range(2)}
    make_cache(tmp_path / "hub", files.of_arrays(weights))
    folder = tmp_path / "work"
    folder.mkdir()
    with Repository.init(folder, environment=surroundings(tmp_path, tmp_path / "hub", folder)) as repo:
        mine = {"new.first": random.standard_normal(5 << 19).astype("<f4"), **weights}
        data = files.of_arrays({**mine, "new.last": weights["big.0"][::-1].copy()})
        (folder / MODEL).write_bytes(data)
        repo.track(MODEL)
        repo.commit("as published, and more", base=SOURCE)
        report = fsck(repo)
        assert report.is_sound and report.external == 2
        assert 15 << 20 < stored_bytes(repo) < 22 << 20
        (folder / MODEL).unlink()
        restore(repo, [MODEL])
        assert (folder / MODEL).read_bytes() == data


def test_push_leaves_the_model_out_and_a_clone_finds_it(
    tmp_path: Path, work: Repository, cache: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    work.commit("as published", base=SOURCE)
    (work.worktree / MODEL).write_bytes(tuned(files, weights))
    assert work.commit("tuned").encodings == {"sparse": 1}
    add_remote(work, "origin", str(tmp_path / "origin.mgit"))
    push(work)
    assert stored_bytes(tmp_path / "origin.mgit" / "packs") < 15_000
    with clone(str(tmp_path / "origin.mgit"), tmp_path / "again", environment=surroundings(tmp_path, cache)) as again:
        assert (again.worktree / MODEL).read_bytes() == tuned(files, weights)
        assert stored_bytes(again) < 15_000
        report = fsck(again)
        assert report.is_sound and report.external == 3
        (again.worktree / MODEL).write_bytes(files.of_arrays({k: v * np.float32(2) for k, v in weights.items()}))
        again.commit("more")
        push(again)
    assert pull(work).after is not None
    assert fsck(work).is_sound


def test_a_clone_without_the_model_says_what_to_type(
    tmp_path: Path, work: Repository, cache: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    work.commit("as published", base=SOURCE)
    add_remote(work, "origin", str(tmp_path / "origin.mgit"))
    push(work)
    url = str(tmp_path / "origin.mgit")
    for somewhere in (None, tmp_path / "empty"):
        with pytest.raises(ExternalAbsentError, match=rf"lies in {MODEL} of {SOURCE}, which is not on this") as caught:
            clone(url, tmp_path / "again", environment=surroundings(tmp_path, somewhere))
        assert caught.value.hint == f"`hf download acme/tiny --revision {SHA}`"
        assert not (tmp_path / "again").exists()
    (work.worktree / MODEL).write_bytes(tuned(files, weights))
    work.commit("tuned")
    push(work)
    with pytest.raises(ExternalAbsentError, match="not on this machine"):
        clone(url, tmp_path / "again", environment=surroundings(tmp_path, None))


def test_fsck_tells_absence_from_damage(tmp_path: Path, work: Repository, cache: Path) -> None:
    work.commit("as published", base=SOURCE)
    hidden = tmp_path / "hidden"
    cache.rename(hidden)
    work.store.lenders.close()
    report = fsck(work)
    assert report.is_sound and report.external == 3 and len(report.absent) == 3
    assert fsck(work, quick=True).absent
    collect(work)
    with pytest.raises(ExternalAbsentError):
        work.load()["layers.0.weight"].raw()
    hidden.rename(cache)
    assert not fsck(work).absent
    blob = cache / "models--acme--tiny" / "blobs" / "aa11"
    data = bytearray(blob.read_bytes())
    data[-5] ^= 1
    blob.write_bytes(data)
    work.store.lenders.close()
    report = fsck(work)
    assert [finding.used_by for finding in report.findings] == ["layers.2.weight"]
    assert "has changed in" in report.findings[0].problem


def test_a_directory_with_the_same_bytes_serves_as_well(tmp_path: Path, work: Repository, cache: Path) -> None:
    work.commit("as published", base=SOURCE)
    data = (work.worktree / MODEL).read_bytes()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "any.safetensors").write_bytes(data)
    shutil.rmtree(cache)
    work.store.lenders.close()
    add(work, str(tmp_path / "copy"))
    assert len(work.load()["layers.0.weight"].raw()) == 128 * 256 * 4
    assert not fsck(work).absent


def test_external_objects_can_be_stored_after_all(tmp_path: Path, work: Repository, cache: Path) -> None:
    work.commit("as published", base=SOURCE)
    assert copy(work, external=True).objects == 3
    remove(work, SOURCE)
    shutil.rmtree(cache)
    collect(work)
    work.store.lenders.close()
    report = fsck(work)
    assert report.is_sound and not report.absent and report.external == 0


def test_links_out_of_the_model_are_not_followed(tmp_path: Path, work: Repository, cache: Path) -> None:
    secret = tmp_path / "secret"
    shutil.copy(cache / "models--acme--tiny" / "blobs" / "aa11", secret)
    link = cache / "models--acme--tiny" / "snapshots" / SHA / MODEL
    link.unlink()
    link.symlink_to(secret)
    added = add(work, SOURCE)
    assert added.state.objects == 0
    assert "not a file inside of" in added.skipped[0]


def test_a_whole_cache_can_lend_as_a_directory(tmp_path: Path, work: Repository, cache: Path) -> None:
    """Then its files are borrowed on this machine, and pushed like anything else."""
    added = add(work, str(cache))
    assert added.state.kind == "files" and added.state.objects == 3 and not added.skipped
    work.commit("base")
    report = fsck(work)
    assert report.borrowed == 3 and not report.external
    add_remote(work, "origin", str(tmp_path / "origin.mgit"))
    push(work)
    assert stored_bytes(tmp_path / "origin.mgit" / "packs") > 300_000


def test_a_branch_needs_the_hub(tmp_path: Path, cache: Path) -> None:
    environment = surroundings(tmp_path, cache)
    with pytest.raises(RemoteError, match="MGIT_OFFLINE") as caught:
        pinned(environment, "hf:acme/tiny@main")
    assert caught.value.hint == f"`mgit borrow add {SOURCE}` takes the one in the cache"
    with pytest.raises(ExternalAbsentError):
        pinned(environment, f"hf:acme/other@{SHA}")


@pytest.mark.parametrize(
    "text",
    ["hf:acme/tiny", "hf:../x@main", "hf:a/b/c@main", "hf:a--b/c@main", f"hf:/x@{SHA}", "acme/tiny@main", "hf:-x@y"],
)
def test_odd_sources_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


def good(weights: dict[str, np.ndarray]) -> tuple[External, TensorId, int]:
    from modelgit.objects import tensor_id

    data = weights["layers.0.weight"].tobytes()
    spec = TensorSpec(dtype="F32", shape=(128, 256))
    leaves = leaf_digests(data)
    return External(source=SOURCE, path=MODEL, leaves=b"".join(leaves), spec=spec), tensor_id(spec, leaves), len(data)


@pytest.mark.parametrize(
    "lie",
    [
        {"source": "hf:acme/tiny@main"},
        {"source": "/etc/passwd"},
        {"path": "../../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"offset": -1},
        {"leaves": b""},
        {"leaves": b"\0" * 32},
        {"leaves": b"\0" * 64},
        {"spec": None},
        {"spec": TensorSpec(dtype="F32", shape=(256, 128))},
        {"spec": TensorSpec(dtype="F32", shape=(1 << 40,))},
    ],
    ids=str,
)
def test_lying_records_are_refused(weights: dict[str, np.ndarray], lie: dict[str, object]) -> None:
    external, object_id, size = good(weights)
    check_external(external, object_id, size)
    with pytest.raises(IntegrityError):
        check_external(msgspec.structs.replace(external, **lie), object_id, size)


def test_a_remote_cannot_slip_in_a_lying_record(
    tmp_path: Path, work: Repository, cache: Path, weights: dict[str, np.ndarray]
) -> None:
    work.commit("as published", base=SOURCE)
    add_remote(work, "origin", str(tmp_path / "origin.mgit"))
    push(work)
    from modelgit.store.fs import FileSystemStore

    store = FileSystemStore(tmp_path / "origin.mgit")
    rows = list(store.objects())
    session = store.session(epoch=0)
    from modelgit.objects import id_class

    for item in rows:
        kind = id_class(item.kind)
        header, payload = store.read(item)
        if is_external(item):
            external, _ = store.external(item)
            header = encode(msgspec.structs.replace(external, leaves=b"\7" * 32))
        session.append(
            kind(item.digest), start=item.start, stop=item.stop, total=item.total, header=header, payload=(payload,),
            base=None if item.base is None else kind(item.base),
        )  # fmt: skip
    for name in store.lookup.packs():
        store.delete(name)
    session.seal()
    store.close()
    with pytest.raises(IntegrityError, match=r"refuses tensor .* leaf digests of another object"):
        clone(str(tmp_path / "origin.mgit"), tmp_path / "again", environment=surroundings(tmp_path, cache))


def test_blobs_are_external_too(tmp_path: Path, cache: Path) -> None:
    snapshot = cache / "models--acme--tiny" / "snapshots" / SHA
    (snapshot.parents[1] / "blobs" / "bb22").write_bytes(b"token " * 2000)
    (snapshot / "vocab.txt").symlink_to("../../blobs/bb22")
    folder = tmp_path / "other"
    folder.mkdir()
    with Repository.init(folder, environment=surroundings(tmp_path, cache, folder)) as repo:
        (folder / "vocab.txt").write_bytes(b"token " * 2000)
        repo.track("vocab.txt")
        repo.commit("words", base=SOURCE)
        assert fsck(repo).external == 1
        assert file_bytes(repo, repo.manifest_of(repo.head()).files[-1].digest) == b"token " * 2000
        blobs = [item for item in repo.store.objects() if is_external(item)]
        assert [item.kind for item in blobs] == [BlobId.KIND]


def test_fetching_needs_the_network_and_the_library(
    tmp_path: Path, work: Repository, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.commit("as published", base=SOURCE)
    shutil.rmtree(cache)
    work.store.lenders.close()
    with pytest.raises(RemoteError, match="MGIT_OFFLINE"):
        fetch_sources(work)
    work.environment = replace(work.environment, offline=False)
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError) as caught:
        fetch_sources(work)
    assert caught.value.hint == "`pip install 'modelgit[hub]'`"


def test_a_changed_cache_is_not_recorded_as_the_model(
    work: Repository, cache: Path, files: Files, weights: dict[str, np.ndarray]
) -> None:
    add(work, SOURCE)
    blob = cache / "models--acme--tiny" / "blobs" / "aa11"
    data = bytearray(blob.read_bytes())
    data[-5] ^= 1
    blob.write_bytes(data)
    work.store.lenders.close()
    work.commit("as it was")
    report = fsck(work)
    assert report.is_sound and report.external == 2


@pytest.fixture
def hub_server(files: Files, weights: dict[str, np.ndarray]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A stand-in for the hub with one model; what it was asked, with the token that came along."""
    data = files.of_arrays(weights)
    asked: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

        def answer(self, body: bytes, **headers: str) -> None:
            asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            entry = {"type": "file", "path": MODEL, "size": len(data), "oid": "a" * 40}
            if path.endswith(f"/resolve/{SHA}/{MODEL}"):
                self.answer(data, ETag='"aa11"', Accept_Ranges="bytes")
            elif "/tree/" in path:
                self.answer(json.dumps([entry]).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/acme/tiny"):
                info = {"id": "acme/tiny", "modelId": "acme/tiny", "sha": SHA, "siblings": [{"rfilename": MODEL}]}
                self.answer(json.dumps(info).encode(), Content_Type="application/json")
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_absent_is_downloaded_when_asked_for(
    work: Repository,
    cache: Path,
    hub_server: tuple[str, list[tuple[str, str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    endpoint, asked = hub_server
    work.commit("as published", base=SOURCE)
    shutil.rmtree(cache)
    work.store.lenders.close()
    work.environment = replace(work.environment, offline=False, hub_endpoint=endpoint)
    assert fetch_sources(work) == {SOURCE: 1}
    fetched = [token for command, path, token in asked if command == "GET" and "resolve" in path]
    assert fetched == ["Bearer hf_of_the_user"]
    report = fsck(work)
    assert report.is_sound and not report.absent
    with pytest.raises(NothingToDo):
        fetch_sources(work)


def test_a_branch_is_looked_up_and_its_commit_recorded(
    tmp_path: Path, work: Repository, hub_server: tuple[str, list[tuple[str, str, str]]]
) -> None:
    pytest.importorskip("huggingface_hub")
    work.environment = replace(work.environment, offline=False, hub_endpoint=hub_server[0])
    assert work.commit("as published", base="hf:acme/tiny@main").commit.trailers == {"base": SOURCE}
    assert [line.target for line in work.store.lenders.lines] == [SOURCE]
    work.environment = replace(work.environment, hub_endpoint="http://127.0.0.1:1")
    with pytest.raises(RemoteError, match="does not say which commit hf:acme/tiny@v2 is"):
        add(work, "hf:acme/tiny@v2")
