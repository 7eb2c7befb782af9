# SPDX-License-Identifier: Apache-2.0
"""The cluster file: which servers there are, and the job's secret.

Lines of ``key value``; ``#`` begins a comment::

    madfs 1
    mount /madfs
    secret 9f2c...          (64 hexadecimal digits)
    server 0 127.0.0.1 41873 PID STORE
    server 1 127.0.0.1 41874 PID STORE

The file is mode 0600, because whoever can read the secret can use the file system as anybody.
"""
import errno
import os
from collections import namedtuple

VERSION = "1"
SECRET_BYTES = 32
SHOWN = 20  # characters of a line that is not understood: it may be the one with the secret
Server = namedtuple("Server", "number host port pid store")


class ClusterError(Exception):
    """The cluster file cannot be used; the message says why and what to do."""


class Cluster:
    """``mount`` (str), ``secret`` (bytes), ``servers`` (list of Server, by number)."""

    def __init__(self, mount, secret, servers, path=None):
        self.mount, self.secret, self.servers, self.path = mount, secret, servers, path

    def write(self, path):
        """Store the file at ``path``, whole or not at all, mode 0600."""
        lines = [f"madfs {VERSION}", f"mount {self.mount}", f"secret {self.secret.hex()}"]
        lines += ["server " + " ".join(str(field) for field in server) for server in self.servers]
        temporary = f"{path}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, ("\n".join(lines) + "\n").encode())
        finally:
            os.close(fd)
        os.rename(temporary, path)
        self.path = path


PLACES = (b"/tmp", b"/var/tmp")  # where a directory of that name is when files in /dev/shm cannot be executed


def shared_directory(secret):
    """Path (bytes) of the directory in memory that the processes of a user share on a node, while this job lasts."""
    from _blake2 import blake2s  # what hashlib is made of, without the rest

    return b"/dev/shm/madfs-%d-%s" % (os.geteuid(), blake2s(secret, digest_size=8).hexdigest().encode())


def node_directory(secret):
    """``(path, inner)``, bytes: the directory in memory that all users of this job share on a node, and one below it
    whose name only those who have the secret know: neither can be listed by others."""
    from _blake2 import blake2s

    names = blake2s(secret, digest_size=24, person=b"madfs").hexdigest().encode()
    path = b"/dev/shm/madfs-nodes-" + names[:16]
    return path, path + b"/" + names[16:]


def directories_on_node(secret):
    """What both functions above name, of all users who made one."""
    import glob

    job = b"/madfs-*-" + shared_directory(secret).rpartition(b"-")[2]
    return [*(path for place in (b"/dev/shm", *PLACES) for path in glob.glob(place + job)), node_directory(secret)[0]]


def read(path, kept=-1):
    """Cluster described by the file at ``path``; ``kept`` is a descriptor of it for who may no longer open it, or has
    mounts of its own that hide it.

    Raises ClusterError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO is to be refused
    except OSError as error:
        if kept >= 0 and error.errno in (errno.EACCES, errno.ENOENT, errno.ENOTDIR):
            return parse(_content(kept), path)
        raise ClusterError(f"cannot read the cluster file {path}: {error.strerror}; `madfs up` makes one") from None
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o100000:  # S_IFMT, S_IFREG
            raise ClusterError(f"the cluster file {path} is no file: name the one that `madfs up` printed")
        if os.fstat(fd).st_mode & 0o077:
            raise ClusterError(f"the cluster file {path} is open to others: chmod 600 {path}")
        return parse(_content(fd), path)
    finally:
        os.close(fd)


def _content(fd):
    data = b""
    while block := os.pread(fd, 1 << 20, len(data)):
        data += block
    return data.decode("utf-8", "surrogateescape")


def parse(text, path="the cluster file"):
    mount = secret = version = None
    servers = []
    for number, line in enumerate(text.splitlines(), 1):
        key, _, value = line.partition("#")[0].strip().partition(" ")
        try:
            if key == "madfs":
                version = value
            elif key == "mount" and value.startswith("/"):
                mount = value
            elif key == "secret":
                secret = bytes.fromhex(value)
                if len(secret) != SECRET_BYTES:
                    raise ValueError
            elif key == "server":
                index, host, port, pid, store = value.split(" ", 4)
                servers.append(Server(int(index), host, int(port), int(pid), store))
                if not 0 <= int(port) < 1 << 16 or int(pid) < 0:
                    raise ValueError
            elif key:
                raise ValueError
        except ValueError:
            raise ClusterError(f"{path}, line {number}: not understood: {line[:SHOWN]!r}; make it anew "
                               "with `madfs up`") from None
    if version is None:
        raise ClusterError(f"{path} is no cluster file: name the one that `madfs up` printed")
    if version != VERSION:
        raise ClusterError(f"{path} is of version {version[:SHOWN]}, this MadFS has version {VERSION}: "
                           "make it anew with `madfs up`")
    if not (mount and secret and servers) or [s.number for s in servers] != list(range(len(servers))):
        raise ClusterError(f"{path} lacks a mount, a secret or servers numbered from 0: make it anew with `madfs up`")
    return Cluster(mount, secret, servers, path)
