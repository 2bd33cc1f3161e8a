"""One tensor of a revision, looked at or written to a file without touching the others."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modelgit.errors import RepositoryError, UsageError, did_you_mean
from modelgit.objects import TensorEntry, numpy_code
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model
from modelgit.repo.load import LazyTensor, model_state
from modelgit.store.durable import create, temporary_name, write_all

if TYPE_CHECKING:
    from modelgit.numerics.summary import TensorSummary
    from modelgit.repo.repository import Repository

__all__ = ["Edges", "FoundTensor", "edges", "find_tensor", "list_tensors", "save", "summary", "values"]

_EDGE = 3  # rows and values shown at either end
_RAW_SUFFIXES = (".bin", ".raw")


class FoundTensor(NamedTuple):
    """A tensor and the model that it belongs to."""

    model: str
    tensor: LazyTensor


class Edges(NamedTuple):
    """The beginning and the end of the last two dimensions: `rows` are (row, values), None where some are left out.

    `leading` are the indices of the dimensions before those, all 0.
    """

    leading: tuple[int, ...]
    rows: list[tuple[int, list[Any]]]


def list_tensors(repo: Repository, revision: str, *, model: str | None = None) -> list[tuple[str, TensorEntry]]:
    """(model, tensor) for all tensors of a revision, or of one model; the entry's name is the logical one."""
    import msgspec

    manifest = repo.manifest_of(repo.resolve(revision))
    chosen = manifest.models if model is None else (find_model(manifest, model),)
    return [
        (entry.path, msgspec.structs.replace(tensor, name=name))
        for entry in chosen
        for name, tensor in model_state(repo, manifest, entry).entries.items()
    ]


def find_tensor(repo: Repository, revision: str, name: str, *, model: str | None = None) -> FoundTensor:
    """The tensor called `name`, or `MODEL:NAME`, of a revision.

    Raises UsageError with the nearest name when there is none, and with the models when several have one.
    """
    listed = list_tensors(repo, revision, model=model)
    found = [item for item in listed if item[1].name == name] or [
        item for item in listed if f"{item[0]}:{item[1].name}" == name
    ]
    if len(found) > 1:
        models = ", ".join(path for path, _ in found)
        raise UsageError(f"{len(found)} models have a tensor `{name}`: {models}", hint="say which with --model PATH")
    if found:
        path, entry = found[0]
        return FoundTensor(path, repo.load(revision, model=path)[entry.name])
    where, only = (revision, "") if model is None else (f"{model} of {revision}", f" --model {shlex.quote(model)}")
    raise UsageError(
        f"no tensor `{name}` in {where}{did_you_mean(name, {entry.name for _, entry in listed})}",
        hint=f"`mgit cat-tensor {revision}{only}` lists the tensors",
    )


def summary(tensor: LazyTensor, *, progress: Progress = SILENT) -> TensorSummary | None:
    """Read the tensor once and say what is in it; None for packed types and blocks, which have no values."""
    from modelgit.numerics.floats import has_float_values
    from modelgit.numerics.summary import TensorSummary, summarise

    if not has_float_values(tensor.spec.dtype):
        return None
    total = TensorSummary()
    progress.start("read", tensor.size_bytes)
    for chunk in tensor.chunks():
        progress.check()
        total = total.merge(summarise(chunk, tensor.spec.dtype))
        progress.advance("read", len(chunk))
    progress.finish("read")
    return total


def values(tensor: LazyTensor) -> list[Any]:
    """The elements in order, flat: numbers of Python, hexadecimal bytes where there are no numbers."""
    from modelgit.numerics.floats import has_float_values

    if not has_float_values(tensor.spec.dtype):
        return [f"{byte:02x}" for byte in tensor.raw()]
    narrow = tensor.spec.dtype == "BF16" or tensor.spec.dtype.startswith("F8")
    array = tensor.float32() if narrow else tensor.numpy()
    found: list[Any] = array.reshape(-1).tolist()
    return found


def edges(tensor: LazyTensor) -> Edges:
    """What a person wants to see first; reads only that, whatever the size of the tensor."""
    leading = (0,) * max(0, len(tensor.shape) - 2)
    if tensor.spec.kind.bits % 8 or tensor.spec.kind.is_block:
        return Edges(leading, [(0, [f"{byte:02x}" for byte in tensor.raw(0, min(32, tensor.size_bytes))])])
    if 0 in tensor.shape:
        return Edges(leading, [])
    if not tensor.shape:
        return Edges(leading, [(0, values(tensor))])
    matrix = tensor[leading]
    if len(matrix.shape) == 1:
        return Edges(leading, [(0, _edge_values(matrix))])
    count = len(matrix)
    picked = range(count) if count <= 2 * _EDGE + 1 else (*range(_EDGE), *range(count - _EDGE, count))
    return Edges(leading, [(row, _edge_values(matrix[row])) for row in picked])


def _edge_values(row: LazyTensor) -> list[Any]:
    if len(row) <= 2 * _EDGE + 1:
        return values(row)
    return [*values(row[:_EDGE]), None, *values(row[-_EDGE:])]


def save(tensor: LazyTensor, path: Path, *, progress: Progress = SILENT) -> None:
    """Write the tensor to `path`, by its suffix: `.npy`, `.safetensors`, or `.bin`/`.raw` for its raw bytes.

    An existing file is replaced, at the end and at once; memory is a window.  Raises UsageError for another suffix and
    for a dtype that the format lacks, RepositoryError when the disk refuses.
    """
    head = _head(tensor, path)
    temporary = path.with_name(temporary_name())
    progress.start("write", tensor.size_bytes)
    try:
        descriptor = create(temporary)
        try:
            write_all(descriptor, head)
            for chunk in tensor.chunks():
                progress.check()
                write_all(descriptor, chunk)
                progress.advance("write", len(chunk))
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise RepositoryError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    progress.finish("write")


def _head(tensor: LazyTensor, path: Path) -> bytes:
    suffix, spec = path.suffix.lower(), tensor.spec
    if suffix in _RAW_SUFFIXES:
        return b""
    if suffix == ".safetensors":
        from modelgit.formats.safetensors_write import build_header

        if spec.kind.is_block:
            raise UsageError(
                f"a safetensors file has no {spec.dtype} ({tensor.name})", hint="write its raw bytes to a .bin file"
            )
        return build_header([(tensor.name, spec)], None)
    if suffix == ".npy":
        import numpy as np

        code = numpy_code(spec.dtype)
        if code is None:
            raise UsageError(
                f"a .npy file has no {spec.dtype} ({tensor.name})",
                hint="write a .safetensors file, or raw bytes to .bin",
            )
        head = io.BytesIO()
        shape = {"descr": np.lib.format.dtype_to_descr(np.dtype(code)), "fortran_order": False, "shape": spec.shape}
        np.lib.format.write_array_header_1_0(head, shape)
        return head.getvalue()
    raise UsageError(
        f"{path.name} has no suffix that says how to write a tensor", hint="known: .npy, .safetensors, .bin (raw bytes)"
    )
