"""PyTorch checkpoints as `torch.save` wrote them before 1.6: five pickles, then the storages, each behind its length.

The pickles are a magic number, a version, facts about the machine, what was saved, and the keys of the storages in the
order in which they follow.  Any other pickle under a checkpoint's name is recorded whole, if it holds nothing foreign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt, ScannedFile
from modelgit.formats.cursor import quoted
from modelgit.formats.lookalikes import is_torch_name
from modelgit.formats.opaque import record_whole
from modelgit.formats.pickle_walker import Mapping as Pairs
from modelgit.formats.pickle_walker import PickleWindow, Walker, opaque_hint
from modelgit.formats.torch_globals import is_allowed
from modelgit.formats.torch_pickle import Storage, lay_out, name_storages, read_storages, read_tensors

__all__ = ["TORCH_LEGACY", "TorchLegacyFormat"]

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8
_BEGINS = re.compile(
    # LONG1 of ten bytes in protocols 2 and up, or a global at once in protocol 0: what hostile pickles look like
    rb"\x80[\x02-\x05]|c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n"
)
_MAGIC_BYTES = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."


class TorchLegacyFormat:
    """Literal ranges for the pickles and the lengths, one tensor per storage."""

    name = "torch-legacy"

    def detect(self, head: bytes, name: str) -> bool:
        """By the magic number; or any pickle, under a checkpoint's name."""
        return head[2:15] == _MAGIC_BYTES or (is_torch_name(name) and _BEGINS.match(head) is not None)

    def scan(self, file: ReadAt) -> ScannedFile:
        """Follow the pickles; the storages themselves are not read.

        Raises CheckpointFormatError for a truncated or malformed file, and for a pickle with a foreign global.
        """
        window = PickleWindow(file, 0, file.size)
        walker = Walker(window, is_allowed)
        magic, at = walker.walk()
        if type(magic) is not int or magic != MAGIC:
            return record_whole(file, "a pickle, and no PyTorch checkpoint")
        version, at = walker.walk(at)
        if type(version) is not int or version != _VERSION:
            return record_whole(file, "a PyTorch checkpoint of another version")
        machine, at = walker.walk(at)
        if not isinstance(machine, Pairs) or ("little_endian", True) not in [
            (key, value) for key, value in machine.pairs if isinstance(key, str) and isinstance(value, bool)
        ]:
            return record_whole(file, "its numbers are big-endian")
        root, at = walker.walk(at)
        keys, at = walker.walk(at)
        if any(isinstance(p.value, tuple) and p.value[0:1] != ("storage",) for p in walker.persistent):
            return record_whole(file, "it holds the source code of modules")
        if any(isinstance(p.value, tuple) and len(p.value) == 6 and p.value[5] is not None for p in walker.persistent):
            return record_whole(file, "it holds storages that are views of each other")
        storages = read_storages(walker.persistent, file.shown)
        places = self._places(file, keys, at, storages)
        table = name_storages(list(storages.values()), read_tensors(root, file.shown), file.shown)
        return lay_out(self.name, file.size, table, [places[key] for key in storages])

    def _places(
        self, file: ReadAt, keys: object, at: int, storages: Mapping[str, Storage]
    ) -> dict[str, tuple[int, int]]:
        """Where each storage lies, after all lengths were found to be as the pickle says."""
        shown = file.shown
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CheckpointFormatError(f"{shown} has no list of its storages", hint=opaque_hint(shown))
        if len(set(keys)) != len(keys) or set(keys) != set(storages):
            raise CheckpointFormatError(
                f"{shown} lists {len(keys)} storages, and describes {len(storages)}", hint=opaque_hint(shown)
            )
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            size = storages[key].size
            if at + _COUNT_BYTES + size > file.size:
                raise CheckpointFormatError(
                    f"{shown} is truncated: storage {quoted(key)} ends at byte {at + _COUNT_BYTES + size},"
                    f" the file at {file.size}",
                    hint="wait until it is written, or copy or download it again",
                )
            count = int.from_bytes(file.read(at, _COUNT_BYTES), "little")
            if count * storages[key].width != size:
                raise CheckpointFormatError(
                    f"{shown} describes storage {quoted(key)} of {size} bytes, and holds {count} elements of it",
                    hint=opaque_hint(shown),
                )
            places[key] = (at + _COUNT_BYTES, size)
            at += _COUNT_BYTES + size
        return places


TORCH_LEGACY = TorchLegacyFormat()
