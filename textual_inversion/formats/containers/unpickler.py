"""Reads a pickle as data with a small stack machine that calls nothing. Also checks arbitrary bytes for imports.

Python's own unpickler calls the functions that a pickle names. Even with an allow-list, its BUILD instruction changes objects, and a
file can make its memo use any amount of memory. Here a table lists every accepted opcode, and every import is a tag of pickle_tags.py.
A call becomes a description (`TensorSpec`), and the caller checks the description before it builds anything.

`walk_pickle` is strict: it refuses everything that honest files do not contain. Other unpicklers accept more, such as numbers of any
length and keys of any type. `may_import` must not miss an import that any of them would reach. So it is as tolerant as the most
tolerant unpickler, and stops only where every unpickler stops: at a byte that is no opcode, or at an invalid argument.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats.containers.pickle_tags import ALLOWED, Import, Opaque, StorageSpec, change_state, describe_call, storage_from

MAX_OPCODES = 50_000
_MAX_LINE = 1_000  # bytes of an argument that a newline ends: names and numbers
_MAX_KEY = 2**31
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_MOST_PICKLES = 5  # PyTorch reads five pickles of a legacy file before the tensors
_IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
_ENDS = {"PERSID"}  # a persistent id as text, which neither Python nor PyTorch accepts
#: pickletools' constant for an argument with a length prefix -> format of that prefix.
_MEASURED = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
#: Opcode -> the first characters of a line argument that some unpickler accepts. An empty line may count as 0.
_LINES = {
    "INT": b"+-0123456789\n",
    "LONG": b"+-0123456789\n",
    "FLOAT": b"+-.0123456789iInN\n",
    "GET": b"+-0123456789\n",
    "PUT": b"+-0123456789\n",
    "STRING": b"'\"",
}


class _Mark:
    """The value that the MARK opcode pushes."""


class _ShortLines:
    """A stream that cuts long lines, because Python needs minutes to parse a number of many digits."""

    def __init__(self, stream: Stream) -> None:
        self.read, self.tell = stream.read, stream.tell
        self._readline = stream.readline

    def readline(self) -> bytes:
        return self._readline(_MAX_LINE)


@dataclass(frozen=True)
class PickleRules:
    """What a pickle may hold; the defaults are for embeddings.

    Attributes:
        allowed: the names that it may import -> their tags.
        inert: beginnings of other names that it may import. They stand for objects that no reader needs, so nothing is kept of them.
        max_opcodes: how many instructions it may have.
        persistent: turns a reference to data outside the pickle into a description of that data.
    """

    allowed: Mapping[str, Import] = field(default_factory=lambda: ALLOWED)
    inert: tuple[str, ...] = ()
    max_opcodes: int = MAX_OPCODES
    persistent: Callable[[Any], Any] = storage_from

    def tag(self, name: str) -> Import | None:
        """The tag of a name; None where it is not allowed."""
        return self.allowed.get(name) or (Import("opaque") if name.startswith(self.inert) else None)


EMBEDDING_RULES = PickleRules()


class Stream(Protocol):
    """What `walk_pickle` needs of a stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`."""

    def readline(self, limit: int, /) -> bytes:
        """The bytes up to the next newline, at most `limit`."""

    def tell(self) -> int:
        """The place of the next byte."""


def walk_pickle(stream: Stream, storages: list[StorageSpec] | None = None, rules: PickleRules = EMBEDDING_RULES) -> Any:
    """Read one pickle at the stream's position and return its value. The position moves to the byte after the pickle.

    Dicts, lists, tuples, numbers and texts come back as themselves, all other values as the classes of pickle_tags.py. Every storage
    that the pickle refers to is appended to `storages`.

    Raises:
        UnsafeFileError: the pickle imports, calls or changes something beyond the allow-list.
        EmbeddingError: the pickle is damaged.
    """
    machine = _Machine([] if storages is None else storages, rules)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", _ShortLines(stream)))):
            if count > rules.max_opcodes:
                raise EmbeddingError(f"its pickle has more than {rules.max_opcodes} instructions; honest files have fewer.")
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise UnsafeFileError(f"its pickle uses {opcode.name}, which no embedding needs; it was not run.")
            handler(machine, argument)
    except (ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError, RecursionError, struct.error) as error:
        raise EmbeddingError("its pickle is cut off or damaged.") from error
    return machine.result


class _Machine:
    """Stack, memo and result. The handlers below execute the opcodes."""

    def __init__(self, storages: list[StorageSpec], rules: PickleRules) -> None:
        self.storages = storages
        self.rules = rules
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if isinstance(self.stack[-1], _Mark):
            raise ValueError("a mark where a value belongs")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Pop the values above the topmost mark, and the mark itself; return the values."""
        items: list[Any] = []
        while not isinstance(self.stack[-1], _Mark):
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def pop_items(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def set_items(self, flat: list[Any]) -> None:
        """Put alternating keys and values into the dict on top of the stack."""
        top = self.stack[-1]
        if self.rules.inert and isinstance(top, Opaque):
            return
        if type(top) is not dict or len(flat) % 2:
            raise ValueError("items for something that is not a dict")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if self.rules.inert and isinstance(key, (Import, Opaque)):
                continue  # the state of a training program's part, filed under its class
            if not isinstance(key, str) and not (type(key) is int and abs(key) < _MAX_KEY):  # large numbers can have colliding hashes
                raise ValueError("a key that is neither text nor a small number")
            top[key] = value

    def extend(self, items: list[Any]) -> None:
        if self.rules.inert and isinstance(self.stack[-1], Opaque):
            return
        if type(self.stack[-1]) is not list:
            raise ValueError("items for something that is not a list")
        self.stack[-1].extend(items)


def _add_items(machine: _Machine, _: None) -> None:
    machine.pop_to_mark()
    if not isinstance(machine.stack[-1], Opaque):
        raise ValueError("items for something that is not a set")


def _frozen_set(machine: _Machine, _: None) -> None:
    machine.pop_to_mark()
    machine.push(Opaque())


def _literal(machine: _Machine, value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > 128:
        raise ValueError("a number too large to be shown")  # Python refuses to print it, and nothing honest holds it
    machine.push(value)


def _import(machine: _Machine, module: str, name: str) -> None:
    """Push the tag of an allowed name."""
    tag = machine.rules.tag(f"{module}.{name}")
    if tag is None:
        raise UnsafeFileError(
            f"its pickle imports {f'{module}.{name}'[:80]!r}, which is code, not data; it was not run; best delete the file."
        )
    machine.push(tag)


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _import(machine, module, name)


def _stack_global(machine: _Machine, _: None) -> None:
    module, name = machine.pop_items(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")  # never convert it to text: the text of nested lists can grow without limit
    _import(machine, module, name)


def _reduce(machine: _Machine, _: None) -> None:
    """Push a description of the call's result instead of calling the function."""
    function, arguments = machine.pop_items(2)
    if not isinstance(function, Import) or not isinstance(arguments, tuple):
        raise UnsafeFileError("its pickle calls something that is not on the list of harmless names; it was not run, and is best deleted.")
    machine.push(describe_call(function, arguments))


def _build(machine: _Machine, _: None) -> None:
    """Apply only the supported part of the state instead of changing a real object."""
    state = machine.pop()
    change_state(machine.stack[-1], state)


def _persistent(machine: _Machine, _: None) -> None:
    """Push the storage or the module's class that a persistent id names."""
    value = machine.rules.persistent(machine.pop())
    if isinstance(value, StorageSpec):
        machine.storages.append(value)
    machine.push(value)


def _memoize(machine: _Machine, _: None) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _stop(machine: _Machine, _: None) -> None:
    machine.result = machine.pop()
    if machine.stack:
        raise ValueError("values left on the stack")


def _list_to_dict(machine: _Machine, _: None) -> None:
    flat = machine.pop_to_mark()
    machine.push({})
    machine.set_items(flat)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], object]:
    return lambda machine, _: machine.push(make())


def _tuple(count: int) -> Callable[[_Machine, Any], object]:
    return lambda machine, _: machine.push(tuple(machine.pop_items(count)))


_LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"
)
_HANDLERS: dict[str, Callable[[_Machine, Any], object]] = {
    **{name: _literal for name in _LITERALS.split()},
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_SET": _constant(Opaque),
    "ADDITEMS": _add_items,
    "FROZENSET": _frozen_set,
    "MARK": _constant(_Mark),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "DICT": _list_to_dict,
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_items(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "GET": lambda machine, index: machine.push(machine.memo[index]),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "STOP": _stop,
}


def may_import(data: bytes, *, whole: bool = True) -> bool:
    """Whether an unpickler that starts at the first byte may reach an import.

    Args:
        data: the bytes of a file, or its first part.
        whole: whether `data` is the whole file. If not, the result is also true when the unpickler may read beyond `data`.
    """
    position, left = 0, _MOST_PICKLES
    while position < len(data):
        opcode = _OPCODES.get(data[position])
        if opcode is None or opcode.name in _ENDS:
            return False
        if opcode.name in _IMPORTS:
            return True
        left -= opcode.name == "STOP"
        if not left:
            return False
        position = _behind(data, position + 1, opcode)
        if position < 0:
            return False
    return not whole


def _behind(data: bytes, begin: int, opcode: pickletools.OpcodeInfo) -> int:
    """The position after the argument that begins at `begin`; -1 when every unpickler refuses the argument."""
    if opcode.arg is None:
        return begin
    if opcode.arg.n >= 0:
        return begin + opcode.arg.n
    if opcode.arg.n in _MEASURED:
        number = _MEASURED[opcode.arg.n]
        if begin + number.size > len(data):
            return len(data)
        (length,) = number.unpack_from(data, begin)
        return begin + number.size + length if length >= 0 else -1
    first = data[begin : begin + 100].lstrip(b" \t\v\f\r")[:1]
    if first and opcode.name in _LINES and first not in _LINES[opcode.name]:
        return -1
    end = data.find(b"\n", begin)
    return end + 1 if end >= 0 else len(data)
