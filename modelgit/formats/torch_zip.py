"""PyTorch checkpoints as `torch.save` writes them since 1.6: a zip archive of a pickle and of storages as they are.

The pickle (`data.pkl`) is followed, never unpickled; the storages (`data/KEY`) lie uncompressed in the file and become
its tensors.  The layout is that of `torch/csrc/.../serialize/inline_container` and `torch/serialization.py`.
"""

from __future__ import annotations

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile
from modelgit.formats.cursor import quoted
from modelgit.formats.lookalikes import is_torch_name, refuse_pointer
from modelgit.formats.opaque import record_whole
from modelgit.formats.pickle_walker import MAX_PICKLE_BYTES, PickleWindow, Walker, opaque_hint
from modelgit.formats.torch_globals import is_allowed
from modelgit.formats.torch_pickle import lay_out, name_storages, read_storages, read_tensors
from modelgit.formats.zip_members import Member, read_directory

__all__ = ["TORCH_ZIP", "TorchZipFormat"]

_ZIP = b"PK\3\4"
_PICKLE = "data.pkl"


class TorchZipFormat:
    """Literal ranges for the archive's own bytes and the pickle, one tensor per storage."""

    name = "torch-zip"

    def detect(self, head: bytes, name: str) -> bool:
        """A zip archive under a checkpoint's name, or one whose first member is a pickle of torch's name."""
        if not head.startswith(_ZIP):
            return False
        return is_torch_name(name) or (b"/" + _PICKLE.encode()) in head[30:300]

    def scan(self, file: ReadAt) -> ScannedFile:
        """Read the archive's directory and the pickle; the storages themselves are not read.

        Archives of another kind, compressed ones, TorchScript and big-endian ones are recorded whole.
        Raises CheckpointFormatError for a truncated or misleading archive, and for a pickle with a foreign global.
        """
        refuse_pointer(file.read(0, min(file.size, 256)), file.size, file.shown)
        directory = read_directory(file)
        found = [member for member in directory.members if member.name.rpartition("/")[2] == _PICKLE]
        found = [member for member in found if member.name.count("/") <= 1]
        if not found:
            return record_whole(file, "a zip archive that is no PyTorch checkpoint")
        if len(found) > 1:
            raise CheckpointFormatError(f"{file.shown} has two pickles", hint=opaque_hint(file.shown))
        pickle = found[0]
        prefix = pickle.name[: -len(_PICKLE)]
        members = {m.name[len(prefix) :]: m for m in directory.members if m.name.startswith(prefix)}
        if "constants.pkl" in members or any(name.startswith("code/") for name in members):
            return record_whole(file, "a TorchScript program, which holds code")
        if not pickle.is_stored or any(not m.is_stored for name, m in members.items() if name.startswith("data/")):
            return record_whole(file, "its storages are compressed")
        order = members.get("byteorder")
        if order is not None and (
            not order.is_stored or order.size > 16 or file.read(order.start, order.size) != b"little"
        ):
            return record_whole(file, "its numbers are big-endian")
        if pickle.size > MAX_PICKLE_BYTES:
            return record_whole(file, f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        return self._read(file, pickle, members)

    def _read(self, file: ReadAt, pickle: Member, members: dict[str, Member]) -> ScannedFile:
        window = PickleWindow(file, pickle.start, pickle.start + pickle.size)
        walker = Walker(window, is_allowed)
        root, end = walker.walk()
        if end != pickle.size:
            window.refuse(end, "something follows its end")
        storages = read_storages(walker.persistent, file.shown)
        places = []
        for key, storage in storages.items():
            member = members.get(f"data/{key}")
            if member is None or member.size != storage.size:
                held = "has no such member" if member is None else f"holds {member.size}"
                raise CheckpointFormatError(
                    f"{file.shown} describes storage {quoted(key)} of {storage.size} bytes, and {held}",
                    hint=opaque_hint(file.shown),
                )
            places.append((member.start, member.size))
        table = name_storages(list(storages.values()), read_tensors(root, file.shown), file.shown)
        return lay_out(self.name, file.size, table, places)


TORCH_ZIP = TorchZipFormat()
