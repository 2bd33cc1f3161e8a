"""What a pickle would build, without building it: opcodes are followed with inert values, nothing is imported.

The opcodes are those of CPython's `pickletools` (protocols 0 to 5, less the extension registry, out-of-band buffers and
classic instances, which no checkpoint uses).  A global must be on the caller's allow-list; a call of one becomes a
record of the call.  Time and memory are bounded by the length of the pickle and by `MAX_STEPS`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NoReturn

from modelgit.errors import CheckpointFormatError
from modelgit.formats.base import ReadAt

__all__ = ["MAX_PICKLE_BYTES", "Call", "Global", "Mapping", "Persistent", "PickleWindow", "Walker", "opaque_hint"]

MAX_PICKLE_BYTES = 64 << 20
MAX_STEPS = 8_000_000
"""Opcodes of one file, those that make an object counted up to four times: 60,000 tensors take about four million."""

_FIRST_READ = 64 << 10
_MAX_LINE = 4096
_MAX_TEXT = 64 << 10
_MAX_DIGITS = 40
_I32 = struct.Struct("<i")
_F64 = struct.Struct(">d")
_GLOBAL_PART = re.compile(r"[^\x00-\x20\x7f]{1,500}")
_NO_MARK = "it ends a group that was not begun"


class Global:
    """A name that the pickle refers to; `offset` is where in the file it does so."""

    __slots__ = ("module", "name", "offset")

    def __init__(self, module: str, name: str, offset: int) -> None:
        self.module = module
        self.name = name
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call:
    """What a global would return for `arguments`; `state` is what it would be given afterwards."""

    __slots__ = ("arguments", "callee", "items", "state")

    def __init__(self, callee: Global, arguments: tuple[object, ...]) -> None:
        self.callee = callee
        self.arguments = arguments
        self.state: object = None
        self.items: list[object] | None = None


class Mapping:
    """A dictionary as the pairs that were put into it: keys of a stranger are not hashed."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[object, object]] = []


class Persistent:
    """A reference to something outside of the pickle (a storage); `offset` is where in the file it is made."""

    __slots__ = ("offset", "value")

    def __init__(self, value: object, offset: int) -> None:
        self.value = value
        self.offset = offset


def opaque_hint(shown: str) -> str:
    """How to record a file that is not understood."""
    return f"if you trust it: `mgit track --opaque {shown}` records it byte for byte, unread"


class PickleWindow:
    """The bytes of a file from `start` on, read as far as they are needed and not beyond `stop`."""

    def __init__(self, file: ReadAt, start: int, stop: int) -> None:
        self.file = file
        self.start = start
        self.limit = min(stop - start, MAX_PICKLE_BYTES)
        self.is_cut = stop - start > MAX_PICKLE_BYTES
        self.data = file.read(start, max(0, min(self.limit, _FIRST_READ)))

    def refuse(self, at: int, reason: str) -> NoReturn:
        """Raise CheckpointFormatError for what is wrong at byte `at` of the window."""
        shown = self.file.shown
        raise CheckpointFormatError(
            f"{shown} holds a malformed pickle: at byte {self.start + at} {reason}", hint=opaque_hint(shown)
        )

    def reach(self, end: int, at: int) -> bytes:
        """All bytes read so far, at least `end` of them; refuses when there are fewer."""
        if end > self.limit:
            if self.is_cut:
                self.refuse(at, f"it grows beyond {MAX_PICKLE_BYTES >> 20} MiB")
            self.refuse(at, "it ends too early")
        if end > len(self.data):
            size = min(self.limit, max(end, 4 * len(self.data)))
            self.data += self.file.read(self.start + len(self.data), size - len(self.data))
        return self.data


