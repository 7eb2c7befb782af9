# SPDX-License-Identifier: Apache-2.0
"""Every setting once: its environment variable, default and meaning.  Standard library only; read by the client too."""
import os
from collections import namedtuple

Setting = namedtuple("Setting", "name variable parse default doc")


def size(text):
    """Bytes: ``"4096"``, ``"512K"``, ``"1M"``, ``"2G"`` (binary units).  Raises ValueError when it is neither."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    value = int(text[:-1]) * unit if unit else int(text)
    if value <= 0:
        raise ValueError(text)
    return value


CHUNK_SIZE_MIN, CHUNK_SIZE_MAX = 4 << 10, 64 << 20
DAY_MS = 24 * 3600 * 1000


def between(least, most, parse=int):
    """A parser of what ``parse`` understands, from ``least`` to ``most``; it raises ValueError for all else."""
    def parsed(text):
        value = parse(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value
    return parsed


def flag(text):
    if text.lower() in ("1", "yes", "on", "true"):
        return True
    if text.lower() in ("", "0", "no", "off", "false"):
        return False
    raise ValueError(text)


chunk_size = between(CHUNK_SIZE_MIN, CHUNK_SIZE_MAX, size)

SETTINGS = (
    Setting("cluster", "MADFS_CLUSTER", str, "", "Path of the cluster file that names the servers."),
    Setting("mount", "MADFS_MOUNT", str, "/madfs", "Absolute path under which the file system appears."),
    Setting("chunk_size", "MADFS_CHUNK_SIZE", chunk_size, 512 << 10, "Bytes in a chunk of a new file, from 4K to 64M."),
    Setting("inline_max", "MADFS_INLINE_MAX", between(1, 1 << 20, size), 8 << 10,
            "Bytes of a small file kept in RocksDB instead of a chunk file, from 1 to 1M."),
    Setting("eager_max", "MADFS_EAGER_MAX", between(1, 64 << 10, size), 64 << 10,
            "Bytes of data sent within a message rather than after it, from 1 to 64K."),
    Setting("timeout_ms", "MADFS_TIMEOUT_MS", between(1, DAY_MS), 30_000,
            "Milliseconds an operation may wait for a live server, from 1 to a day."),
    Setting("connect_ms", "MADFS_CONNECT_MS", between(1, DAY_MS), 3_000,
            "Milliseconds to reach a server before it counts as dead, from 1 to a day."),
    Setting("grace_ms", "MADFS_GRACE_MS", between(0, DAY_MS), 60_000,
            "Milliseconds, from 0 to a day, for which files that were removed while open are kept after a server's "
            "restart, or while a program that inherited them has not used them: until then who has them open must use "
            "the mount."),
    Setting("linger_ms", "MADFS_LINGER_MS", between(0, DAY_MS), 2_000,
            "Milliseconds, from 0 to a day, for which files removed while open are kept when the last client that had "
            "them open was lost."),
    Setting("lend_us", "MADFS_LEND_US", between(0, 1_000_000), 3_000,
            "Microseconds, at most a million, for which a process may read the bytes of a small file that came with "
            "its open; who changes the file meanwhile waits for so long. 0: none come."),
    Setting("spin_us", "MADFS_SPIN_US", between(-1, 1_000_000), -1,
            "Microseconds to poll before sleeping, at most a million; -1 chooses by the cores at hand."),
    Setting("transports", "MADFS_UCX_TLS", str, "",
            "UCX transports MadFS may use (UCX_TLS syntax); empty: UCX chooses, but not POSIX shared memory."),
    Setting("log", "MADFS_LOG", str, "", "File that messages go to; empty: standard error."),
    Setting("preload", "MADFS_PRELOAD", flag, True,
            "1 or 0: whether programs that are executed stay on MadFS; 0 lets them leave."),
    Setting("debug", "MADFS_DEBUG", flag, False,
            "1 or 0: print what was patched and every call that failed inside the client."),
    Setting("strict", "MADFS_STRICT", flag, False,
            "1 or 0: abort when a system call instruction cannot be intercepted."),
)


class Config:
    """Settings as attributes, from ``environment`` (default: the process's).  Raises ValueError that names the
    variable."""

    def __init__(self, environment=None):
        environment = os.environ if environment is None else environment
        for setting in SETTINGS:
            text = environment.get(setting.variable)
            try:
                value = setting.default if text is None else setting.parse(text)
            except ValueError:
                raise ValueError(f"{setting.variable}={text!r} is not valid: {setting.doc}") from None
            setattr(self, setting.name, value)

    def __getattr__(self, name):
        raise AttributeError(f"there is no setting {name!r}; all are in SETTINGS of pymadfs/config.py")
