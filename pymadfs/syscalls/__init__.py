# SPDX-License-Identifier: Apache-2.0
"""What the system calls on our mount mean: one function per canonical call of :mod:`pymadfs.ops`, as the man pages
promise.

Paths are the host's, absolute, as bytes; descriptors are the shim's handles; memory is an address.  A function returns
what the call returns, raises OSError for its errno and HostPath when a path leads out of the mount.
"""

from pymadfs import ops
from pymadfs.client import HostPath

from . import allocation, attributes, data, directories, links, locks, memory, names, nodes, opening, programs, xattrs
from .files import after_fork_child, exiting, start, use
from .table import FUNCTIONS

__all__ = ["CALLS", "FUNCTIONS", "HostPath", "after_fork_child", "exiting", "start", "use"]

# Imported for their functions.
assert all((allocation, attributes, data, directories, links, locks, memory, names, nodes, opening, programs, xattrs))
CALLS = [FUNCTIONS[name] for name in ops.CALL_NAMES]
