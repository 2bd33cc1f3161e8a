"""What a tracked path is: a Hugging Face checkpoint, a PEFT adapter, one checkpoint file, or plain files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal as OneOf
from typing import NamedTuple

import msgspec

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ScannedFile
from modelgit.formats.detect import FileReader, scan_file
from modelgit.formats.listing import Listing, list_files, matching_pattern
from modelgit.formats.lookalikes import is_weight_name
from modelgit.objects import STORAGE_SUFFIX

__all__ = ["ADAPTER_CONFIG", "LAYOUT_TITLES", "LayoutName", "TrackedModel", "adapter_base", "describe"]

LayoutName = OneOf[
    "hf-checkpoint", "peft-adapter", "safetensors", "torch", "numpy", "gguf", "onnx", "directory", "file"
]

LAYOUT_TITLES: Mapping[LayoutName, str] = {
    "hf-checkpoint": "Hugging Face checkpoint",
    "peft-adapter": "PEFT adapter",
    "safetensors": "safetensors file",
    "torch": "PyTorch checkpoint",
    "numpy": "numpy arrays",
    "gguf": "GGUF file",
    "onnx": "ONNX model",
    "directory": "directory",
    "file": "file",
}
_INDEX = (".safetensors.index.json", ".bin.index.json")
_SINGLE: Mapping[str, LayoutName] = {
    "safetensors": "safetensors",
    "torch-zip": "torch",
    "torch-legacy": "torch",
    "npz": "numpy",
    "npy": "numpy",
    "gguf": "gguf",
    "onnx": "onnx",
}
# The names under which Hugging Face libraries look for pickled weights, and those of their shards.
_PICKLED = re.compile(r"(?:pytorch_model|adapter_model)(?:\.[a-z0-9_]+)?(?:-\d+-of-\d+)?\.bin")
_MAX_INDEX_BYTES = 100_000_000
_MAX_ADAPTER_CONFIG_BYTES = 16 << 20
ADAPTER_CONFIG = "adapter_config.json"


class TrackedModel(NamedTuple):
    """A tracked path as it lies on disk; paths are relative to the repository root, with forward slashes, sorted.

    `weights` are the files whose tensors form the model's one name space.  `apart` are files with tensors that do
    not belong to it: they repeat its names (another precision, another copy), or are not what a library would load
    (an optimizer's state, arrays of data).  `opaque` are weight files that are recorded byte for byte, and `notes` says
    of some of them (path, reason) why.  Both are among `files`, like everything recorded.
    `elements` counts the values of each dtype, most frequent dtype first.  `base_model` is the model that an adapter
    says it belongs to.
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
    notes: tuple[tuple[str, str], ...] = ()
    base_model: str = ""

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


class _AdapterConfig(msgspec.Struct):
    base_model_name_or_path: str | None = None


def _scan_all(
    root: Path, listing: Listing, opaque: Sequence[str], known: Mapping[str, ScannedFile]
) -> dict[str, ScannedFile]:
    scanned: dict[str, ScannedFile] = {}
    for path in listing.files:
        if path in known:
            scanned[path] = known[path]
            continue
        as_bytes = matching_pattern(path, opaque, directory=False) is not None
        scanned[path] = scan_file(root / path, shown=path, opaque=as_bytes)
    return scanned


def _names(file: ScannedFile) -> set[str]:
    return {tensor.name for tensor in file.tensors} | {view.name for view in file.views}


def _parts(file: ScannedFile) -> set[str]:
    """The names of a file's tensors: views in place of the storages that they show parts of."""
    shown = {view.tensor for view in file.views if file.tensors[view.tensor].name.endswith(STORAGE_SUFFIX)}
    return {tensor.name for index, tensor in enumerate(file.tensors) if index not in shown} | {
        view.name for view in file.views if view.tensor in shown
    }


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
        if name not in held[path] and scanned[path].format != "opaque":
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
    candidates = {path for path, file in scanned.items() if file.tensors}
    if layout in ("hf-checkpoint", "peft-adapter"):
        # What such a directory is loaded from; a pickle or archive of another name is state, or data.
        loaded = {
            path
            for path in candidates
            if path in indexed
            or scanned[path].format in ("safetensors", "gguf")
            or _PICKLED.fullmatch(path.rpartition("/")[2])
        }
        others, candidates = (candidates - loaded, loaded) if loaded else (set(), candidates)
    else:
        others = set()

    def preference(path: str) -> tuple[int, bool, bool, bool, str]:
        inner = path[len(base) :]
        main = inner in ("model.safetensors", "adapter_model.safetensors")
        nested = "/" in inner
        # Libraries take safetensors where both are there.
        rank = 2 if nested else 0 if scanned[path].format == "safetensors" else 1
        return (rank, path not in indexed, not main, nested, path)

    weights: list[str] = []
    apart: list[str] = sorted(others)
    taken: set[str] = set()
    for path in sorted(candidates, key=preference):
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
        return _SINGLE.get(scanned[listing.path].format, "file")
    top = {path[len(base) :] for path in listing.files if "/" not in path[len(base) :]}
    if ADAPTER_CONFIG in top and "config.json" not in top:
        return "peft-adapter"
    if any(name.endswith((".safetensors", *_INDEX)) or _PICKLED.fullmatch(name) for name in top):
        return "hf-checkpoint"
    if "config.json" in top and any(is_weight_name(name) for name in top):
        return "hf-checkpoint"
    return "directory"


def adapter_base(config: bytes) -> str:
    """The model that an adapter's configuration (the text of `adapter_config.json`) names; empty when it names none."""
    try:
        return msgspec.json.decode(config, type=_AdapterConfig).base_model_name_or_path or ""
    except (ValueError, RecursionError):
        return ""


def _base_model(root: Path, base: str) -> str:
    path = base + ADAPTER_CONFIG
    with FileReader(root / path, shown=path) as file:
        return adapter_base(file.read(0, file.size)) if file.size <= _MAX_ADAPTER_CONFIG_BYTES else ""


def describe(
    root: Path,
    relative: str,
    *,
    ignore: Sequence[str] = (),
    opaque: Sequence[str] = (),
    known: Mapping[str, ScannedFile] | None = None,
) -> TrackedModel:
    """Look at `relative` (forward slashes, or `.`) under the repository root: all headers, no weights, are read.

    Files that match a pattern of `ignore` are left out, those that match one of `opaque` are not looked into; of those
    in `known` the caller has scanned the headers already.  Every
    index of shards is checked against the shards.  Raises UsageError when there is nothing to track, and
    CheckpointFormatError, naming the file, for missing shards, Git LFS pointers and malformed or hostile files.
    """
    listing = list_files(root, relative, ignore=ignore)
    if listing.links and not listing.files:
        raise CheckpointFormatError(
            f"{relative} holds only symbolic links, which are not followed",
            hint=f"`cp -rL {relative} COPY` makes real files of them, then track COPY",
        )
    base = relative + "/" if listing.is_directory and relative != "." else ""
    scanned = _scan_all(root, listing, opaque, known or {})
    shards: set[str] = set()
    for path in listing.files:
        if path.endswith(_INDEX):
            shards |= _check_index(root, path, listing, scanned)
    layout = _layout_of(base, listing, scanned)
    weights, apart = _choose_weights(base, layout, shards, scanned)
    elements: dict[str, int] = {}
    tensors = 0
    for path in weights:
        # A tied tensor is one tensor of several names; slices of one storage are several tensors.
        tensors += len(_parts(scanned[path]))
        for tensor in scanned[path].tensors:
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
        base_model=_base_model(root, base) if layout == "peft-adapter" else "",
        notes=tuple((path, file.note) for path, file in scanned.items() if file.note),
    )
