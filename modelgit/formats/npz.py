"""numpy's `.npz` files: a zip archive of `.npy` members, one array each.

Arrays that lie uncompressed in the archive (`numpy.savez`) become tensors; a compressed archive is recorded whole.
"""

from __future__ import annotations

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile
from modelgit.formats.cursor import quoted
from modelgit.formats.lookalikes import refuse_pointer
from modelgit.formats.npy import Array, array_table, read_array
from modelgit.formats.opaque import record_whole
from modelgit.formats.pickle_walker import opaque_hint
from modelgit.formats.torch_pickle import lay_out
from modelgit.formats.zip_members import read_directory

__all__ = ["NPZ", "NpzFormat"]

_ZIP = b"PK\3\4"


class NpzFormat:
    """Literal ranges for the archive's own bytes and for the headers, one tensor per array.

    Members that are no arrays of numbers in little-endian order stay literal.
    """

    name = "npz"

    def detect(self, head: bytes, name: str) -> bool:
        """By name, or a zip archive whose first member is called `*.npy`."""
        if name.lower().endswith(".npz"):
            return True
        length = int.from_bytes(head[26:28], "little")
        return head.startswith(_ZIP) and length < 250 and head[30 : 30 + length].endswith(b".npy")

    def scan(self, file: ReadAt) -> ScannedFile:
        """Read the archive's directory and the headers of the arrays.

        Raises CheckpointFormatError for a truncated or misleading archive, and for a malformed array.
        """
        head = file.read(0, min(file.size, 256))
        refuse_pointer(head, file.size, file.shown)
        if not head.startswith((_ZIP, b"PK\5\6")):
            raise CheckpointFormatError(f"{file.shown} is not a zip archive of arrays", hint=opaque_hint(file.shown))
        directory = read_directory(file)
        members = [member for member in directory.members if member.name.endswith(".npy")]
        if any(not member.is_stored for member in members):
            return record_whole(file, "its arrays are compressed")
        arrays: list[tuple[str, Array]] = []
        reasons = []
        for member in members:
            array = read_array(file, member.start, member.size, f"{file.shown}, array {quoted(member.name[:-4])},")
            if array.spec is None:
                reasons.append(array.why)
            else:
                arrays.append((member.name[:-4] or "array", array))
        if not arrays:
            return record_whole(file, reasons[0] if reasons else "it holds no arrays")
        table = array_table(arrays)
        places = [(array.start, array.spec.size_bytes) for _, array in arrays if array.spec is not None]
        return lay_out(self.name, file.size, table, places)


NPZ = NpzFormat()
