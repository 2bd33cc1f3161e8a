"""`import` and `export`: the tensors of a file or of a commit, written as a safetensors file or a PyTorch checkpoint.

Tensors are streamed: a window at a time, whatever their size.  Nothing of the source is executed.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import RepositoryError, UsageError
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.formats.lookalikes import TORCH_SUFFIXES
from modelgit.formats.safetensors_write import build_header
from modelgit.formats.torch_write import CRC_OFFSET, central_directory, local_header, pickle_state, plan_archive
from modelgit.objects import STORAGE_SUFFIX, TensorSpec, TensorView
from modelgit.patching.base import windows
from modelgit.patching.views import ViewBytes
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import tensors_of, views_of
from modelgit.store.durable import new_file, publish, temporary_name, write_all
from modelgit.worktree.content import FileRange

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = ["Outgoing", "Written", "export_model", "import_file"]

_SAFETENSORS = frozenset({".safetensors", ".sft"})
_METADATA_TENSOR = "__metadata__"

Read = Callable[[int, int], bytes | bytearray | memoryview]


class Outgoing(NamedTuple):
    """A tensor to be written: `read(start, stop)` gives its raw bytes, `tied_to` names the tensor that it shares."""

    name: str
    spec: TensorSpec
    read: Read
    tied_to: str | None = None


class Written(NamedTuple):
    """What was written: `tied` maps names to the tensors that they share, `elements` counts values by dtype."""

    path: Path
    tensors: int
    size_bytes: int
    tied: dict[str, str]
    elements: dict[str, int]


def import_file(
    source: Path,
    target: Path,
    *,
    shown: str,
    under: str = "",
    untie: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Write the tensors of the checkpoint `source`, which messages call `shown`, to `target`.

    The suffix of `target` says in which format.  `under` takes only the tensors whose names begin with it and a dot,
    and leaves that off.  Tied tensors stay tied, unless `untie` writes each out in full: in a safetensors file they
    are stored once, under the first name, and `__metadata__` has the others, as `safetensors.torch.save_model` does.
    Raises UsageError when there are no tensors or the target exists, CheckpointFormatError for a malformed source,
    RepositoryError when it changes meanwhile or the disk refuses.
    """
    with FileReader(source, shown=shown) as file:
        scanned = scan_reader(file)
        place = {item.tensor: item for item in scanned.ranges if item.tensor is not None}
        stored: list[tuple[str, TensorSpec, Read]] = [
            (tensor.name, tensor.spec, FileRange(file, place[index].offset, tensor.spec).read)
            for index, tensor in enumerate(scanned.tensors)
        ]
        if not stored:
            reason = f": {scanned.note}" if scanned.note else ""
            raise UsageError(f"{shown} has no tensors that can be read{reason}")
        tensors = list(_logical(stored, scanned.views))
        tensors += _ties_in_header(file, scanned.format, scanned.ranges[0].length, tensors)
        written = _write(target, tensors, shown=shown, under=under, untie=untie, overwrite=overwrite, progress=progress)
        if not file.is_unchanged():
            with contextlib.suppress(OSError):
                target.unlink()
            raise RepositoryError(f"{shown} changed while it was being read", hint="try again when nothing writes it")
        return written


