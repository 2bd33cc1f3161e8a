"""`mgit cat-tensor`."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from modelgit.cli._complete import complete_revision
from modelgit.cli._format import size
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Part, bold, columns, dim
from modelgit.cli._session import Session
from modelgit.errors import UnknownRevision, UsageError
from modelgit.reporting.wording import amount

if TYPE_CHECKING:
    from modelgit.numerics.summary import TensorSummary
    from modelgit.repo.history.cat import Edges, FoundTensor
    from modelgit.repo.load import LazyTensor

__all__ = ["cat_tensor", "row_range"]

_MOST_VALUES = 4096  # of a JSON document
_RANGE = re.compile(r"(-?[0-9]*):(-?[0-9]*)\Z|(-?[0-9]+)\Z")


@command("cat-tensor", example="mgit cat-tensor main encoder.layer.0.output.dense.weight --rows 0:4")
@click.argument("revision", shell_complete=complete_revision, metavar="REV")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--model", metavar="PATH", help="The model that has the tensor, if several have one of this name.")
@click.option("--rows", metavar="A:B", help="Only these rows of the first dimension (B excluded; -2: is the last two).")
@click.option("--stats", is_flag=True, help="Minimum, maximum, mean and so on; reads the whole tensor, or all rows.")
@click.option("--verify", is_flag=True, help="Check what is read against the tensor's id, not only its checksums.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write a .npy, .safetensors or .bin (raw bytes) file; - is stdout, raw.",
)
@json_option
@pass_session
def cat_tensor(
    session: Session,
    revision: str,
    name: str | None,
    model: str | None,
    rows: str | None,
    stats: bool,
    verify: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Look at one tensor of a revision, reading nothing of the others; without NAME, list the tensors.

    Shows the first and last rows and values, and reads only these.
    """
    from modelgit.repo.history.cat import edges, find_tensor, save, summary, values

    if name is None:
        _list(session, revision, model, as_json)
        return
    found = find_tensor(session.repository, revision, name, model=model)
    first = 0
    tensor = found.tensor
    if rows is not None:
        first, stop = row_range(tensor, rows)
        tensor = tensor.rows(first, stop)
    if verify:
        tensor = tensor.verified()
    if output == "-":
        session.output.binary(tensor.chunks())
        return
    if output is not None:
        path = session.path(output)
        save(tensor, path, progress=session.progress)
        session.output.say(f"Wrote {tensor.name} {_spec(tensor)} to {output}")
        return
    total = summary(tensor, progress=session.progress) if stats else None
    if as_json:
        shown = values(tensor) if tensor.spec.elements <= _MOST_VALUES else None
        session.output.json("mgit.cat-tensor/1", {**_fields(found, tensor), "stats": _stats(total), "values": shown})
        return
    session.output.line(bold(tensor.name), f"  {_spec(tensor)}  {size(tensor.size_bytes)}  ", dim(found.model))
    session.output.lines(_summary(total) if stats else _preview(tensor, edges(tensor), first))


def _list(session: Session, revision: str, model: str | None, as_json: bool) -> None:
    from modelgit.repo.history.cat import list_tensors

    try:
        found = list_tensors(session.repository, revision, model=model)
    except UnknownRevision:
        known = list_tensors(session.repository, "HEAD", model=model) if session.repository.head() else []
        if not any(revision in (item.name, f"{path}:{item.name}") for path, item in known):
            raise
        raise UsageError(
            f"`{revision}` is a tensor of HEAD, and a revision comes first",
            hint=f"`mgit cat-tensor HEAD {shlex.quote(revision)}`",
        ) from None
    if as_json:
        tensors = [
            {"model": path, "name": item.name, "dtype": item.spec.dtype, "shape": item.spec.shape, "id": str(item.id)}
            for path, item in found
        ]
        session.output.json("mgit.cat-tensor-list/1", {"tensors": tensors})
        return
    several = len({path for path, _ in found}) > 1
    session.output.hold()
    session.output.lines(
        columns(
            [
                [
                    item.name,
                    item.spec.dtype,
                    _shape(item.spec.shape),
                    size(item.spec.size_bytes),
                    dim(path if several else ""),
                ]
                for path, item in found
            ],
            right=(3,),
        )
    )
    session.output.release()


def row_range(tensor: LazyTensor, rows: str) -> tuple[int, int]:
    """The first row and the one behind the last of `A:B`, `A:`, `:B` or `A`; negative ones count from the end."""
    match = _RANGE.match(rows)
    if match is None:
        raise UsageError(f"--rows {rows} is no range of rows", hint="as in `--rows 10:20`, `--rows 5:` or `--rows=-3:`")
    if not tensor.shape:
        raise UsageError(
            f"{tensor.name} is a scalar and has no rows", hint="`mgit cat-tensor HEAD NAME` without rows shows it"
        )
    count = tensor.shape[0]
    first, last, only = match.groups()
    if only is not None:
        start = int(only) + (count if int(only) < 0 else 0)
        return start, start + 1
    ends = [int(text) if text.strip("-") else default for text, default in ((first, 0), (last, count))]
    start, stop = (end + count if end < 0 else end for end in ends)
    return start, stop


def _fields(found: FoundTensor, tensor: LazyTensor) -> dict[str, Any]:
    return {
        "model": found.model,
        "name": tensor.name,
        "id": str(tensor.entry.id),
        "dtype": tensor.spec.dtype,
        "shape": tensor.shape,
        "tensor_shape": tensor.entry.spec.shape,
        "bytes": tensor.size_bytes,
    }


def _stats(total: TensorSummary | None) -> dict[str, Any] | None:
    if total is None:
        return None
    return {
        "values": total.values,
        "zeros": total.zeros,
        "nans": total.nans,
        "infinities": total.infinities,
        "min": total.minimum,
        "max": total.maximum,
        "mean": total.mean,
        "std": total.std,
        "norm": total.norm,
    }


def _summary(total: TensorSummary | None) -> list[list[Part]]:
    if total is None:
        return [["  ", dim("no values of their own: packed elements or blocks are not taken apart")]]
    found = _stats(total) or {}
    rows: list[list[Part]] = []
    for key, value in found.items():
        is_count = key in ("values", "zeros", "nans", "infinities")
        rows.append([key, amount(value) if is_count else _number(value)])
    return columns(rows, indent=2)


def _preview(tensor: LazyTensor, found: Edges, first: int) -> list[list[Part]]:
    if not found.rows:
        return [["  ", dim("no elements")]]
    depth = len(found.leading)
    title: list[list[Part]] = [["  ", dim(f"[{', '.join(['0'] * depth)}, :, :]")]] if depth else []
    table: list[list[Part]] = []
    is_matrix = len(tensor.shape) > 1 and not isinstance(found.rows[0][1][0], str)
    previous = -1
    for row, items in found.rows:
        if row != previous + 1:
            table.append([dim("..."), ""])
        previous = row
        label = dim(str(row + first if depth == 0 else row) if is_matrix else "")
        table.append([label, *(_number(item) for item in items)])
    width = max(len(cells) for cells in table)
    return [*title, *columns(table, indent=2, right=range(width))]


def _number(value: Any) -> str:
    if value is None:
        return "..."
    return f"{value:.6g}" if isinstance(value, (float, complex)) else str(value)


def _spec(tensor: LazyTensor) -> str:
    return f"{tensor.spec.dtype} {_shape(tensor.shape)}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
