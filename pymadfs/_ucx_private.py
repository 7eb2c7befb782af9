# SPDX-License-Identifier: Apache-2.0
"""Copies of UCX's shared libraries under names of our own; run by ``setup.py``.

An MPI library brings its own UCX into the process, often of another version and sometimes with RTLD_GLOBAL: with equal
names the dynamic linker would mix the two.  The archives (``libucp.a``) cannot be linked in instead, because UCX
compiles them without ``-fPIC`` unless told otherwise.  So the names are changed in the string tables of the finished
libraries, in place:

- A symbol's first two letters become ``(letter + 1, letter - 33)``: ``ucp_init`` -> ``vBp_init``.  The hash of the
  GNU symbol table, ``h * 33 + letter``, stays the same, so no table has to be made anew.
- A file's name ``libucp.so.0`` becomes ``libmfp.so.0``, and the library path ``$ORIGIN``.
- The imports in ``WINDOWS`` become functions of ``_ucx.c``, which hide the application's UCX settings, and network
  devices from who wants none, and mend what a killed server leaves of a connection.

The same is done to what is linked against these libraries.
"""
import glob
import os
import re
import struct
import subprocess

WINDOWS = {"getenv": "Getenv", "fopen": "Fopen", "scandir": "Scandir", "uct_iface_open": "Uct_iface_open"}
"""Function that UCX imports -> our function in its place.  Only the first letter differs: ``open`` shares the rest."""

CORE = ("ucp", "uct", "ucs", "ucm")
FOREIGN = ("cuda", "gdr_copy", "rocm", "ze")  # transports of memory that file data never lies in

_UCX_NAMES = re.compile(rb"(?:lib)?uc[mpst]_|ini_parse|void_(?=class|cleanup|init)")
_DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 5, 10, 15, 29
_PT_LOAD, _PT_DYNAMIC = 1, 2


class PrivateUcxError(Exception):
    """UCX's libraries cannot be copied; the message says why and what to do."""


def directory(prefix):
    """The folder with the libraries of the UCX installed at ``prefix``; raises PrivateUcxError."""
    for path in (f"{prefix}/lib", f"{prefix}/lib64", *glob.glob(f"{prefix}/lib/*-linux-gnu")):
        if os.path.exists(f"{path}/libucp.so.0"):
            return path
    raise PrivateUcxError(f"no libucp.so.0 below {prefix}: name the prefix of a UCX installation in MADFS_UCX_PREFIX")


def libraries(prefix):
    """Paths of the shared libraries to carry: the core and the transports that are modules of their own."""
    path = directory(prefix)
    modules = sorted(glob.glob(f"{path}/ucx/libuct_*.so.0"))
    return [f"{path}/lib{name}.so.0" for name in CORE] + [m for m in modules if not any(f in m for f in FOREIGN)]


def private_name(path):
    """``"/usr/lib/libucp.so.0"`` -> ``"libmfp.so.0"``."""
    return os.path.basename(path).replace("libuc", "libmf", 1)


def rename(path, windows=False):
    """Give the UCX names in the ELF file at ``path`` their private twins, in place.

    ``windows`` says that the file is one of UCX's own.  Raises PrivateUcxError when the file has an unexpected form.
    """
    imports = _symbols(path, "--undefined-only") if windows else ()
    replaced = {name: ours for name, ours in WINDOWS.items() if name in imports}
    expected = {replaced.get(name) or _UCX_NAMES.sub(_twin, name.encode()).decode() for name in _symbols(path)}
    with open(path, "rb") as file:
        data = bytearray(file.read())
    start, length, search_paths = _string_table(data, path)
    names = bytes(data[start:start + length])
    for name, ours in replaced.items():
        names = names.replace(f"\0{name}\0".encode(), f"\0{ours}\0".encode())
    table = bytearray(_UCX_NAMES.sub(_twin, names).replace(b"libuc", b"libmf"))
    if windows:
        for offset in search_paths:
            end = table.index(0, offset)
            table[offset:end] = b"$ORIGIN".ljust(end - offset, b"\0")[:end - offset]
    if len(table) != length:
        raise PrivateUcxError(f"{path}: its string table would change its length")
    data[start:start + length] = table
    with open(path, "wb") as file:
        file.write(data)
    if _symbols(path) != expected:
        # A linker stores a name that ends another one inside that one.
        lost = ", ".join(sorted(_symbols(path) ^ expected))
        raise PrivateUcxError(f"{path}: {lost} share letters with names that had to change")


def copy(prefix, destination):
    """Put private copies of the UCX at ``prefix`` into the folder ``destination``; returns their paths."""
    made = []
    for source in libraries(prefix):
        target = os.path.join(destination, private_name(source))
        subprocess.run(["strip", "-g", "-o", target, os.path.realpath(source)], check=True)
        rename(target, windows=True)
        made.append(target)
    check(made, made)
    return made


def check(files, private):
    """Raises PrivateUcxError when one of ``files`` needs a UCX name that none of the ``private`` libraries defines."""
    defined = set().union(*(_symbols(path, "--defined-only") for path in private))
    for path in files:
        lost = sorted(name for name in _symbols(path, "--undefined-only") - defined
                      if re.match("vB[mpst]_|jMi_|wNid_|uc[mpst]_", name))
        if lost:
            raise PrivateUcxError(f"{path} needs {', '.join(lost)}, which UCX's libraries lack")


def _twin(match):
    name = match.group()
    return name if name.startswith(b"lib") else bytes((name[0] + 1, name[1] - 33)) + name[2:]


def _symbols(path, *which):
    listing = subprocess.run(["nm", "-D", "-P", *which, path], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {line.split()[0].partition("@")[0] for line in listing.splitlines()}


def _string_table(data, path):
    """``(start, length, [offsets of library paths in it])`` of the dynamic string table, in bytes."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise PrivateUcxError(f"{path} is not a 64-bit little-endian ELF file")
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads, dynamic = [], {}
    for number in range(count):
        kind, _, where, address, _, length = struct.unpack_from("<IIQQQQ", data, offset + number * size)
        if kind == _PT_LOAD:
            loads.append((where, address, length))
        elif kind == _PT_DYNAMIC:
            dynamic = dict(struct.iter_unpack("<QQ", bytes(data[where:where + length])))
    if _DT_STRTAB not in dynamic:
        raise PrivateUcxError(f"{path} is not dynamically linked")
    address = dynamic[_DT_STRTAB]
    start = next(address - base + where for where, base, length in loads if base <= address < base + length)
    return start, dynamic[_DT_STRSZ], [dynamic[key] for key in (_DT_RPATH, _DT_RUNPATH) if key in dynamic]
