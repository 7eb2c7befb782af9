# SPDX-License-Identifier: Apache-2.0
"""MadFS: a job's own distributed file system.

Unmodified programs use it through the preload library; Python programs may also do without::

    import pymadfs
    with pymadfs.connect("cluster.madfs") as mount:
        with mount.open("/results/a.bin", "wb") as file:
            file.write(data)
"""

__version__ = "0.1.0"
__all__ = ["Mount", "__version__", "connect"]


def __getattr__(name):
    """``connect`` and ``Mount``, loaded on first use: the embedded client needs none of what they import."""
    if name in ("Mount", "connect"):
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
