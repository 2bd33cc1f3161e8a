"""What a tracked path is: a Hugging Face checkpoint, a PEFT adapter, one checkpoint file, or plain files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal as OneOf
from typing import NamedTuple

import msgspec

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import FileReader, scan_reader
from modelgit.formats.listing import Listing, list_files
from modelgit.formats.lookalikes import is_weight_name

__all__ = ["LAYOUT_TITLES", "LayoutName", "TrackedModel", "describe"]

LayoutName = OneOf["hf-checkpoint", "peft-adapter", "safetensors", "directory", "file"]

LAYOUT_TITLES: Mapping[LayoutName, str] = {
    "hf-checkpoint": "Hugging Face checkpoint",
    "peft-adapter": "PEFT adapter",
    "safetensors": "safetensors file",
    "directory": "directory",
    "file": "file",
}
_INDEX = ".safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000


class TrackedModel(NamedTuple):
    """A tracked path as it lies on disk; paths are relative to the repository root, with forward slashes, sorted.

    `weights` are the files whose tensors form the model's one name space.  `apart` are files with tensors that do
    not belong to it, because they repeat its names (another precision, another copy); `opaque` are weight files that
    are recorded byte for byte without being read (pickles).  Both are among `files`, like everything recorded.
    `elements` counts the values of each dtype, most frequent dtype first.
    """

    path: str
    layout: LayoutName
    files: tuple[str, ...]
    weights: tuple[str, ...]
    apart: tuple[str, ...]
    opaque: tuple[str, ...]
    ignored: tuple[str, ...]
    patterns: tuple[str, ...]
    links: tuple[str, ...]
    special: tuple[str, ...]
    tensors: int
    elements: tuple[tuple[str, int], ...]
    size_bytes: int
    weight_bytes: int

    @property
    def title(self) -> str:
        """The layout in words, as in "Hugging Face checkpoint"."""
        return LAYOUT_TITLES[self.layout]

    @property
    def parameters(self) -> int:
        """Number of values in all tensors of the model."""
        return sum(count for _, count in self.elements)

    @property
    def dtypes(self) -> str:
        """The dtypes that occur, most values first: "BF16", or "BF16, F32"; empty without tensors."""
        return ", ".join(name for name, _ in self.elements)

    @property
    def shards(self) -> int:
        """Number of files that hold the model's tensors."""
        return len(self.weights)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _scan_all(root: Path, listing: Listing) -> dict[str, ScannedFile]:
    scanned: dict[str, ScannedFile] = {}
    for path in listing.files:
        with FileReader(root / path, shown=path) as file:
            scanned[path] = scan_reader(file)
    return scanned


def _names(file: ScannedFile) -> set[str]:
    return {tensor.name for tensor in file.tensors}


def _why_missing(listing: Listing, shard: str) -> str:
    if shard in listing.links:
        return "a symbolic link, which is not followed"
    if shard in listing.ignored:
        return "left out by an ignore pattern"
    return "missing"


def _check_index(root: Path, index: str, listing: Listing, scanned: Mapping[str, ScannedFile]) -> set[str]:
    """The shards that the index file `index` names, after it was found to agree with their headers."""
    with FileReader(root / index, shown=index) as file:
        if file.size > _MAX_INDEX_BYTES:
            raise CheckpointFormatError(f"{index} is too large for an index ({file.size} bytes)")
        data = file.read(0, file.size)
    try:
        weight_map = msgspec.json.decode(data, type=_Index).weight_map
    except (ValueError, RecursionError):
        raise CheckpointFormatError(
            f"{index} is not an index of shards: it has no `weight_map` from tensor names to file names",
            hint="save the model again with `save_pretrained`",
        ) from None
    directory = index.rpartition("/")[0]
    prefix = directory + "/" if directory else ""
    held: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        path = prefix + shard
        if path not in held:
            if path not in scanned:
                raise CheckpointFormatError(
                    f"{index} names the shard {shard[:100]!a}, which is {_why_missing(listing, path)}",
                    hint="download or save the whole checkpoint, then try again",
                )
            held[path] = _names(scanned[path])
        if name not in held[path]:
            raise CheckpointFormatError(
                f"{index} says that {shard} holds the tensor {name[:100]!a}, and its header does not",
                hint="shards and index are of different checkpoints: save or download both again",
            )
    return set(held)


