from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from modelgit.formats.safetensors_write import build_header
from modelgit.objects import (
    BlobId,
    Commit,
    CommitId,
    ContentId,
    EvalRecord,
    EvalRecordId,
    FileContent,
    FileEntry,
    Literal,
    Manifest,
    ManifestId,
    Mask,
    MaskId,
    MaskRegion,
    ModelEntry,
    Patch,
    PatchId,
    Signature,
    TensorEntry,
    TensorId,
    TensorRef,
    TensorSpec,
    Verdict,
    View,
)
from modelgit.patching.encode import TensorWriter
from modelgit.patching.jobs import BlobSource, StoreJob
from modelgit.patching.materialise import TensorReader
from modelgit.remotes.base import RefUpdate, Transport
from modelgit.remotes.directory import DirectoryTransport, initialise_bare
from modelgit.remotes.sync import FetchResult, PushResult, fetch, push
from modelgit.remotes.updates import advertised_refs
from modelgit.store.fs import FileSystemStore
from modelgit.store.metadata import read_record, write_record
from modelgit.store.oplog import OperationLog
from modelgit.store.publish import publish
from modelgit.store.root import FileRoot

Weights = dict[str, np.ndarray]


class Side:
    """One repository below the level of files: commits are made from arrays."""

    def __init__(self, path: Path, name: str) -> None:
        if not path.exists():
            initialise_bare(path, author=name)
        self.path = path
        self.name = name
        self.store = FileSystemStore(path)
        self.roots = FileRoot(path)
        self.operations = OperationLog(path)

    @property
    def refs(self) -> dict[str, CommitId]:
        return self.operations.read(self.roots.read().root.operation).view.refs

    def set_refs(self, **refs: CommitId) -> None:
        def change(view: View) -> View:
            return View(
                refs={**view.refs, **{f"heads/{name}": commit for name, commit in refs.items()}}, branch=view.branch
            )

        publish(self.roots, self.operations, self.store, change, description="test", author=self.name)

    def commit(
        self,
        weights: Weights,
        *,
        parents: Sequence[CommitId] = (),
        branch: str | None = "main",
        path: str = "model.safetensors",
        with_mask: bool = False,
        time_s: int = 1000,
    ) -> CommitId:
        session = self.store.session(epoch=self.roots.read().root.epoch)
        before: dict[str, TensorId] = {}
        if parents:
            record = read_record(self.store, parents[0], Commit)
            for entry in read_record(self.store, record.manifest, Manifest).files:
                content = read_record(self.store, entry.digest, FileContent)
                before.update({tensor.name: tensor.id for tensor in content.tensors})
        text = build_header(
            [(name, TensorSpec(dtype="F32", shape=array.shape)) for name, array in weights.items()], None
        )
        jobs = [StoreJob("header", BlobSource(text), None, len(text))]
        specs = []
        for name, array in weights.items():
            specs.append(TensorSpec(dtype="F32", shape=array.shape))
            data = array.astype("<f4").tobytes()
            jobs.append(StoreJob(name, BlobSource(data), specs[-1], len(data), before.get(name)))
        stored = list(TensorWriter(session, threads=1).store(jobs))
        tensors = tuple(
            TensorEntry(name=job.name, spec=spec, id=item.id)
            for job, spec, item in zip(jobs[1:], specs, stored[1:], strict=True)
            if isinstance(item.id, TensorId)
        )
        header = stored[0].id
        assert isinstance(header, BlobId)
        segments = (Literal(blob=header, length=len(text)), *(TensorRef(index=i) for i in range(len(tensors))))
        content_id = write_record(
            session, ContentId, FileContent(format="safetensors", segments=segments, tensors=tensors)
        )
        size = len(text) + sum(job.size for job in jobs[1:])
        manifest = Manifest(
            files=(FileEntry(path=path, size=size, digest=content_id),),
            models=(ModelEntry(path=path, layout="file", weights=(path,)),),
        )
        masks: tuple[MaskId, ...] = ()
        if with_mask:
            positions = next(TensorWriter(session, threads=1).store([StoreJob("p", BlobSource(b"\1\2\3"), None, 3)]))
            assert isinstance(positions.id, BlobId)
            region = MaskRegion(name=tensors[0].name, spec=specs[0], count=3, positions=positions.id)
            masks = (write_record(session, MaskId, Mask(model=path, regions=(region,), origin="test")),)
        manifest_id = write_record(session, ManifestId, manifest)
        verdict = EvalRecord(
            candidate=manifest_id, baseline=None, suite="s", suite_id="1", results=(), decision="pass", seconds=0.0
        )
        who = Signature(name=self.name, mail="x@example.org", time_s=time_s + len(parents))
        commit_id = write_record(
            session,
            CommitId,
            Commit(
                parents=tuple(parents),
                manifest=manifest_id,
                patch=write_record(session, PatchId, Patch(base=None, masks=masks)),
                author=who,
                committer=who,
                message="a commit",
                verdicts=tuple(
                    Verdict(
                        suite=suite,
                        decision=verdict.decision,
                        record=write_record(session, EvalRecordId, msgspec.structs.replace(verdict, suite=suite)),
                    )
                    for suite in ("builtin", "smoke")  # a commit may be let in by several suites
                ),
            ),
        )
        session.seal()
        if branch is not None:
            self.set_refs(**{branch: commit_id})
        return commit_id

    def weights(self, commit: CommitId) -> Weights:
        record = read_record(self.store, commit, Commit)
        reader = TensorReader(self.store)
        found = {}
        for entry in read_record(self.store, record.manifest, Manifest).files:
            for tensor in read_record(self.store, entry.digest, FileContent).tensors:
                reader.verify(tensor.id, tensor.spec)
                raw = reader.read(tensor.id, 0, tensor.spec.size_bytes)
                found[tensor.name] = np.frombuffer(raw, "<f4").reshape(tensor.spec.shape)
        return found

    def push(self, transport: Transport, branch: str = "main", **options: object) -> PushResult:
        """Push a branch as it is here; `force` and `expected` go into the update."""
        update = RefUpdate(f"heads/{branch}", self.refs[f"heads/{branch}"], **options)  # type: ignore[arg-type]
        return push(self.store, transport, [update], author=self.name)

    def fetch(self, transport: Transport) -> FetchResult:
        """Fetch every branch to `remotes/origin/...`."""
        session = self.store.session(epoch=self.roots.read().root.epoch)
        refs = advertised_refs(transport.root(), remote="origin")
        result = fetch(session, transport, list(refs.values()), have=list(self.refs.values()))

        def change(view: View) -> View:
            moved = {f"remotes/origin/{name.split('/', 1)[1]}": commit for name, commit in refs.items()}
            return View(refs={**view.refs, **moved}, branch=view.branch)

        publish(
            self.roots,
            self.operations,
            self.store,
            change,
            description="fetch",
            author=self.name,
            session=result.session,
        )
        return result

    def files(self) -> set[str]:
        """Everything in the directory, except the lookup caches."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


@pytest.fixture
def make_side(tmp_path: Path) -> Iterator[Callable[[str], Side]]:
    sides = []

    def make(name: str) -> Side:
        sides.append(Side(tmp_path / name, name))
        return sides[-1]

    yield make
    for side in sides:
        side.store.close()


@pytest.fixture
def alice(make_side: Callable[[str], Side]) -> Side:
    return make_side("alice")


@pytest.fixture
def bob(make_side: Callable[[str], Side]) -> Side:
    return make_side("bob")


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[DirectoryTransport]:
    transport = DirectoryTransport(tmp_path / "origin.mgit")
    yield transport
    transport.close()


@pytest.fixture
def weights() -> Weights:
    random = np.random.default_rng(7)
    return {f"layer.{i}.weight": random.standard_normal((128, 96)).astype(np.float32) for i in range(4)}


@pytest.fixture
def tuned(weights: Weights) -> Weights:
    """One tensor with a few changed values."""
    changed = {name: array.copy() for name, array in weights.items()}
    changed["layer.2.weight"][5, :40] += np.float32(0.125)
    return changed
