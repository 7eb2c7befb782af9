# SPDX-License-Identifier: Apache-2.0
"""The two errno conversions: exception to wire status, wire status to exception."""
import errno
import os

from .ops import RESTART, STATUS_RESTART


class Restart(Exception):
    """The path goes through a symbolic link: its first ``prefix`` bytes name a link to ``target`` (bytes)."""

    def __init__(self, prefix, target):
        super().__init__(prefix, target)
        self.prefix, self.target = prefix, target


def fail(code, path=None):
    """An OSError for errno ``code``, to be raised.  No strerror: nobody reads it on the hot path."""
    return OSError(code, errno.errorcode.get(code, "?"), path)


def seen(future):
    """A done callback: who waits for ``future`` may have been cancelled, and its failure is then nobody's."""
    if not future.cancelled():
        future.exception()


def to_status(error):
    """Exception -> ``(status, tail)`` of a reply.  What is not an OSError or Restart is a defect: EIO."""
    if isinstance(error, OSError) and error.errno:
        return error.errno, b""
    if isinstance(error, Restart):
        return STATUS_RESTART, RESTART.pack(error.prefix) + error.target
    return errno.EIO, b""


def from_status(status, tail):
    """Status and tail of a reply -> the exception to raise."""
    if status == STATUS_RESTART:
        return Restart(RESTART.unpack(tail).prefix, bytes(tail[RESTART.size:]))
    return fail(status)


def text(code):
    """``"EIO (Input/output error)"``, for messages people read."""
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"
