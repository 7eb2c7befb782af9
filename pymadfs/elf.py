# SPDX-License-Identifier: Apache-2.0
"""The little of the ELF format that the launcher needs: can a program be preloaded, and which version is our library.

Loading the preload library to ask it would rewrite the launcher itself, so its file is read instead.
"""
import errno
import os
import re
import stat
import struct

_CLASS32, _CLASS64, _LITTLE = 1, 2, 1
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_DYNSYM = 11
_PT_LOAD, _PT_INTERP = 1, 3
_PF_X = 1
_NAME_MAX = 64


class Elf:
    """A 64-bit little-endian ELF file that is read in place.

    ``machine`` is e_machine of the header.  Raises OSError when the file cannot be read and ValueError when it is not
    such a file.
    """

    def __init__(self, path):
        with regular(path) as file:
            self._data = file.read()
        if len(self._data) < _HEADER.size or self._data[:6] != b"\x7fELF" + bytes((_CLASS64, _LITTLE)):
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        header = _HEADER.unpack_from(self._data)
        self.machine = header[2]
        try:
            self._segments = self._table(_SEGMENT, header[5], header[10])
            self._sections = self._table(_SECTION, header[6], header[12])
        except (struct.error, OverflowError):  # an offset of more than 63 bits
            raise ValueError(f"{path} is a truncated ELF file") from None

    def _table(self, record, offset, count):
        return [record.unpack_from(self._data, offset + index * record.size) for index in range(count)]

    def interpreter(self):
        """Path of the dynamic loader that the program asks for, or None."""
        for kind, _, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_INTERP:
                return os.fsdecode(self._data[offset:offset + size].rstrip(b"\0"))
        return None

    def texts(self):
        """What is executable, as views of the file's bytes."""
        for kind, flags, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_LOAD and flags & _PF_X:
                yield memoryview(self._data)[offset:offset + size]

    def interpreted(self):
        """Whether a dynamic loader starts the program; only then can it be preloaded."""
        return any(segment[0] == _PT_INTERP for segment in self._segments)

    def string(self, name):
        """The NUL-terminated text that the exported variable ``name`` (bytes) holds, or None without such a
        variable."""
        for section in self._sections:
            if section[1] == _SHT_DYNSYM:
                names = self._sections[section[6]][4]
                for symbol in self._table(_SYMBOL, section[4], section[5] // _SYMBOL.size):
                    if symbol[3] and self._text(names + symbol[0]) == name:
                        return self._text(self._file_offset(symbol[4]))
        return None

    def _text(self, offset):
        return self._data[offset:offset + _NAME_MAX].partition(b"\0")[0]

    def _file_offset(self, address):
        for kind, _, offset, start, _, size, _, _ in self._segments:
            if kind == _PT_LOAD and start <= address < start + size:
                return offset + address - start
        raise ValueError(f"no segment of the file is loaded at {address:#x}")


def regular(path):
    """The file at ``path``, opened for reading; one that is no regular file, where opening or reading may wait for
    ever, is refused as the kernel refuses to execute it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PermissionError(errno.EACCES, "no regular file", path)
    return os.fdopen(fd, "rb")


def shebang(path):
    """What the ``#!`` line of the script at ``path`` names: ``(interpreter, argument or None)``, or None when it is not
    a script.  Raises OSError."""
    with regular(path) as file:
        line = file.readline(256)
    words = re.split(rb"[ \t]+", line[2:].strip(b" \t\n"), maxsplit=1) if line.startswith(b"#!") else []
    words = [word for word in words if word]
    return (os.fsdecode(words[0]), os.fsdecode(words[1]) if words[1:] else None) if words else None


def is_elf(path):
    """Whether the file at ``path`` says that it is an ELF file, of whatever kind.  Raises OSError."""
    with regular(path) as file:
        return file.read(4) == b"\x7fELF"


def is_32_bit(path):
    """Whether the ELF file at ``path`` says that it is for 32 bits.  Raises OSError."""
    with regular(path) as file:
        return file.read(5)[4:] == bytes((_CLASS32,))