def _choose_weights(
    base: str, layout: LayoutName, shards: Iterable[str], scanned: Mapping[str, ScannedFile]
) -> tuple[list[str], list[str]]:
    """Split the files that hold tensors into those of the model's name space and those apart."""
    indexed = set(shards)

    def preference(path: str) -> tuple[bool, bool, bool, str]:
        inner = path[len(base) :]
        main = inner in ("model.safetensors", "adapter_model.safetensors")
        return (path not in indexed, not main, "/" in inner, path)

    weights: list[str] = []
    apart: list[str] = []
    taken: set[str] = set()
    for path in sorted((p for p, file in scanned.items() if file.tensors), key=preference):
        names = _names(scanned[path])
        # Some publishers put a second copy of all weights, under other names, beside the one that is loaded.
        is_copy = layout == "hf-checkpoint" and bool(weights) and path[len(base) :].startswith("consolidated")
        if is_copy or not taken.isdisjoint(names):
            apart.append(path)
        else:
            weights.append(path)
            taken |= names
    return sorted(weights), sorted(apart)


def _layout_of(base: str, listing: Listing, scanned: Mapping[str, ScannedFile]) -> LayoutName:
    if not listing.is_directory:
        return "safetensors" if scanned[listing.path].format == "safetensors" else "file"
    top = {path[len(base) :] for path in listing.files if "/" not in path[len(base) :]}
    if "adapter_config.json" in top and "config.json" not in top:
        return "peft-adapter"
    if any(name.endswith((".safetensors", _INDEX)) for name in top):
        return "hf-checkpoint"
    if "config.json" in top and any(is_weight_name(name) for name in top):
        return "hf-checkpoint"
    return "directory"


def describe(root: Path, relative: str, *, ignore: Sequence[str] = ()) -> TrackedModel:
    """Look at `relative` (forward slashes, or `.`) under the repository root: all headers, no weights, are read.

    Every index of shards is checked against the shards.  Raises UsageError when there is nothing to track, and
    CheckpointFormatError, naming the file, for missing shards, Git LFS pointers and malformed or hostile files.
    """
    listing = list_files(root, relative, ignore=ignore)
    if listing.links and not listing.files:
        raise CheckpointFormatError(
            f"{relative} holds only symbolic links, which are not followed",
            hint=f"`cp -rL {relative} COPY` makes real files of them, then track COPY",
        )
    base = relative + "/" if listing.is_directory and relative != "." else ""
    scanned = _scan_all(root, listing)
    shards: set[str] = set()
    for path in listing.files:
        if path.endswith(_INDEX):
            shards |= _check_index(root, path, listing, scanned)
    layout = _layout_of(base, listing, scanned)
    weights, apart = _choose_weights(base, layout, shards, scanned)
    elements: dict[str, int] = {}
    tensors = 0
    for path in weights:
        for tensor in scanned[path].tensors:
            tensors += 1
            kind = tensor.spec.dtype
            elements[kind] = elements.get(kind, 0) + tensor.spec.elements
    return TrackedModel(
        path=relative,
        layout=layout,
        files=listing.files,
        weights=tuple(weights),
        apart=tuple(apart),
        opaque=tuple(path for path in listing.files if scanned[path].format == "opaque" and is_weight_name(path)),
        ignored=listing.ignored,
        patterns=listing.patterns,
        links=listing.links,
        special=listing.special,
        tensors=tensors,
        elements=tuple(sorted(elements.items(), key=lambda item: (-item[1], item[0]))),
        size_bytes=sum(file.size for file in scanned.values()),
        weight_bytes=sum(scanned[path].size for path in weights),
    )
