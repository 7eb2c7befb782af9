# SPDX-License-Identifier: Apache-2.0
"""What a job leaves on a node, and who removes it when nobody ended the job in order.

The temporary directory of a job is locked by the keeper of its servers, and the processes of a job share directories in
/dev/shm (cluster.directories_on_node()).  The keeper holds a lock on a file in its own one, in which the names of the
others can be found, and removes them all at its end.  When it was killed the locks are free: whoever starts or ends
servers next on the node removes them.
"""
import contextlib
import fcntl
import glob
import os
import shutil
import tempfile

from . import cluster as clusters

MARK = "of-keeper"  # in a temporary directory: locked by its keeper, with the name of the node
HELD = b"keeper"  # the file that is locked; it holds the name of the directory that the job's users share


def hold(secret):
    """Say that the job lives, as long as the descriptor that is returned is open; -1 where there is no such place."""
    directory = clusters.shared_directory(secret)
    path, new = directory + b"/" + HELD, directory + b"/new"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.write(fd, clusters.node_directory(secret)[0])
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, path)  # nobody sees it without its lock
    except OSError:
        return -1
    return fd


def mark(directory):
    """Say that the temporary directory ``directory`` (str or None) belongs to this node and process, for sweep()."""
    if not directory:
        return
    new = os.path.join(directory, "new")
    try:
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(fd, os.uname().nodename.encode())
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, os.path.join(directory, MARK))  # nobody sees it without its lock
    except OSError:
        return  # A place without locks is not swept.


def remove(secret):
    """Remove all that the job with this secret has: it is over."""
    for directory in clusters.directories_on_node(secret):
        shutil.rmtree(directory, ignore_errors=True)


def sweep():
    """Remove what jobs left whose keepers were killed: in this node's memory, and in our TMPDIR."""
    for mark in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), "madfs-*", MARK)):
        with contextlib.suppress(OSError), open(mark) as file:
            # Where several nodes share the directory, their locks may not be seen here.
            if os.fstat(file.fileno()).st_uid == os.geteuid() and file.read() == os.uname().nodename:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(os.path.dirname(mark))
    for path in glob.glob(b"/dev/shm/madfs-*-*/" + HELD):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or its keeper removes it now
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_job(os.path.dirname(path), os.read(fd, 256))
        except OSError:
            continue  # the job lives
        finally:
            os.close(fd)


def _remove_job(directory, shared):
    job = b"/madfs-*-" + directory.rpartition(b"-")[2]
    if shared.startswith(b"/dev/shm/madfs-nodes-") and b"/" not in shared[9:]:
        shutil.rmtree(shared, ignore_errors=True)
    for place in (*clusters.PLACES, b"/dev/shm"):
        for path in glob.glob(place + job):
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
