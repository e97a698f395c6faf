"""Whether bytes that are something else here could be a pickle that imports, to a program that takes them for one.

Knows nothing of what the instructions mean. unpickler.py stops at whatever an honest file does not hold, but Python's goes on: past
a number of any length, a key of any kind. So here every instruction is passed over as generously as the most generous reader
does, and only what stops all of them is an end: a byte that is no instruction, an argument that is not there.
"""

from __future__ import annotations

import pickletools
import struct

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_MOST_PICKLES = 5  # what PyTorch reads of a legacy file before its tensors
_IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
_ENDS = {"PERSID"}  # refers to outside data by a text, which neither Python nor PyTorch allows
#: How pickletools writes that an argument is as long as a number before it tells -> how that number is stored.
_MEASURED = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
#: What the first letter of a line must be for any reader to take the line; an empty line may count as 0.
_LINES = {
    "INT": b"+-0123456789\n",
    "LONG": b"+-0123456789\n",
    "FLOAT": b"+-.0123456789iInN\n",
    "GET": b"+-0123456789\n",
    "PUT": b"+-0123456789\n",
    "STRING": b"'\"",
}


def may_import(data: bytes, *, whole: bool = True) -> bool:
    """Whether a reader of pickles that begins at the first byte may come to an import; of the first part of a larger file, not `whole`,
    also when it may go on behind that part.
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
    """Where the argument that begins at `begin` ends; -1 where no reader takes it."""
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
