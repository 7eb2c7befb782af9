# SPDX-License-Identifier: Apache-2.0
"""Lines for the user: one write each, to the file named by MADFS_LOG or to standard error."""
import os


def log(message):
    """Write ``madfs: message`` and a newline.  Never raises: who logs has already something else to report."""
    line = f"madfs: {message}\n".encode("utf-8", "surrogateescape")
    path = os.environ.get("MADFS_LOG")
    try:
        if not path:
            os.write(2, line)
            return
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
    except OSError:
        return
