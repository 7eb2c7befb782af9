# SPDX-License-Identifier: Apache-2.0
"""The cffi side of the UCX binding: ``pymadfs._ucx_cffi`` in API mode, over the functions of ``_ucx.c``.

``setup.py`` has it write the module's C source and compiles that with ``_ucx.c``, once for the servers' extension and
once for the embedded runtime, both linked against private copies of UCX (``_ucx_private.py``).
"""
import os

import cffi

HERE = os.path.dirname(os.path.abspath(__file__))
MARKS = ("/* cdef begin */", "/* cdef end */")


def declarations():
    """What cffi reads: the marked part of ``_ucx.h``."""
    with open(os.path.join(HERE, "_ucx.h"), encoding="ascii") as file:
        return file.read().partition(MARKS[0])[2].partition(MARKS[1])[0]


ffibuilder = cffi.FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source("pymadfs._ucx_cffi", '#include "_ucx.h"\n')