class Walker:
    """Follows the pickles of one window; `allowed` decides on globals by module and name.

    `persistent` collects every reference to something outside, in order; `steps` counts opcodes over all walks.
    """

    def __init__(self, window: PickleWindow, allowed: Callable[[str, str], bool]) -> None:
        self._window = window
        self._allowed = allowed
        self.persistent: list[Persistent] = []
        self.globals: list[Global] = []
        self.steps = 0
        self._copied = 0

    def _global(self, module: str, name: str, at: int) -> Global:
        window = self._window
        if not (_GLOBAL_PART.fullmatch(module) and _GLOBAL_PART.fullmatch(name)):
            window.refuse(at, "a global has an impossible name")
        found = Global(module, name, window.start + at)
        if not self._allowed(module, name):
            shown = window.file.shown
            raise CheckpointFormatError(
                f"{shown} asks for the Python global {ascii(str(found)[:120])[1:-1]} at byte {found.offset}, which is"
                " not on the list of what a checkpoint may hold; nothing was executed",
                hint=opaque_hint(shown),
            )
        self.globals.append(found)
        return found

    def _line(self, at: int) -> tuple[bytes, int]:
        """The bytes up to the next newline, and the position behind it."""
        window = self._window
        data = window.data
        end = data.find(b"\n", at, at + _MAX_LINE)
        if end < 0:
            if at + _MAX_LINE > len(data) and len(data) < window.limit:
                data = window.reach(min(at + _MAX_LINE, window.limit), at)
                end = data.find(b"\n", at, at + _MAX_LINE)
            if end < 0:
                window.refuse(at, "a line has no end")
        return data[at:end], end + 1

    def _text(self, raw: bytes, at: int) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self._window.refuse(at, "text is not UTF-8")

    def _call(self, callee: object, arguments: object) -> object:
        """The record of a call; dictionaries in all but name become mappings."""
        if not isinstance(callee, Global) or not isinstance(arguments, tuple):
            raise TypeError
        if callee.name not in _DICTIONARIES or callee.module not in _DICTIONARY_MODULES:
            return Call(callee, arguments)
        made = Mapping()
        for item in arguments:
            if isinstance(item, Mapping):
                made.pairs += item.pairs
            elif isinstance(item, list):
                for pair in item:
                    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                        raise TypeError
                    made.pairs.append((pair[0], pair[1]))
        # Copies of copies would double with every step.
        self._copied += len(made.pairs)
        if self._copied > MAX_STEPS:
            raise ValueError
        return made

    def walk(self, at: int = 0) -> tuple[object, int]:
        """Follow the pickle that begins at byte `at` of the window; returns what it holds and where it ends.

        Raises CheckpointFormatError for a malformed pickle, and for a global that is not allowed, with its offset.
        """
        window = self._window
        refuse = window.refuse
        data = window.data
        stack: list[object] = []
        marks: list[list[object]] = []
        memo: dict[int, object] = {}
        steps = self.steps
        here = at
        try:
            while True:
                here = at
                at += 1
                if at + 9 > len(data) and len(data) < window.limit:
                    data = window.reach(min(at + 9, window.limit), here)
                op = data[here]
                steps += 1
                if steps > MAX_STEPS:
                    refuse(here, f"it has more than {MAX_STEPS:,} steps")
                if op == 0x71:  # BINPUT
                    memo[data[at]] = stack[-1]
                    at += 1
                elif op == 0x68:  # BINGET
                    stack.append(memo[data[at]])
                    at += 1
                elif op == 0x72:  # LONG_BINPUT
                    memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
                    at += 4
                elif op == 0x6A:  # LONG_BINGET
                    stack.append(memo[int.from_bytes(data[at : at + 4], "little")])
                    at += 4
                elif op == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif op == 0x4B:  # BININT1
                    stack.append(data[at])
                    at += 1
                elif op == 0x28:  # MARK
                    marks.append(stack)
                    stack = []
                    steps += 1
                elif op == 0x74:  # TUPLE
                    group = tuple(stack)
                    stack = marks.pop()
                    stack.append(group)
                elif op in _TEXTS:
                    width = _TEXTS[op]
                    length = int.from_bytes(data[at : at + width], "little")
                    at += width
                    if at + length > len(data):
                        data = window.reach(at + length, here)
                    # Nothing that matters here is that long, and a decoded text may take four times its bytes.
                    stack.append(self._text(data[at : at + length], here) if length <= _MAX_TEXT else "")
                    at += length
                elif op == 0x52:  # REDUCE
                    arguments, callee = stack.pop(), stack.pop()
                    stack.append(self._call(callee, arguments))
                    steps += 3
                elif 0x85 <= op <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                    width = op - 0x84
                    if len(stack) < width:
                        refuse(here, "it takes more values than there are")
                    stack[-width:] = [tuple(stack[-width:])]
                elif op == 0x51:  # BINPERSID
                    reference = Persistent(stack.pop(), window.start + here)
                    self.persistent.append(reference)
                    stack.append(reference)
                    steps += 1
                elif op == 0x63:  # GLOBAL
                    module, at = self._line(at)
                    name, at = self._line(at)
                    data = window.data
                    stack.append(self._global(self._text(module, here), self._text(name, here), here))
                elif op == 0x93:  # STACK_GLOBAL
                    last, first = stack.pop(), stack.pop()
                    if not (isinstance(first, str) and isinstance(last, str)):
                        refuse(here, "a global has a name that is not text")
                    stack.append(self._global(first, last, here))
                elif op in _CONSTANTS:
                    stack.append(_CONSTANTS[op])
                elif op == 0x4D:  # BININT2
                    stack.append(int.from_bytes(data[at : at + 2], "little"))
                    at += 2
                elif op == 0x4A:  # BININT
                    stack.append(_I32.unpack_from(data, at)[0])
                    at += 4
                elif op in (0x8A, 0x8B):  # LONG1, LONG4
                    width = 1 if op == 0x8A else 4
                    length = int.from_bytes(data[at : at + width], "little")
                    at += width
                    if at + length > len(data):
                        data = window.reach(at + length, here)
                    stack.append(int.from_bytes(data[at : at + length], "little", signed=True))
                    at += length
                elif op == 0x47:  # BINFLOAT
                    stack.append(_F64.unpack_from(data, at)[0])
                    at += 8
                elif op in (0x75, 0x73):  # SETITEMS, SETITEM
                    if op == 0x75:
                        group_list = stack
                        stack = marks.pop()
                    else:
                        group_list = stack[-2:]
                        del stack[-2:]
                    if len(group_list) % 2:
                        refuse(here, "a key has no value")
                    _put(stack[-1], zip(group_list[::2], group_list[1::2], strict=True))
                elif op in (0x65, 0x90):  # APPENDS, ADDITEMS
                    group_list = stack
                    stack = marks.pop()
                    _extend(stack[-1], group_list)
                elif op == 0x61:  # APPEND
                    value = stack.pop()
                    _extend(stack[-1], [value])
                elif op == 0x7D:  # EMPTY_DICT
                    stack.append(Mapping())
                    steps += 3
                elif op in (0x5D, 0x8F):  # EMPTY_LIST, EMPTY_SET
                    stack.append([])
                    steps += 1
                elif op in (0x6C, 0x91):  # LIST, FROZENSET
                    group_list = stack
                    stack = marks.pop()
                    stack.append(group_list)
                elif op == 0x64:  # DICT
                    group_list = stack
                    stack = marks.pop()
                    if len(group_list) % 2:
                        refuse(here, "a key has no value")
                    mapping = Mapping()
                    _put(mapping, zip(group_list[::2], group_list[1::2], strict=True))
                    stack.append(mapping)
                elif op in _BYTES:
                    width = _BYTES[op]
                    length = int.from_bytes(data[at : at + width], "little")
                    at += width
                    if at + length > len(data):
                        data = window.reach(at + length, here)
                    stack.append(b"")  # random states and the like: nothing here looks into them
                    at += length
                elif op == 0x62:  # BUILD
                    state = stack.pop()
                    target = stack[-1]
                    if isinstance(target, Call):
                        target.state = state
                elif op == 0x81:  # NEWOBJ
                    arguments, callee = stack.pop(), stack.pop()
                    stack.append(self._call(callee, arguments))
                    steps += 3
                elif op == 0x92:  # NEWOBJ_EX
                    keywords, arguments, callee = stack.pop(), stack.pop(), stack.pop()
                    made = self._call(callee, arguments)
                    steps += 3
                    if isinstance(made, Call):
                        made.state = keywords
                    stack.append(made)
                elif op == 0x80:  # PROTO
                    if data[at] > 5:
                        refuse(here, f"it is of protocol {data[at]}")
                    at += 1
                elif op == 0x95:  # FRAME
                    at += 8
                elif op == 0x2E:  # STOP
                    value = stack.pop()
                    if stack or marks:
                        refuse(here, "it leaves values behind")
                    return value, at
                elif op == 0x30:  # POP
                    if stack:
                        stack.pop()
                    else:
                        stack = marks.pop()
                elif op == 0x31:  # POP_MARK
                    stack = marks.pop()
                elif op == 0x32:  # DUP
                    stack.append(stack[-1])
                else:
                    line, at = self._line(at)
                    data = window.data
                    if op in (0x49, 0x4C):  # INT, LONG
                        stack.append(_integer(line))
                    elif op == 0x46:  # FLOAT
                        stack.append(float(line))
                    elif op == 0x53:  # STRING
                        stack.append(line[1:-1].decode("latin-1"))
                    elif op == 0x56:  # UNICODE
                        stack.append(line.decode("raw-unicode-escape"))
                    elif op == 0x70:  # PUT
                        memo[_integer(line)] = stack[-1]
                    elif op == 0x67:  # GET
                        stack.append(memo[_integer(line)])
                    else:
                        refuse(here, f"the opcode {op:#04x} is not one that checkpoints use")
        except (IndexError, struct.error):
            if at >= window.limit:
                window.reach(window.limit + 1, here)
            refuse(here, _NO_MARK if not marks else "it takes more values than there are")
        except (KeyError, ValueError, TypeError):
            refuse(here, "it uses a value that is not there or not of that kind")
        finally:
            self.steps = steps


_TEXTS = {0x58: 4, 0x8C: 1, 0x8D: 8, 0x55: 1, 0x54: 4}
"""BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; and Python 2's SHORT_BINSTRING and BINSTRING: opcode to length's width."""

_BYTES = {0x43: 1, 0x42: 4, 0x8E: 8, 0x96: 8}
"""SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8."""

_CONSTANTS: dict[int, object] = {0x4E: None, 0x88: True, 0x89: False, 0x29: ()}


def _integer(line: bytes) -> int:
    if len(line) > _MAX_DIGITS:
        raise ValueError(line[:_MAX_DIGITS])
    return int(line.rstrip(b"L"))


_DICTIONARY_MODULES = frozenset({"collections", "builtins", "__builtin__"})
_DICTIONARIES = frozenset({"OrderedDict", "defaultdict", "dict", "Counter"})


def _put(target: object, pairs: zip[tuple[object, object]]) -> None:
    if isinstance(target, Mapping):
        target.pairs.extend(pairs)
    elif isinstance(target, Call):
        target.items = target.items or []
        target.items.extend(pairs)
    else:
        raise TypeError


def _extend(target: object, values: list[object]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, Call):
        target.items = target.items or []
        target.items.extend(values)
    else:
        raise TypeError
