# SPDX-License-Identifier: Apache-2.0
"""Listings."""

import errno

from pymadfs import abi
from pymadfs.errors import fail

from . import files
from .files import offset_get, offset_set, opened, put
from .table import call


# getdents(2): "On end of directory, 0 is returned. ... EINVAL: Result buffer is too small."
@call
def getdents64(handle, buffer, size):
    file = opened(handle)
    if not file.directory:
        raise fail(errno.ENOTDIR)
    position = offset_get(handle)
    if not position or file.listing is None:
        file.listing = files.fs.readdir(file.path)
    records, used, end = [], 0, position
    for name, ino, kind in file.listing[position : position + size // 24]:  # no record is shorter
        record = abi.pack_dirent(name, ino, kind, end + 1)
        used += len(record)
        if used > size:
            break
        records.append(record)
        end += 1
    if records:
        put(buffer, b"".join(records))
        offset_set(handle, end)
        return sum(map(len, records))
    if position < len(file.listing):
        raise fail(errno.EINVAL)
    return 0
