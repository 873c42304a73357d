"""Run a command as on a file system that knows neither locks nor links.

``python without_locks_and_links.py COMMAND...`` runs it, and all that it starts, under a filter of
system calls that answers "not supported" to each that would lock a file or make a link (Linux on
x86-64).
"""

import ctypes
import os
import struct
import sys

NOT_SUPPORTED = 95
FLOCK, FCNTL, LINK, SYMLINK, LINKAT, SYMLINKAT = 73, 72, 86, 88, 265, 266
LOCKING = (6, 7, 37, 38)  # what fcntl is asked to do

SET_NO_NEW_PRIVILEGES, SET_FILTER, FILTER_MODE = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | NOT_SUPPORTED
NUMBER, SECOND_ARGUMENT = 0, 24  # where the kernel puts them


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _instructions() -> list[bytes]:
    def code(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", operation, if_true, if_false, value)

    refused = (FLOCK, LINK, SYMLINK, LINKAT, SYMLINKAT)
    # jumps count the instructions between here and there; the last two are "allow" and "refuse"
    checks = len(refused) + 2 + len(LOCKING)
    lines = [code(LOAD, NUMBER)]
    for at, number in enumerate(refused):
        lines.append(code(JUMP_IF_EQUAL, number, checks - at))
    lines.append(code(JUMP_IF_EQUAL, FCNTL, 0, 1 + len(LOCKING)))
    lines.append(code(LOAD, SECOND_ARGUMENT))
    for at, command in enumerate(LOCKING):
        lines.append(code(JUMP_IF_EQUAL, command, len(LOCKING) - at))
    return [*lines, code(RETURN, ALLOW), code(RETURN, REFUSE)]


def main() -> None:
    instructions = _instructions()
    memory = ctypes.create_string_buffer(b"".join(instructions))
    program = _Program(len(instructions), ctypes.cast(memory, ctypes.c_void_p))
    system = ctypes.CDLL(None, use_errno=True)
    for call in (
        (SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (SET_FILTER, FILTER_MODE, ctypes.byref(program), 0, 0),
    ):
        if system.prctl(*call):
            sys.exit(f"the filter cannot be set: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
