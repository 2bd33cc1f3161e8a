"""What lies under a weight file's name when it is not weights: pointers, download pages, pickles, archives.

Only the first bytes are looked at.  A user who forgot `git lfs pull` should read that, and not that a header is
1.4e18 bytes long.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from modelgit.errors import CheckpointFormatError

__all__ = [
    "TORCH_SUFFIXES",
    "WEIGHT_SUFFIXES",
    "is_torch_name",
    "is_weight_name",
    "refuse_lookalike",
    "refuse_page",
    "refuse_pointer",
]

WEIGHT_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".ggml", ".gguf", ".h5", ".keras", ".model", ".msgpack", ".npy", ".npz", ".onnx"}
    | {".pkl", ".pt", ".pth", ".safetensors", ".sft", ".tflite"}
)
TORCH_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024  # the specification's own limit
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|error)\b", re.IGNORECASE)


def is_weight_name(name: str) -> bool:
    """Whether a file of this name is expected to hold weights."""
    return PurePosixPath(name).suffix.lower() in WEIGHT_SUFFIXES


def is_torch_name(name: str) -> bool:
    """Whether a file of this name is expected to be a PyTorch checkpoint, if it is a zip archive or a pickle."""
    return PurePosixPath(name).suffix.lower() in TORCH_SUFFIXES


def refuse_pointer(head: bytes, size: int, shown: str) -> None:
    """Raise CheckpointFormatError if the file called `shown` is a Git LFS pointer."""
    if size <= _MAX_POINTER_BYTES and head.startswith(_POINTER):
        raise CheckpointFormatError(
            f"{shown} is a Git LFS pointer ({size} bytes), not weights",
            hint="`git lfs pull` fetches the file, then track again",
        )


def refuse_page(head: bytes, shown: str) -> None:
    """Raise CheckpointFormatError if a file under the name of weights is a web page: a download that failed.

    Not for `.model`, which other tools write in XML.
    """
    if is_weight_name(shown) and not shown.lower().endswith(".model") and _PAGE.match(head):
        raise CheckpointFormatError(
            f"{shown} is a web page or an XML answer, not weights",
            hint=f"download it again; `mgit track --opaque {shown}` records it as it is",
        )


def refuse_lookalike(head: bytes, size: int, shown: str) -> None:
    """Raise CheckpointFormatError if a file called `*.safetensors` is something well known instead.

    A header length may look like a pickle's first bytes (640 does), so a file with `{` where the header begins is
    never taken for something else.
    """
    if head[8:9] == b"{":
        return
    refuse_pointer(head, size, shown)
    again = f"download it again, or `mgit untrack {shown}`"
    rename = "convert it with `safetensors`, or rename it after what it is"
    if size == 0:
        raise CheckpointFormatError(f"{shown} is empty, not a safetensors file", hint=again)
    refuse_page(head, shown)
    if head.startswith(b'{"'):
        raise CheckpointFormatError(f"{shown} is JSON text, not weights", hint=again)
    if _PICKLE.match(head):
        raise CheckpointFormatError(f"{shown} is a pickle, not a safetensors file; nothing was unpickled", hint=rename)
    if head.startswith(b"PK\x03\x04"):
        raise CheckpointFormatError(
            f"{shown} is a zip archive (perhaps a PyTorch checkpoint), not a safetensors file", hint=rename
        )
    if head.startswith(b"GGUF"):
        raise CheckpointFormatError(f"{shown} is a GGUF file, not a safetensors file", hint=rename)
