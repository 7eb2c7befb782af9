# SPDX-License-Identifier: Apache-2.0
"""FIFOs that are open: the kernel's own, one for each FIFO of the mount and node, in a directory of the job.

So they work between processes of one node, with the kernel's semantics, and not between nodes.  An inode number is
never used again, so a FIFO that is left over disturbs nobody; the keeper removes the directory at the end.
"""

import errno
import posix

from pymadfs.client import HostPath
from pymadfs.errors import fail
from pymadfs.ops import PIPES_SUFFIX

from . import files


def pipe(ino):
    """The HostPath to raise when the FIFO ``ino`` is opened: the kernel opens its own on the caller's stack.

    Raises OSError ENXIO when there is no place for it.
    """
    directory = files.fs.config.cluster.encode("utf-8", "surrogateescape") + PIPES_SUFFIX
    path = b"%b/%x" % (directory, ino)
    if not directory.startswith(b"/"):
        raise fail(errno.ENXIO)
    for make, name, mode in ((posix.mkdir, directory, 0o700), (posix.mkfifo, path, 0o600)):
        try:
            make(name, mode)
        except FileExistsError:
            continue
        except OSError:
            raise fail(errno.ENXIO) from None
    return HostPath(path)