def export_model(
    repo: Repository,
    revision: str,
    target: Path,
    *,
    model: str | None = None,
    under: str = "",
    untie: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Write the tensors of a model of a revision to one file; the options are those of `import_file`.

    Raises IntegrityError when stored bytes are damaged.
    """
    from functools import partial

    from modelgit.repo.contents import find_model

    manifest = repo.manifest_of(repo.resolve(revision))
    entry = find_model(manifest, model)
    entries = tensors_of(repo, manifest, entry)
    reader = repo.reader()
    names = list(entries)
    numbers = {entries[name].id: number for number, name in enumerate(names)}
    stored: list[tuple[str, TensorSpec, Read]] = [
        (name, entries[name].spec, partial(reader.read, entries[name].id)) for name in names
    ]
    views = [
        TensorView(
            name=name, tensor=numbers[base.id], spec=view.spec or base.spec, offset=view.offset, strides=view.strides
        )
        for name, (base, view) in views_of(repo, manifest, entry).items()
    ]
    shown = f"{revision}:{entry.path}"
    return _write(
        target,
        list(_logical(stored, views)),
        shown=shown,
        under=under,
        untie=untie,
        overwrite=overwrite,
        progress=progress,
    )


def _logical(stored: Sequence[tuple[str, TensorSpec, Read]], views: Sequence[TensorView]) -> Iterator[Outgoing]:
    """Every tensor that a model has by name, views read as if they were stored."""
    shown = {view.tensor for view in views}
    for number, (name, spec, read) in enumerate(stored):
        if number not in shown or not name.endswith(STORAGE_SUFFIX):
            yield Outgoing(name, spec, read)
    for view in views:
        name, base, read = stored[view.tensor]
        spec = view.spec or base
        if spec == base and not view.offset and not view.strides and not name.endswith(STORAGE_SUFFIX):
            yield Outgoing(view.name, spec, read, tied_to=name)
        else:
            yield Outgoing(view.name, spec, ViewBytes(read, view, base).read)


def _ties_in_header(file: FileReader, kind: str, length: int, tensors: Sequence[Outgoing]) -> list[Outgoing]:
    """Ties that a safetensors file names in its `__metadata__`."""
    if kind != "safetensors":
        return []
    from modelgit.formats.safetensors_write import read_metadata

    held = {tensor.name: tensor for tensor in tensors}
    return [
        held[kept]._replace(name=name, tied_to=kept)
        for name, kept in (read_metadata(file.read(0, length)) or {}).items()
        if kept in held and name not in held
    ]


def _select(tensors: Sequence[Outgoing], under: str, shown: str) -> list[Outgoing]:
    prefix = under.rstrip(".") + "." if under else ""
    found = [tensor for tensor in tensors if tensor.name.startswith(prefix) and tensor.name != prefix]
    if not found:
        first = sorted({tensor.name.partition(".")[0] for tensor in tensors})
        raise UsageError(f"{shown} has no tensors under `{under}`", hint=f"there are: {', '.join(first[:8])}")
    names = {tensor.name for tensor in found}
    kept = []
    for tensor in found:
        tied = tensor.tied_to if tensor.tied_to in names else None
        kept.append(
            tensor._replace(name=tensor.name[len(prefix) :], tied_to=None if tied is None else tied[len(prefix) :])
        )
    return kept


def _write(
    target: Path,
    tensors: Sequence[Outgoing],
    *,
    shown: str,
    under: str,
    untie: bool,
    overwrite: bool,
    progress: Progress,
) -> Written:
    suffix = target.suffix.lower()
    if suffix not in _SAFETENSORS and suffix not in TORCH_SUFFIXES:
        raise UsageError(
            f"no format has the suffix `{target.suffix}`", hint="name it `OUT.safetensors`, or `OUT.pt` for PyTorch"
        )
    if target.exists() and not overwrite:
        raise UsageError(f"{target.name} exists already", hint="`--force` overwrites it")
    chosen = _select(tensors, under, shown)
    for tensor in chosen:
        if tensor.spec.kind.is_block:
            raise UsageError(
                f"{shown} holds tensors in blocks of the type {tensor.spec.dtype}, which only GGUF has",
                hint="convert it with the tools of llama.cpp",
            )
    if untie:
        chosen = [tensor._replace(tied_to=None) for tensor in chosen]
    tied = {tensor.name: tensor.tied_to for tensor in chosen if tensor.tied_to is not None}
    # Larger elements first, as safetensors writes them, so that every tensor is aligned.
    single = sorted((t for t in chosen if t.tied_to is None), key=lambda t: -t.spec.kind.word_bytes)
    progress.start("write", sum(tensor.spec.size_bytes for tensor in single))
    temporary = target.with_name(f".{target.name[:80]}.{temporary_name()}")
    try:
        with new_file(temporary) as descriptor:
            if suffix in _SAFETENSORS:
                _write_safetensors(descriptor, single, tied, progress)
            else:
                _write_torch(descriptor, chosen, single, progress)
            size = os.fstat(descriptor).st_size
        publish(temporary, target)
    except OSError as error:
        raise RepositoryError(f"cannot write {target}: {error.strerror or error}", hint="free some space") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    progress.finish("write")
    elements: dict[str, int] = {}
    for tensor in single:
        elements[tensor.spec.dtype] = elements.get(tensor.spec.dtype, 0) + tensor.spec.elements
    return Written(target, len(chosen), size, tied, elements)


def _copy(descriptor: int, tensor: Outgoing, progress: Progress) -> int:
    """Write the bytes of a tensor; returns their CRC-32."""
    checksum = 0
    for start, stop in windows(tensor.spec.size_bytes):
        progress.check()
        data = tensor.read(start, stop)
        checksum = zlib.crc32(data, checksum)
        write_all(descriptor, data)
        progress.advance("write", stop - start)
    return checksum


def _write_safetensors(descriptor: int, tensors: Sequence[Outgoing], tied: dict[str, str], progress: Progress) -> None:
    for tensor in tensors:
        if tensor.name == _METADATA_TENSOR:
            raise UsageError(f"no tensor of a safetensors file may be called {_METADATA_TENSOR}")
    # `format` is what transformers asks for before it takes a file.
    header = build_header([(tensor.name, tensor.spec) for tensor in tensors], {"format": "pt", **tied})
    write_all(descriptor, header)
    for tensor in tensors:
        _copy(descriptor, tensor, progress)


def _write_torch(descriptor: int, tensors: Sequence[Outgoing], single: Sequence[Outgoing], progress: Progress) -> None:
    numbers = {tensor.name: number for number, tensor in enumerate(single)}
    pickle = pickle_state([(t.name, t.spec, numbers[t.tied_to or t.name]) for t in tensors])
    plan = plan_archive(pickle, [tensor.spec.size_bytes for tensor in single])
    checksums: dict[str, int] = {}
    storages = iter(single)
    for member in plan.members:
        header = local_header(member)
        write_all(descriptor, header)
        if member.data is not None:
            write_all(descriptor, member.data)
            checksum = zlib.crc32(member.data)
        else:
            checksum = _copy(descriptor, next(storages), progress)
        checksums[member.name] = checksum
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, member.header + CRC_OFFSET, os.SEEK_SET)
        write_all(descriptor, checksum.to_bytes(4, "little"))
        os.lseek(descriptor, end, os.SEEK_SET)
    write_all(descriptor, central_directory(plan, checksums))
