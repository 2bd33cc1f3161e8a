"""What a commit holds: files by path, models by layout, and per file the segments that rebuild it exactly."""

from __future__ import annotations

from modelgit.objects.canonical import Record, encode
from modelgit.objects.ids import BlobId, ContentId, ManifestId
from modelgit.objects.tensors import TensorEntry
from modelgit.objects.views import TensorView

__all__ = [
    "FileContent",
    "FileEntry",
    "Literal",
    "Manifest",
    "ModelEntry",
    "Segment",
    "TensorRef",
    "content_id",
    "manifest_id",
]


class Literal(Record, tag="literal", frozen=True, kw_only=True):
    """`length` bytes of a file that are not a tensor; `blob` holds them from byte `offset` on.

    All literals of a file are recorded as one blob, in file order: hundreds of little headers and paddings would
    otherwise be hundreds of objects.
    """

    blob: BlobId
    length: int
    offset: int = 0


class TensorRef(Record, tag="tensor", frozen=True, kw_only=True):
    """The raw bytes of tensor number `index` of the file's tensor table."""

    index: int


Segment = Literal | TensorRef


class FileContent(Record, frozen=True, kw_only=True):
    """One file, exactly: its format, its tensors, and the segments whose concatenation is the file.

    An object of its own, so that a file that a commit leaves alone costs one id.  `views` are names beyond those of
    `tensors`: tied tensors, slices and transpositions over the bytes of one of them.
    """

    format: str
    segments: tuple[Segment, ...]
    tensors: tuple[TensorEntry, ...] = ()
    views: tuple[TensorView, ...] = ()


class FileEntry(Record, frozen=True, kw_only=True):
    """A file of the tree.

    `path` is relative, with forward slashes; `executable` is the only mode bit kept; `digest` is the id of its
    FileContent and thereby of its bytes.
    """

    path: str
    size: int
    digest: ContentId
    executable: bool = False


class ModelEntry(Record, frozen=True, kw_only=True):
    """A tracked model: where it lies, how it is laid out, and which files hold its tensors.

    The tensors of all `weights` files form one name space, so that re-sharding a checkpoint changes no tensor.
    """

    path: str
    layout: str
    weights: tuple[str, ...]


class Manifest(Record, frozen=True, kw_only=True):
    """Everything that a commit contains, sorted by path."""

    files: tuple[FileEntry, ...] = ()
    models: tuple[ModelEntry, ...] = ()

    def file(self, path: str) -> FileEntry | None:
        """The entry at `path`, or None."""
        return next((entry for entry in self.files if entry.path == path), None)

    def model(self, path: str) -> ModelEntry | None:
        """The model at `path`, or None."""
        return next((entry for entry in self.models if entry.path == path), None)


def content_id(content: FileContent) -> ContentId:
    """The id of a content record."""
    return ContentId.of(encode(content))


def manifest_id(manifest: Manifest) -> ManifestId:
    """The id of a manifest."""
    return ManifestId.of(encode(manifest))
