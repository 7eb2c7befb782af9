# SPDX-License-Identifier: Apache-2.0
"""Lines for the user: one write each, to the file named by MADFS_LOG or to standard error."""
import os


def log(message):
    """Write ``madfs: message`` and a newline.  Never raises: who logs has already something else to report.

    Where the file cannot be opened it goes to standard error.
    """
    line = f"madfs: {message}\n".encode("utf-8", "surrogateescape")
    path = os.environ.get("MADFS_LOG")
    fd = 2
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if path else 2
    except OSError:
        pass
    try:
        os.write(fd, line)
    except OSError:
        pass
    finally:
        if fd != 2:
            os.close(fd)
