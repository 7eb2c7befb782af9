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


def flag(text):
    if text.lower() in ("1", "yes", "on", "true"):
        return True
    if text.lower() in ("", "0", "no", "off", "false"):
        return False
    raise ValueError(text)


SETTINGS = (
    Setting("cluster", "MADFS_CLUSTER", str, "", "Path of the cluster file that names the servers."),
    Setting("mount", "MADFS_MOUNT", str, "/madfs", "Absolute path under which the file system appears."),
    Setting("chunk_size", "MADFS_CHUNK_SIZE", size, 512 << 10, "Bytes in a chunk of a new file."),
    Setting("inline_max", "MADFS_INLINE_MAX", size, 8 << 10,
            "Bytes of a small file kept in RocksDB instead of a chunk file."),
    Setting("eager_max", "MADFS_EAGER_MAX", size, 64 << 10,
            "Bytes of data sent within a message rather than after it; at most 64K."),
    Setting("timeout_ms", "MADFS_TIMEOUT_MS", int, 30_000, "Milliseconds an operation may wait for a live server."),
    Setting("connect_ms", "MADFS_CONNECT_MS", int, 3_000, "Milliseconds to reach a server before it counts as dead."),
    Setting("grace_ms", "MADFS_GRACE_MS", int, 60_000,
            "Milliseconds for which files that were removed while open are kept after a server's restart, or while a "
            "program that inherited them has not used them: until then who has them open must use the mount."),
    Setting("linger_ms", "MADFS_LINGER_MS", int, 2_000,
            "Milliseconds for which files removed while open are kept when the last client that had them open "
            "was lost."),
    Setting("lend_us", "MADFS_LEND_US", int, 3_000,
            "Microseconds for which a process may read the bytes of a small file that came with its open; who changes "
            "the file meanwhile waits for so long. 0: none come."),
    Setting("spin_us", "MADFS_SPIN_US", int, -1,
            "Microseconds to poll before sleeping; -1 chooses by the cores at hand."),
    Setting("transports", "MADFS_UCX_TLS", str, "",
            "UCX transports MadFS may use (UCX_TLS syntax); empty: UCX chooses, but not POSIX shared memory."),
    Setting("log", "MADFS_LOG", str, "", "File that messages go to; empty: standard error."),
    Setting("preload", "MADFS_PRELOAD", flag, True,
            "Whether programs that are executed stay on MadFS; 0 lets them leave."),
    Setting("debug", "MADFS_DEBUG", flag, False,
            "Print what was patched and every call that failed inside the client."),
    Setting("strict", "MADFS_STRICT", flag, False, "Abort when a system call instruction cannot be intercepted."),
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
