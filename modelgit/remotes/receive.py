"""Taking in what comes from elsewhere: copied record by record, checked object by object, then made visible."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from modelgit.errors import ExternalAbsentError, IntegrityError, RemoteError
from modelgit.objects import BlobId, ContentId, FileContent, Literal, ObjectId, TensorId, id_class
from modelgit.parallel import Workers
from modelgit.patching.files import check_table
from modelgit.patching.materialise import TensorReader
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import Needed, Transport
from modelgit.remotes.selection import select_records
from modelgit.store.base import Located, ObjectStore, RecordWriter, is_external, read_external_record
from modelgit.store.metadata import MAX_METADATA_BYTES, read_metadata, read_record
from modelgit.store.session import PackSession

__all__ = ["CHUNK_BYTES", "copy_records", "receive_objects", "verify_objects"]

CHUNK_BYTES = 4 << 20

ReadPart = Callable[[Located, int, int], bytes]


def copy_records(
    read: ReadPart, records: Sequence[Located], writer: RecordWriter, *, task: str, progress: Progress = SILENT
) -> int:
    """Append `records`, unchanged, to `writer`; returns the bytes copied.

    Memory is bounded by one chunk and one header.
    """
    progress.start(task, sum(record.length for record in records))
    for record in records:
        progress.check()
        kind = id_class(record.kind)
        body = record.payload_bytes
        writer.append(
            kind(record.digest),
            start=record.start,
            stop=record.stop,
            total=record.total,
            header=read(record, body, record.length),
            payload=_chunks(read, record, body, task, progress),
            base=None if record.base is None else kind(record.base),
            positions=None if record.positions is None else BlobId(record.positions),
        )
        progress.advance(task, record.header)
    progress.finish(task)
    return sum(record.length for record in records)


def receive_objects(
    transport: Transport,
    session: PackSession,
    needed: Iterable[Needed],
    *,
    where: str,
    threads: int,
    progress: Progress = SILENT,
) -> tuple[int, int]:
    """Bring the objects of `needed` that are not here into `session`, each checked; returns how many, and their bytes.

    Those that are here are relied on.  Raises RemoteError when the remote fails or lacks one, IntegrityError for one
    that is not what it should be; the caller seals the session or gives it up.
    """

    def missing(ids: Collection[ObjectId]) -> set[ObjectId]:
        return {object_id for object_id in ids if not session.has(object_id)}

    listed = {item.id: item for item in needed}
    absent = missing(listed)
    session.relied_on |= listed.keys() - absent
    wanted = [item for item in listed.values() if item.id in absent]
    selection = select_records(transport.locate, wanted, missing, where=where, lacking=RemoteError)
    size = copy_records(transport.fetch, selection.records, session, task="receive", progress=progress)
    verify_objects(session, selection.items, threads=threads, where=where, progress=progress)
    return len(selection.items), size


def _chunks(read: ReadPart, record: Located, body: int, task: str, progress: Progress) -> Iterator[bytes]:
    for start in range(0, body, CHUNK_BYTES):
        stop = min(start + CHUNK_BYTES, body)
        yield read(record, start, stop)
        progress.advance(task, stop - start)
        progress.check()


def verify_objects(
    store: ObjectStore, items: Sequence[Needed], *, threads: int, where: str, progress: Progress = SILENT
) -> None:
    """Rebuild every object from its records in `store` and compare it with its id, `threads` at a time.

    Raises IntegrityError, naming the first object that differs and `where` its bytes came from.
    """
    reader = TensorReader(store)
    progress.start("verify", len(items), unit="objects")

    def verify(item: Needed) -> None:
        try:
            _verify(store, reader, item)
        except ExternalAbsentError:
            raise  # nobody sent anything wrong: a base is not on this machine
        except IntegrityError as error:
            raise IntegrityError(
                f"refuses {item.id.KIND} {item.id} ({item.name}) from {where}: {error.message}",
                hint=f"`mgit fsck` shows what is damaged in {where}; nothing was recorded",
            ) from error

    with Workers(threads, name="mgit-verify") as workers:
        for _ in workers.ordered(verify, items, ahead=4 * threads):
            progress.advance("verify", 1)
            progress.check()
    progress.finish("verify")


def _verify(store: ObjectStore, reader: TensorReader, item: Needed) -> None:
    object_id: ObjectId = item.id
    if isinstance(object_id, TensorId | BlobId):
        size = reader.size(object_id)
        if item.size is not None and size != item.size:
            raise IntegrityError(f"it has {size} bytes, not {item.size}")
        if isinstance(object_id, TensorId) and item.spec is None:
            raise IntegrityError("no file says which dtype and shape it has")
        records = [record for record in store.locate(object_id) if not record.is_leaf_table]
        if records and all(is_external(record) for record in records):
            # That it has the right leaves is proved without the bytes, which are compared with them when they are read.
            for record in records:
                external, _ = read_external_record(store.read_part(record, 0, record.length), record)
                if external.spec != item.spec:
                    raise IntegrityError("it is recorded with another dtype or shape")
            return
        reader.verify(object_id, item.spec if isinstance(object_id, TensorId) else None)
        return
    found = store.locate(object_id)
    if any(record.total > MAX_METADATA_BYTES for record in found):
        raise IntegrityError(f"it claims more than {MAX_METADATA_BYTES} bytes")
    if isinstance(object_id, ContentId):
        content = read_record(store, object_id, FileContent)
        if not item.whole and not _has_all(store, content):
            return  # nobody can see the file, so that nobody can be misled about it
        check_table(reader, content, shown=item.name)
        return
    read_metadata(store, object_id)


def _has_all(store: ObjectStore, content: FileContent) -> bool:
    blobs = (segment.blob for segment in content.segments if isinstance(segment, Literal))
    return all(store.has(tensor.id) for tensor in content.tensors) and all(map(store.has, blobs))
