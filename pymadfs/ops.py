# SPDX-License-Identifier: Apache-2.0
"""Every operation MadFS knows, declared once.

``ATTR`` is what an inode stores, ``OPS`` is what crosses the wire, ``SYSCALLS`` is what the shim answers.  Client and
server read these tables directly; ``generate.py`` renders ``intercept/syscalls.def`` and ``docs/operations.md`` from
them.  Records are little-endian and unpadded; the codes are those of :mod:`struct`.  Numbers are never reused: a
retired one stays as a comment.
"""
import struct
from collections import namedtuple

OPS = {}
SYSCALLS = {}

PROTOCOL = 7
"""Version of everything that crosses the wire.  Bump it when a record, a tag or the door changes."""

_new_tuple = tuple.__new__


class Record:
    """A fixed little-endian layout with named fields: the only codec of the per-operation path.

    ``layout`` is ``"name:code name:code"``.  ``pack`` takes the fields in order, ``unpack`` returns a named tuple read
    in place from ``buffer`` at ``offset``; ``struct.error`` is raised when the buffer is too short.
    """

    __slots__ = ("_codec", "_layout", "fields", "format", "name", "pack", "pack_into", "size", "type")
    fields: list
    size: int

    def __init__(self, name, layout):
        self.name, self._layout = name, layout

    def __getattr__(self, name):
        """Everything is made at its first use: making all of them would be a good part of a client's start."""
        if name == "type":
            self.type = namedtuple(self.name, self.fields)  # type: ignore[misc]  # the fields are not literals
        elif name in Record.__slots__:
            fields = [field.split(":") for field in self._layout.split()]
            self.format = "".join(code for _, code in fields)
            self.fields = [field for field, _ in fields]
            self._codec = struct.Struct("<" + self.format)
            self.size, self.pack, self.pack_into = self._codec.size, self._codec.pack, self._codec.pack_into
        else:
            raise AttributeError(name)
        return getattr(self, name)

    def unpack(self, buffer, offset=0):
        return _new_tuple(self.type, self._codec.unpack_from(buffer, offset))  # _make without its checks: half the time


class Op:
    """One request and its reply: fixed fields, then a tail of bytes whose meaning ``doc`` gives.

    ``data`` names the side that may carry bulk bytes as a message of its own ("request" or "reply"); ``retry`` says
    that repeating the request is the same as sending it once; ``peer`` that only servers send it; ``oneway`` that
    it has no reply.
    """

    def __init__(self, number, name, request, reply, *, data=None, retry=False, peer=False, oneway=False, doc=""):
        if number in OPS:
            raise ValueError(f"operation number {number} is taken by {OPS[number].name}")
        self.number, self.name, self.doc = number, name, doc
        self.data, self.retry, self.peer, self.oneway = data, retry, peer, oneway
        self.request, self.reply = Record(name, request), Record(name + "_reply", reply)
        OPS[number] = self

    def __repr__(self):
        return f"<Op {self.number} {self.name}>"


# --- the frame around every operation -------------------------------------------------------------------------------

# One eager message: REQUEST header, the operation's fields, its tail.  `bulk` is the size of the bulk message that
# follows (data="request") or the room the caller has for one (data="reply"); 0 when the bytes travel in the tail.
# `groups` numbers a set that GROUPS announced on the connection; 0: no groups beside gid.
REQUEST = Record("Request", "op:H groups:H conn:I id:Q uid:I gid:I bulk:I length:I")
assert REQUEST.size == 32

# One eager message: REPLY header, the operation's reply fields (absent when status != 0), tail.  `bulk` is the size of
# the bulk message sent separately.
REPLY = Record("Reply", "id:Q status:i bulk:I")
assert REPLY.size == 16

# A 64-bit UCX tag is kind << 60 | low bits.  Requests carry the connection, replies and bulk the request id.
TAG_SHIFT = 60
TAG_REQUEST, TAG_FSYNC, TAG_REPLY, TAG_FSYNC_REPLY, TAG_BULK_IN, TAG_BULK_OUT = 1, 2, 3, 4, 5, 6

# A status above every errno: the path goes through a symbolic link; the tail of the reply is RESTART and the target.
STATUS_RESTART = 1000
RESTART = Record("Restart", "prefix:H")  # length of the part of the path that names the link

# --- what an inode stores -------------------------------------------------------------------------------------------

ATTR = Record(
    "Attr",
    "ino:Q size:Q blocks:Q atime_ns:q mtime_ns:q ctime_ns:q mode:I nlink:I uid:I gid:I rdev:I chunk_size:I flags:I "
    "cuts:I "  # how often bytes were cut off the file's end: tells writes before from writes after (decision 25)
    "btime_ns:q",
)
assert ATTR.size == 88

# The server of a file's birth is in its inode number; chunk i lives on (home + i) mod N.
INO_HOME_SHIFT = 44
ROOT_INO = 1

FLAG_LINKABLE = 1 << 8  # made without a name and without O_EXCL: may get its first name
FLAG_REMOTE = 1  # this attribute record only points at `ino`, whose inode lives with server ino >> INO_HOME_SHIFT
FLAG_XATTRS = 16  # the inode has extended attributes
FLAG_BEYOND = 1 << 5  # there may be chunks above the size: fallocate was asked for them

# How LOCK asks, its spaces, and the bit of an owner that is an open file description (else a process).
LOCK_TRY, LOCK_WAIT, LOCK_ASK = range(3)
LOCK_RECORD, LOCK_WHOLE = range(2)
OWNER_FILE = 1 << 63

# A flag of OPEN that no program can pass: the file is opened to be executed, which asks for another permission.
OPEN_TO_EXECUTE = 1 << 31

# Bits of SETATTR.valid.
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_ATIME_NOW, SET_MTIME_NOW = (1 << i for i in range(8))
SET_CHOWN = 1 << 9  # chown, whatever it leaves as it is: privileges of the file end
SET_LINK = 1 << 8  # change a symbolic link itself (lchown, AT_SYMLINK_NOFOLLOW)

# Followed by `length` bytes of name; `place` is layout.order(name), type is DT_* of dirent.h.
DIRENT = Record("Dirent", "ino:Q place:Q type:B length:H")

# --- what crosses the wire ------------------------------------------------------------------------------------------
# "path" is an absolute path below the mount: b"/" is the root, b"/a/b" a file; never a trailing slash.
# An operation on an open file names it by `ino` and carries the path of its birth or opening as a hint (the tail).

_A = f"attr:{ATTR.size}s"

LOOKUP = Op(1, "lookup", "", _A, retry=True,
            doc="Attributes of the path in the tail; a symbolic link is not followed, its target is the reply's tail.")
GETATTR = Op(2, "getattr", "ino:Q", _A, retry=True, doc="Attributes of an inode; tail: hint.")
OPEN = Op(3, "open", "flags:I mode:I chunk_size:I ended:Q", "created:B lease_us:I " + _A,
          doc="Open or create the path in the tail (O_CREAT, O_EXCL, O_TRUNC, O_DIRECTORY) and count the opening. "
              "A symbolic link is not opened: its attributes come back with its target as tail. With `lease_us`, the "
              "tail has the bytes of a small file, which nobody changes for so long (decision 0050). `ended`, if not "
              "0, is an opening that ended: see RELEASE.")
RELEASE = Op(4, "release", "", "", oneway=True, doc="Openings that ended; tail: their inode numbers, 8 bytes each.")
MKDIR = Op(5, "mkdir", "mode:I", _A, doc="Make the directory in the tail.")
UNLINK = Op(6, "unlink", "", "", doc="Remove the name in the tail; its chunks are removed behind the reply.")
RMDIR = Op(7, "rmdir", "", "", doc="Remove the empty directory in the tail.")
# 8 was a listing by name.
RENAME = Op(9, "rename", "flags:I length:H", "",
            doc="Move the name `tail[:length]` of a file or link to `tail[length:]`, replacing what is there "
                "(RENAME_NOREPLACE). EXDEV: it is a directory's, ask MOVETREE.")
SETATTR = Op(10, "setattr", "ino:Q valid:I mode:I uid:I gid:I size:Q atime_ns:q mtime_ns:q", _A, retry=True,
             doc="Change what `valid` names. Tail: the path when ino is 0, else the hint. A path that names a symbolic "
                 "link changes only with SET_LINK; without it, its attributes come back with its target as tail.")
SYMLINK = Op(11, "symlink", "length:H", _A, doc="Make the link `tail[:length]` that points to `tail[length:]`.")
READ = Op(12, "read", "ino:Q chunk:Q offset:I length:I", "count:I size:q", data="reply", retry=True,
          doc="Stored bytes of one chunk; fewer than asked at the end of what is stored (a hole, or the file's end): "
              "then `size` is that of the file, if the tail is a hint and this its home; otherwise -1.")
WRITE = Op(13, "write", "ino:Q chunk:Q offset:I length:I end:Q hint:H begin:Q cuts:I", "size:Q cuts:I", data="request",
           retry=True,
           doc="Store bytes in one chunk. With end > 0 this is the file's home: the size becomes at least `end`, the "
               "times change, and [begin, end) is what the whole call writes. `cuts` is the number of the last cut "
               "that the writer knows of, the answer's that of the server. "
               "Tail: `hint` bytes of path, then the data when it is not a bulk message.")
EXTEND = Op(14, "extend", "ino:Q begin:Q end:Q cuts:I", "size:Q cuts:I", retry=True,
            doc="[begin, end) is being written: the size becomes at least `end` and the times change; sent in parallel "
                "with the data. `cuts`: see WRITE. Tail: hint.")
# 15 was RESERVE.
FSYNC = Op(16, "fsync", "ino:Q", "", retry=True,
           doc="Durable when answered; travels under its own tags to the background sync thread. Tail: hint.")
STATFS = Op(17, "statfs", "", "block:Q blocks:Q free:Q available:Q files:Q files_free:Q device:Q", retry=True,
            doc="Space of this server's store, in units of `block` bytes. Stores with the same `device` share it.")
STATUS = Op(18, "status", "", "", retry=True, doc="A FlexBuffer with this server's counters in the reply's tail.")
SHUTDOWN = Op(19, "shutdown", "", "", doc="End the server after what it has in hand.")
DIRINFO = Op(20, "dirinfo", "server:I writes:B", _A, peer=True, retry=True,
             doc="Attributes of the directory in the tail, for `server` to keep until INVALIDATE; as LOOKUP otherwise. "
                 "`writes`: it is going to change entries in it, until TIMES asks when it did.")
INVALIDATE = Op(21, "invalidate", "", "", peer=True, retry=True,
                doc="Forget the directory in the tail, or all without one.")
EMPTY = Op(22, "empty", "", "empty:B", peer=True, retry=True,
           doc="Forget the directory in the tail and say whether this server has no entry in it.")
INSTALL = Op(23, "install", "flags:I length:H uid:I gid:I groups:H id:Q below:Q server:I " + _A, "", peer=True,
             retry=True,
             doc="Second half of rename `id` of `server` for a user: put the entry at the path `tail[:length]`, "
                 "replacing what is there. Then `groups` supplementary groups, 4 bytes each, and a link's target. "
                 "Renames before `below` are over. EAGAIN: the name is in use.")
CUT = Op(24, "cut", "ino:Q size:Q chunk_size:I cuts:I", "blocks:Q", peer=True, retry=True,
         doc="Drop stored bytes of a file from `size` on, on this server: cut number `cuts` of the file. "
             "Answers how many blocks of 512 bytes that freed.")
TOUCH = Op(25, "touch", "server:I keep:B", "", peer=True, retry=True,
           doc="`server` changed entries of the directory in the tail and wants to be asked by TIMES when.")
LOCK = Op(26, "lock", "ino:Q owner:Q opener:I start:Q end:Q type:H how:B space:B", "type:H start:Q end:Q owner:Q",
          retry=True,
          doc="Lock [start, end) of a file for an owner: type F_RDLCK, F_WRLCK or F_UNLCK; how LOCK_TRY, LOCK_WAIT "
              "(EAGAIN: ask again) or LOCK_ASK (the lock that is in the way); space LOCK_WHOLE for flock. `opener` is "
              "the process of the caller's host that opened the file, if it holds the lock as well. Tail: hint.")
REOPEN = Op(27, "reopen", "ino:Q flags:I", _A,
            doc="Count an opening of an inode at its home, where OPEN's answer pointed (FLAG_REMOTE): access and "
                "O_TRUNC as there. Tail: hint.")
# 28 was DROP.
LINK = Op(34, "link", "ino:Q length:H", "",
          doc="Make the path `tail[:length]` a further name of an inode. The rest of the tail: hint.")
COUNT = Op(35, "count", "ino:Q change:i now_ns:q id:Q below:Q server:I", _A, peer=True, retry=True,
           doc="Debt `id` of `server`: add to the link count of an inode that lives here, or, when ino is 0, of the "
               "directory in the tail, which changed at `now_ns`. Debts before `below` are over. Tail: hint. The reply "
               "to a change above 0 has the attributes, and a symbolic link's target as tail.")
TMPFILE = Op(36, "tmpfile", "exclusive:B mode:I chunk_size:I", _A,
             doc="Make and open a file without a name in the directory above the path in the tail, which only says "
                 "where the file lives. Unless `exclusive`, LINK can give it a name.")
HELD = Op(37, "held", "", "",
          doc="Count openings that the server does not know or attributes to another process: of files open before it "
              "was restarted, or inherited. Tail: inode numbers, 8 bytes each.")
KEEP = Op(38, "keep", "", "", oneway=True,
          doc="The sender will end or become another program, and others may have inherited its open files: count an "
              "opening of each until HELD comes, or for a while. Tail: inode numbers, 8 bytes each.")
SEEK = Op(39, "seek", "ino:Q offset:Q chunk_size:I hole:B", "offset:Q done:B size:Q", retry=True,
          doc="The first data, or hole, at or after `offset` in the chunks of this server; SEEK_NONE without any. "
              "Not `done`: look on from there. Tail: hint at the file's home, which answers its size, or nothing.")
FALLOCATE = Op(40, "fallocate", "ino:Q mode:I offset:Q length:Q", _A, retry=True,
               doc="Allocate, punch out or zero a range (FALLOC_FL_*), on all servers. Tail: hint.")
RESHAPE = Op(41, "reshape", "ino:Q mode:I offset:Q length:Q chunk_size:I", "blocks:q", peer=True, retry=True,
             doc="FALLOCATE's part of one server. Answers by how many blocks of 512 bytes what is stored grew.")
ACCESSED = Op(42, "accessed", "ino:Q", "", oneway=True,
              doc="The file or link was read: its atime becomes now, if that is due. Tail: hint.")
SEEK_NONE = (1 << 63) - 1
READDIR = Op(50, "readdir", "after:Q limit:I", "done:B ino:Q", retry=True,
             doc="One page of this server's entries of the directory in the tail: those whose place is above `after`, "
                 "in order. `ino` is the directory's own number where its entry lies, else 0. Reply's tail: DIRENT "
                 "records, `limit` bytes at most, or one.")

WHERE = Op(29, "where", "ino:Q", "", retry=True,
           doc="Where a directory that was born here is now, in the reply's tail. ENOENT: it never moved, or is gone.")
MOVETREE = Op(30, "movetree", "flags:I length:H ticket:Q begin:B", "done:B",
              doc="Rename the directory `tail[:length]` to `tail[length:]` (RENAME_NOREPLACE), or exchange two names "
                  "of any kind (RENAME_EXCHANGE). Asked of the owner of the root. Not `done`, or the "
                  "server was lost: ask again with the same ticket and begin 0.")
FREEZE = Op(31, "freeze", "id:Q flags:I length:H", "below:B", peer=True, retry=True,
            doc="Park requests for what is at or below the names `tail[:length]` and `tail[length:]` until TREE's "
                "THAW; answered when nothing is under way there, with whether something is below the second.")
PLACE = Op(32, "place", "id:Q", "", peer=True, retry=True,
           doc="Entries that rename `id` moves to this server, and where directories that were born here are.")
TREE = Op(33, "tree", "id:Q step:H length:H uid:I gid:I links:i now:q", "result:I", peer=True, retry=True,
          doc="One step of rename `id` of a directory; server/relocate.py has them.")
GROUPS = Op(51, "groups", "number:H", "", retry=True,
            doc="Supplementary groups that `groups` = `number` means in later requests of this connection; tail: group "
                "numbers, 4 bytes each.")
SETXATTR = Op(44, "setxattr", "ino:Q flags:I name:H hint:H", "", data="request",
              doc="Set an extended attribute (XATTR_CREATE, XATTR_REPLACE). Tail: `name` bytes of name, `hint` bytes "
                  "of path, then the value when it is not a bulk message.")
GETXATTR = Op(45, "getxattr", "ino:Q name:H", "", retry=True,
              doc="Value of an extended attribute as the reply's tail. Tail: `name` bytes of name, then the hint.")
LISTXATTR = Op(46, "listxattr", "ino:Q", "", retry=True,
               doc="Names of the extended attributes that the caller may see, each with a NUL behind it, as the "
                   "reply's tail. Tail: hint.")
REMOVEXATTR = Op(47, "removexattr", "ino:Q name:H", "",
                 doc="Remove an extended attribute. Tail: `name` bytes of name, then the hint.")
LOCKWAITS = Op(49, "lockwaits", "", "", peer=True, retry=True,
               doc="Reply's tail: who waits for whom in record locks here, pairs of owners, 8 bytes each.")
MKNOD = Op(48, "mknod", "mode:I rdev:I", _A,
           doc="Make the FIFO, device node or socket in the tail; `rdev` is as the kernel encodes it in 32 bits.")

INVENTORY = Op(56, "inventory", "", "cursor:H", retry=True,
               doc="One page of what this server has in its store, for fsck: its keys, then its chunk files. Tail: the "
                   "cursor of the previous page or nothing. Reply's tail: the next cursor (`cursor` bytes, none at the "
                   "end), then ITEM records.")
ITEM = Record("Item", "key:H value:H flags:B")  # then the key, and for entries and inodes the start of the value; all
# of it for an entry that belongs to another server
ITEM_OPEN = 1  # the inode is open, or may be
ITEM_LOST = 2  # the file of this chunk does not exist
ITEM_DAMAGED = 4  # the record cannot be one of its kind
ITEM_FILE = b"f"  # takes the place of the C in the key that a chunk file should have
MEND = Op(57, "mend", "action:B ino:Q number:Q", "done:B",
          doc="Put one thing right that fsck found; only for root and the servers' user. `done` is 0 when it is not so "
              "any more. Tail: a path, or a key.")
ARRIVED = Op(71, "arrived", "conn:I id:Q", "arrived:B", retry=True,
             doc="Whether request `id` of a former connection may have come to this server before it began anew.")
TIMES = Op(73, "times", "server:I keep:B", "mtime_ns:q", peer=True,
           doc="When entries of the directory in the tail last changed on the asked server, 0: not since it was last "
               "asked. Without `keep` it announces the next change by DIRINFO. Without a tail: the same of directories "
               "that `server` owns, a page of records in the reply's tail, until there are none.")
NUMBER = Op(72, "number", "", "ino:Q", retry=True,
            doc="Inode number of the directory in the tail, without the times that LOOKUP may have to collect.")
UNFINISHED = Op(70, "unfinished", "", "count:I", retry=True,
                doc="How much waits here for a server that was dead: names that answer EIO until a rename is completed "
                    "or taken back, and link counts. A server that was killed says so to the others when it is back.")
RETRACT = Op(75, "retract", "ino:Q kept:Q end:Q", "size:Q", retry=True,
             doc="A write up to `end` found no room behind `kept` (0: anywhere): the size goes back, unless somebody "
                 "else wrote since, and what is stored above it goes. Tail: hint.")
STRAY = Op(76, "stray", "ino:Q chunk:Q end:I", "", peer=True, retry=True,
           doc="A client that is gone may have stored up to `end` bytes of that chunk without telling the file's home, "
               "which drops what is above the file's end before it grows.")
APPEND = Op(77, "append", "ino:Q length:I hint:H turn:Q more:B", "offset:Q cuts:I", data="request",
            doc="Store `length` bytes (up to APPEND_MAX) at the end of the file, as a whole or not at all (O_APPEND), "
                "and say where they begin. A record of several such parts has a number in `turn`, else 0: with `more`, "
                "the next part of it comes before what others append. Asked of the file's home, which has the bytes "
                "stored. Tail: `hint` bytes of path, then the data when it is not a bulk message.")
APPEND_MAX = 1 << 20
STORE = Op(78, "store", "ino:Q chunk:Q offset:I", "", data="request", peer=True,
           doc="Store bytes in one chunk, for the file's home. Tail: the data when it is not a bulk message.")
GROWING = Op(79, "growing", "ino:Q", "growing:B", retry=True,
             doc="Whether the bytes of one of the ranges in the tail may be on their way: a write made the file that "
                 "long a moment ago. The answer then takes a moment, too. Tail: begin and end of each, 8 bytes each.")
MEND_LINKS, MEND_DIRECTORY, MEND_ENTRY, MEND_DATA, MEND_PARENT, MEND_ORPHAN, MEND_RECORD, MEND_CHUNK, MEND_DETACH, \
    MEND_TWIN, MEND_MISPLACED, MEND_PLACE, MEND_INODE, MEND_XATTRS = range(1, 15)

# --- what the shim answers ------------------------------------------------------------------------------------------


class Syscall:
    """One system call.

    ``call`` is the equivalent canonical call: ``at(dirfd, path)`` becomes an absolute path, ``fd(n)`` an open file of
    ours, ``str(p)`` a string, anything else an integer.  The call is ours when one of its paths or descriptors is.
    ``empty`` is what it means when the path is NULL or empty with AT_EMPTY_PATH in argument ``flags``; with ``null``
    a NULL path means it whatever the flags are.
    ``shim`` rows are answered in C by ``shim_<call>``; ``refuse`` rows fail with that errno when they are ours.
    ``kernel`` rows are left to the kernel for the reason given.
    ``only`` fences a row to one architecture; ``note`` says what is not complete.
    """

    def __init__(self, name, call, *, empty=None, flags=None, null=False, shim=False, refuse=None, kernel=None,
                 only=None, note="complete"):
        if name in SYSCALLS:
            raise ValueError(f"system call {name} is declared twice")
        self.name, self.call, self.empty, self.flags, self.null = name, call, empty, flags, null
        self.shim, self.refuse, self.kernel, self.only, self.note = shim, refuse, kernel, only, note
        SYSCALLS[name] = self

    @property
    def target(self):
        return self.call.partition("(")[0]


def arguments(call):
    """``"openat(at(a0, a1), a2, 0)"`` -> ``[("at", "a0", "a1"), ("int", "a2"), ("int", "0")]``."""
    parsed, inner = [], call[call.index("(") + 1:call.rindex(")")]
    while inner:
        # A comma within parentheses belongs to the argument before it.
        end = inner.index(")") if inner.startswith(("at(", "fd(", "str(")) else 0
        text, _, rest = inner[end:].partition(",")
        kind, _, value = (inner[:end] + text).strip().rstrip(")").rpartition("(")
        parsed.append((kind or "int", *(part.strip() for part in value.split(","))))
        inner = rest.strip()
    return parsed


# Arguments of canonical calls, by position, that are an int or unsigned int of C: the upper half of their registers may
# hold anything.
NARROW = {
    "openat": (1, 2), "preadv2": (4,), "pwritev2": (4,), "lseek": (2,), "fallocate": (1,), "sync_file_range": (3,),
    "fadvise": (2,), "getdents64": (2,), "getdents": (2,), "ioctl": (1,), "newfstatat": (2,), "statx": (1, 2),
    "fstatx": (1,), "faccessat": (1, 2), "faccess": (1, 2), "readlinkat": (2,), "freadlink": (2,), "mkdirat": (1,),
    "mknodat": (1, 2), "unlinkat": (1,), "renameat2": (2,), "linkat": (2,), "flinkat": (2,), "fchmodat": (1, 2),
    "fchmod": (1, 2), "fchownat": (1, 2, 3), "fchown": (1, 2, 3), "utimensat": (2,), "futimens": (2,),
    "setxattr": (4,), "fsetxattr": (4,), "setxattrat": (1,), "fsetxattrat": (1,), "getxattrat": (1,),
    "fgetxattrat": (1,), "listxattrat": (1,), "flistxattrat": (1,), "removexattrat": (1,), "fremovexattrat": (1,),
}

X86 = "x86_64"

Syscall("openat", "openat(at(a0, a1), a2, a3)")
Syscall("open", "openat(at(AT_FDCWD, a0), a1, a2)", only=X86)
Syscall("creat", "openat(at(AT_FDCWD, a0), O_CREAT|O_WRONLY|O_TRUNC, a1)", only=X86)
Syscall("openat2", "openat2(at(a0, a1), a2, a3, str(a1))",
        note="RESOLVE_CACHED looks things up all the same; with RESOLVE_* flags names are looked up one by one")

Syscall("read", "read(fd(a0), a1, a2)")
Syscall("write", "write(fd(a0), a1, a2)")
Syscall("pread64", "pread(fd(a0), a1, a2, a3)")
Syscall("pwrite64", "pwrite(fd(a0), a1, a2, a3)")
Syscall("readv", "readv(fd(a0), a1, a2)")
Syscall("writev", "writev(fd(a0), a1, a2)")
Syscall("preadv", "preadv(fd(a0), a1, a2, a3)")
Syscall("pwritev", "pwritev(fd(a0), a1, a2, a3)")
Syscall("preadv2", "preadv2(fd(a0), a1, a2, a3, a5)", note="RWF_NOWAIT: EOPNOTSUPP, as on tmpfs")
Syscall("pwritev2", "pwritev2(fd(a0), a1, a2, a3, a5)", note="RWF_NOWAIT and RWF_ATOMIC: EOPNOTSUPP")
Syscall("lseek", "lseek(fd(a0), a1, a2)")
Syscall("ftruncate", "ftruncate(fd(a0), a1)")
Syscall("truncate", "truncate(at(AT_FDCWD, a0), a1)")
Syscall("fallocate", "fallocate(fd(a0), a1, a2, a3)",
        note="COLLAPSE_RANGE, INSERT_RANGE and UNSHARE_RANGE: EOPNOTSUPP, as on tmpfs")
Syscall("fsync", "fsync(fd(a0))")
Syscall("fdatasync", "fsync(fd(a0))")
Syscall("syncfs", "fsync(fd(a0))", note="syncs the file the descriptor names")
Syscall("sync_file_range", "sync_file_range(fd(a0), a1, a2, a3)")
Syscall("fadvise64", "fadvise(fd(a0), a2, a3)")
Syscall("readahead", "readahead(fd(a0))")
Syscall("getdents64", "getdents64(fd(a0), a1, a2)")
Syscall("getdents", "getdents(fd(a0), a1, a2)", only=X86)
Syscall("mmap", "mmap(fd(a4), a0, a1, a2, a3, a5)",
        note="MAP_PRIVATE shows the file as it is at the call; MAP_SHARED is coherent within a node: docs/mmap.md")
Syscall("munmap", "munmap(a0, a1)", shim=True, note="complete; noted because stores are then carried to the servers")
Syscall("mremap", "mremap(a0, a1, a2, a3, a4)", shim=True,
        note="a private mapping does not grow beyond what its file had at mmap()")
Syscall("msync", "msync(a0, a1, a2)", shim=True,
        note="MS_ASYNC carries stores to the servers, MS_SYNC makes them durable as well; MS_INVALIDATE shows those of "
             "other nodes")
Syscall("mprotect", "mprotect(a0, a1, a2)", shim=True,
        note="complete; noted because the text of a file that becomes executable is rewritten first")
Syscall("pkey_mprotect", "mprotect(a0, a1, a2, a3)", shim=True, note="as mprotect")
Syscall("ioctl", "ioctl(fd(a0), a1, a2)",
        note="FIONREAD, FIONBIO, FIOCLEX, FIONCLEX; those that share extents (FICLONE): EOPNOTSUPP; others: ENOTTY")
Syscall("flock", "flock(a0, a1)", shim=True)

Syscall("newfstatat", "newfstatat(at(a0, a1), a2, a3)", empty="fstat(fd(a0), a2)", flags="a3")
Syscall("stat", "newfstatat(at(AT_FDCWD, a0), a1, 0)", only=X86)
Syscall("lstat", "newfstatat(at(AT_FDCWD, a0), a1, AT_SYMLINK_NOFOLLOW)", only=X86)
Syscall("fstat", "fstat(fd(a0), a1)")
Syscall("statx", "statx(at(a0, a1), a2, a3, a4)", empty="fstatx(fd(a0), a3, a4)", flags="a2")
Syscall("faccessat", "faccessat(at(a0, a1), a2, 0)")
Syscall("faccessat2", "faccessat(at(a0, a1), a2, a3)", empty="faccess(fd(a0), a2, a3)", flags="a3")
Syscall("access", "faccessat(at(AT_FDCWD, a0), a1, 0)", only=X86)
Syscall("readlinkat", "readlinkat(at(a0, a1), a2, a3)", empty="freadlink(fd(a0), a2, a3)", flags="0")
Syscall("readlink", "readlinkat(at(AT_FDCWD, a0), a1, a2)", only=X86)
Syscall("statfs", "statfs(at(AT_FDCWD, a0), a1)")
Syscall("fstatfs", "fstatfs(fd(a0), a1)")

Syscall("mkdirat", "mkdirat(at(a0, a1), a2)")
Syscall("mkdir", "mkdirat(at(AT_FDCWD, a0), a1)", only=X86)
Syscall("mknodat", "mknodat(at(a0, a1), a2, a3)")
Syscall("mknod", "mknodat(at(AT_FDCWD, a0), a1, a2)", only=X86)
Syscall("unlinkat", "unlinkat(at(a0, a1), a2)")
Syscall("unlink", "unlinkat(at(AT_FDCWD, a0), 0)", only=X86)
Syscall("rmdir", "unlinkat(at(AT_FDCWD, a0), AT_REMOVEDIR)", only=X86)
Syscall("renameat2", "renameat2(at(a0, a1), at(a2, a3), a4)",
        note="RENAME_NOREPLACE, RENAME_EXCHANGE; RENAME_WHITEOUT: EINVAL")
Syscall("renameat", "renameat2(at(a0, a1), at(a2, a3), 0)")
Syscall("rename", "renameat2(at(AT_FDCWD, a0), at(AT_FDCWD, a1), 0)", only=X86)
Syscall("symlinkat", "symlinkat(str(a0), at(a1, a2))")
Syscall("symlink", "symlinkat(str(a0), at(AT_FDCWD, a1))", only=X86)
Syscall("linkat", "linkat(at(a0, a1), at(a2, a3), a4)", empty="flinkat(fd(a0), at(a2, a3), a4)", flags="a4")
Syscall("link", "linkat(at(AT_FDCWD, a0), at(AT_FDCWD, a1), 0)", only=X86)

Syscall("fchmodat", "fchmodat(at(a0, a1), a2, 0)")
Syscall("fchmodat2", "fchmodat(at(a0, a1), a2, a3)", empty="fchmod(fd(a0), a2, a3)", flags="a3")
Syscall("chmod", "fchmodat(at(AT_FDCWD, a0), a1, 0)", only=X86)
Syscall("fchmod", "fchmod(fd(a0), a1, 0)")
Syscall("fchownat", "fchownat(at(a0, a1), a2, a3, a4)", empty="fchown(fd(a0), a2, a3, a4)", flags="a4")
Syscall("chown", "fchownat(at(AT_FDCWD, a0), a1, a2, 0)", only=X86)
Syscall("lchown", "fchownat(at(AT_FDCWD, a0), a1, a2, AT_SYMLINK_NOFOLLOW)", only=X86)
Syscall("fchown", "fchown(fd(a0), a1, a2, 0)")
Syscall("utimensat", "utimensat(at(a0, a1), a2, a3)", empty="futimens(fd(a0), a2, a3)", flags="a3", null=True)
Syscall("futimesat", "futimesat(at(a0, a1), a2)", empty="futimes(fd(a0), a2)", flags="0", null=True, only=X86)
Syscall("utimes", "futimesat(at(AT_FDCWD, a0), a1)", only=X86)
Syscall("utime", "utime(at(AT_FDCWD, a0), a1)", only=X86)

Syscall("copy_file_range", "copy_file_range(a0, a1, a2, a3, a4, a5)", shim=True, note="16 MiB at most per call")
Syscall("sendfile", "sendfile(a0, a1, a2, a3)", shim=True,
        note="16 MiB at most per call, 256 KiB to a descriptor of the kernel's")
Syscall("splice", "splice(a0, a1, a2, a3, a4, a5)", shim=True,
        note="256 KiB at most per call; what cannot be written has left the pipe nevertheless")
Syscall("tee", "tee(a0, a1, a2, a3)", shim=True, note="the kernel's answers for what is not a pipe: EINVAL, EBADF")

_XATTRS = "user.* on files and directories, trusted.* and security.* for root; system.*: EOPNOTSUPP"
for _name, _follow in (("setxattr", "0"), ("lsetxattr", "AT_SYMLINK_NOFOLLOW")):
    Syscall(_name, f"setxattr(at(AT_FDCWD, a0), a1, a2, a3, a4, {_follow})", note=_XATTRS)
for _name, _follow in (("getxattr", "0"), ("lgetxattr", "AT_SYMLINK_NOFOLLOW")):
    Syscall(_name, f"getxattr(at(AT_FDCWD, a0), a1, a2, a3, {_follow})", note=_XATTRS)
for _name, _follow in (("listxattr", "0"), ("llistxattr", "AT_SYMLINK_NOFOLLOW")):
    Syscall(_name, f"listxattr(at(AT_FDCWD, a0), a1, a2, {_follow})")
for _name, _follow in (("removexattr", "0"), ("lremovexattr", "AT_SYMLINK_NOFOLLOW")):
    Syscall(_name, f"removexattr(at(AT_FDCWD, a0), a1, {_follow})", note=_XATTRS)
Syscall("fsetxattr", "fsetxattr(fd(a0), a1, a2, a3, a4)", note=_XATTRS)
Syscall("fgetxattr", "fgetxattr(fd(a0), a1, a2, a3)", note=_XATTRS)
Syscall("flistxattr", "flistxattr(fd(a0), a1, a2)")
Syscall("fremovexattr", "fremovexattr(fd(a0), a1)", note=_XATTRS)
Syscall("setxattrat", "setxattrat(at(a0, a1), a2, a3, a4, a5)", empty="fsetxattrat(fd(a0), a2, a3, a4, a5)", flags="a2",
        note=_XATTRS)
Syscall("getxattrat", "getxattrat(at(a0, a1), a2, a3, a4, a5)", empty="fgetxattrat(fd(a0), a2, a3, a4, a5)", flags="a2",
        note=_XATTRS)
Syscall("listxattrat", "listxattrat(at(a0, a1), a2, a3, a4)", empty="flistxattrat(fd(a0), a2, a3, a4)", flags="a2")
Syscall("removexattrat", "removexattrat(at(a0, a1), a2, a3)", empty="fremovexattrat(fd(a0), a2, a3)", flags="a2",
        note=_XATTRS)
Syscall("name_to_handle_at", "name_to_handle_at(at(a0, a1))", refuse="EOPNOTSUPP", note="no file handles")
Syscall("inotify_add_watch", "inotify_add_watch(at(AT_FDCWD, a1))", refuse="EOPNOTSUPP", note="no notification")
Syscall("fanotify_mark", "fanotify_mark(at(a3, a4))", refuse="EOPNOTSUPP", note="no notification")
Syscall("chroot", "chroot(at(AT_FDCWD, a0))", refuse="EINVAL", note="the mount exists for intercepted calls only")
Syscall("umount2", "umount2(at(AT_FDCWD, a0))", refuse="EINVAL", note="not a mount of the kernel's")
Syscall("swapon", "swapon(at(AT_FDCWD, a0))", refuse="EINVAL", note="not a swap device")
for _name, _call in (("mount", "at(AT_FDCWD, a1)"), ("pivot_root", "at(AT_FDCWD, a0), at(AT_FDCWD, a1)"),
                     ("move_mount", "at(a0, a1), at(a2, a3)"), ("open_tree", "at(a0, a1)"),
                     ("open_tree_attr", "at(a0, a1)"), ("mount_setattr", "at(a0, a1)"), ("fspick", "at(a0, a1)"),
                     ("swapoff", "at(AT_FDCWD, a0)")):
    Syscall(_name, f"{_name}({_call})", refuse="EINVAL", note="not a mount of the kernel's")
Syscall("quotactl", "quotactl(at(AT_FDCWD, a1))", refuse="ENOTBLK", note="not a block device")
Syscall("uselib", "uselib(at(AT_FDCWD, a0))", refuse="ENOEXEC", only=X86, note="libraries of Linux 1")
for _name in ("file_getattr", "file_setattr"):
    Syscall(_name, f"{_name}(at(a0, a1))", refuse="EOPNOTSUPP", note="no such attributes")
Syscall("cachestat", "cachestat(fd(a0))", refuse="EOPNOTSUPP", note="there is no page cache")
Syscall("recvmsg", "recvmsg(a0, a1, a2)", shim=True, note="descriptors of ours from processes of the same tree")
Syscall("recvmmsg", "recvmsg(a0, a1, a2, a3, a4)", shim=True)
Syscall("pidfd_getfd", "pidfd_getfd(a0, a1, a2)", shim=True, note="from a process of the same tree")
_SOCKETS = "sockets at a path in the mount work between processes of one node"
Syscall("bind", "bind(a0, a1, a2)", shim=True, note=_SOCKETS)
Syscall("connect", "connect(a0, a1, a2)", shim=True, note=_SOCKETS)
Syscall("sendto", "sendto(a0, a1, a2, a3, a4, a5)", shim=True, note=_SOCKETS)
for _name in ("getsockname", "getpeername", "accept", "accept4", "recvfrom"):
    Syscall(_name, "getsockname(a0)", shim=True, note="complete; noted because the address of a socket in the "
            "mount is its path there")
Syscall("io_submit", "io_submit(a0, a1, a2)", shim=True,
        note="requests for a file of ours are done before the call returns; those that fail are errors of the call")
Syscall("io_uring_setup", "io_uring_setup(a0, a1)", shim=True,
        note="ENOSYS: what is asked through a ring passes by the shim; callers fall back to system calls")
for _name in ("finit_module", "kexec_file_load"):
    Syscall(_name, f"{_name}(fd(a0){', fd(a1)' if _name[0] == 'k' else ''})", refuse="ENOEXEC",
            note="the kernel cannot read it")
Syscall("quotactl_fd", "quotactl_fd(fd(a0))", refuse="ESRCH", note="no quotas")
Syscall("acct", "acct(at(AT_FDCWD, a0))", refuse="EACCES", note="the kernel cannot write there")

# Answered in C: the table of open files, the working directory and the life of the process.
Syscall("close", "close(a0)", shim=True)
Syscall("close_range", "close_range(a0, a1, a2)", shim=True)
Syscall("dup", "dup(a0)", shim=True)
Syscall("dup2", "dup2(a0, a1)", shim=True, only=X86)
Syscall("dup3", "dup3(a0, a1, a2)", shim=True)
Syscall("fcntl", "fcntl(a0, a1, a2)", shim=True,
        note="record locks of processes and of open files through the server; leases, and notification of what happens "
             "in a directory: EINVAL")
Syscall("chdir", "chdir(a0)", shim=True)
Syscall("fchdir", "fchdir(a0)", shim=True)
Syscall("getcwd", "getcwd(a0, a1)", shim=True)
Syscall("umask", "umask(a0)", shim=True)
Syscall("execve", "execve(a0, a1, a2)", shim=True,
        note="a program that lies on the mount is copied to memory, as are libraries there that it starts with; "
             "set-user-ID bits are ignored")
Syscall("execveat", "execveat(a0, a1, a2, a3, a4)", shim=True, note="as execve")
Syscall("rt_sigaction", "rt_sigaction(a0, a1, a2, a3)", shim=True,
        note="handlers of SIGSEGV and SIGBUS are called by the shim, which looks for bad addresses of its own first")
Syscall("sigaltstack", "sigaltstack(a0, a1)", shim=True,
        note="complete; a thread without one has one of ours, for crashes of ours, of which the program is not told")
Syscall("fork", "fork()", shim=True, only=X86)
Syscall("vfork", "vfork()", shim=True, only=X86,
        note="what the child opens below the mount, a copy of the process opens for it")
Syscall("clone", "clone(a0, a1, a2, a3, a4)", shim=True)
Syscall("clone3", "clone3(a0, a1)", shim=True)
Syscall("unshare", "unshare(a0)", shim=True,
        note="complete; noted because of CLONE_FILES, after which a thread has a table of descriptors of its own")
Syscall("exit_group", "exit_group(a0)", shim=True)
Syscall("sendmsg", "sendmsg(a0, a1, a2)", shim=True, note=_SOCKETS)
Syscall("sendmmsg", "sendmsg(a0, a1, a2, a3)", shim=True, note=_SOCKETS)

# The kernel does these; the client then asks anew who the thread is.
for _name, _arguments in (("setuid", "a0"), ("setgid", "a0"), ("setreuid", "a0, a1"), ("setregid", "a0, a1"),
                          ("setresuid", "a0, a1, a2"), ("setresgid", "a0, a1, a2"), ("setfsuid", "a0"),
                          ("setfsgid", "a0"), ("setgroups", "a0, a1")):
    Syscall(_name, f"set_identity({_arguments})", shim=True,
            note="complete; noted because the thread's later calls are made in the new name")

for _name in ("prctl", "seccomp"):
    Syscall(_name, "filter(a0, a1, a2)", shim=True,
            note="complete; noted because under a filter the client may be unable to do what it does at the end")

# The program's own hard limit of descriptors: the client's lie above the soft one (intercept/limits.c).
for _name, _arguments in (("prlimit64", "a0, a1, a2, a3"), ("setrlimit", "a0, a1"), ("getrlimit", "a0, a1")):
    Syscall(_name, f"limit({_arguments})", shim=True,
            note="complete for the process itself; the kernel's hard limit of descriptors stays as high as it was")

# Left to the kernel, to which a descriptor of ours is a regular file that is open for reading only and empty: the
# calls, with the arguments that may be such a descriptor.
for _reason, _calls in {
    "a regular file is always ready": "poll() ppoll() select() pselect6() epoll_wait(fd(a0)) epoll_pwait(fd(a0)) "
                                      "epoll_pwait2(fd(a0))",
    "the kernel's answer for a regular file: EPERM": "epoll_ctl(fd(a0),fd(a2))",
    "the kernel's answer for what is no socket: ENOTSOCK":
        "shutdown(fd(a0)) listen(fd(a0)) setsockopt(fd(a0)) getsockopt(fd(a0))",
    "the kernel's answer for another kind of descriptor: EINVAL or EBADF":
        "vmsplice(fd(a0)) signalfd(fd(a0)) signalfd4(fd(a0)) timerfd_settime(fd(a0)) timerfd_gettime(fd(a0)) "
        "inotify_rm_watch(fd(a0)) mq_timedsend(fd(a0)) mq_timedreceive(fd(a0)) mq_notify(fd(a0)) "
        "mq_getsetattr(fd(a0)) pidfd_send_signal(fd(a0)) process_madvise(fd(a0)) process_mrelease(fd(a0)) waitid() "
        "perf_event_open(fd(a3)) fsconfig(fd(a0)) fsmount(fd(a0)) setns(fd(a0)) landlock_add_rule(fd(a0)) "
        "landlock_restrict_self(fd(a0)) open_by_handle_at(fd(a0)) bpf()",
    "no ring can be made": "io_uring_enter(fd(a0)) io_uring_register(fd(a0))",
    "compares what the kernel knows: every opening has a description of its own there, as it should": "kcmp()",
    "for the file systems of the kernel": "sync()",
}.items():
    for _call in _calls.split():
        _name = _call.partition("(")[0]
        Syscall(_name, _call, kernel=_reason,
                only=X86 if _name in ("poll", "select", "epoll_wait", "signalfd") else None)

# These carry neither a path nor a descriptor that could be ours, or make a new descriptor of the kernel's.
_NO_NAMES = """
brk rt_sigprocmask rt_sigreturn pipe sched_yield mincore madvise shmget shmat shmctl pause
nanosleep getitimer alarm setitimer getpid socket socketpair exit wait4 kill uname semget semop semctl shmdt msgget
msgsnd msgrcv msgctl gettimeofday getrusage sysinfo times ptrace getuid syslog getgid geteuid
getegid setpgid getppid getpgrp setsid getgroups getresuid getresgid getpgid getsid capget capset rt_sigpending
rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend
personality ustat sysfs getpriority setpriority sched_setparam sched_getparam sched_setscheduler sched_getscheduler
sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall vhangup
modify_ldt _sysctl arch_prctl adjtimex settimeofday reboot sethostname setdomainname iopl ioperm
create_module init_module delete_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall
security gettid tkill time futex sched_setaffinity sched_getaffinity set_thread_area io_setup io_destroy io_getevents
io_cancel get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old remap_file_pages set_tid_address
restart_syscall semtimedop timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime
clock_gettime clock_getres clock_nanosleep tgkill vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink
kexec_load add_key request_key keyctl ioprio_set ioprio_get inotify_init migrate_pages set_robust_list
get_robust_list move_pages timerfd_create eventfd eventfd2 epoll_create1 pipe2 inotify_init1 rt_tgsigqueueinfo
fanotify_init clock_adjtime getcpu process_vm_readv process_vm_writev sched_setattr sched_getattr
getrandom memfd_create userfaultfd membarrier mlock2 pkey_alloc pkey_free io_pgetevents rseq fsopen
pidfd_open landlock_create_ruleset memfd_secret futex_waitv set_mempolicy_home_node map_shadow_stack futex_wake
futex_wait futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal
"""
NO_NAMES = frozenset(_NO_NAMES.split())

# Numbers, the same everywhere, of calls that the kernel headers of the oldest supported system (Linux 6.1) lack.
NEWER = {
    "cachestat": 451, "fchmodat2": 452, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466,
    "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}

# Calls that C makes of the rows above, never a system call of their own: argument kinds as in Syscall.call.
EXTRA_CALLS = {
    "chdir_path": "chdir_path(at(a0, a1))",  # -> resolved path is stored with shim.set_cwd
    "chdir_fd": "chdir_fd(fd(a0))",
    "identity": "identity(a0, a1)",  # the thread has another user or other groups
    "fcntl_lock": "fcntl_lock(fd(a0), a1, a2)",
    "map_sync": "map_sync(a0, a1, a2, a3)",  # a part of a shared mapping is synchronised, or not mapped any more
    "map_end": "map_end(a0, a1, a2, a3)",  # the last part of a file's shared mappings in this process is gone
    "map_grow": "map_grow(a0, a1, a2, a3)",  # mremap() shows more of the file
    "map_sync_all": "map_sync_all(a0, a1, a2, a3)",  # before the program becomes another one
    "flock": "flock(fd(a0), a1)",
    "closing": "closing(fd(a0), a1)",  # a descriptor goes away of a process that holds record locks
    "unlock_file": "unlock_file(fd(a0))",  # the last descriptor of an open file that was locked goes away
    "program": "program(at(a0, a1), a2, a3)",  # copies what is to be executed to a descriptor of the kernel's
    "program_opened": "program_opened(fd(a0), a1)",  # the same of an open file, which may have no name any more
    "libraries": "libraries(str(a0), a1, str(a2), str(a3), str(a4), a5)",  # copies what a program starts with
    "socket_bind": "socket_bind(at(a0, a1), str(a2), a3, a4)",  # makes the entry of a socket and says where to bind it
    "socket_find": "socket_find(at(a0, a1), a2)",  # where the socket at a path is bound
    "reopen": "reopen(fd(a0), a1, a2)",  # open("/proc/self/fd/N")
    "truncate_again": "truncate_again(fd(a0), a1)",  # truncate("/proc/self/fd/N")
    "leave": "leave(fd(a0))",  # other processes may go on with an open file that this one does not use any more
    "release": "release(fd(a0))",  # the last descriptor of an open file went away
}


def _canonical_rows():
    for row in SYSCALLS.values():
        for call in (row.call, row.empty):
            if call and not row.shim and not row.refuse and not row.kernel:
                yield row.name, call
    yield from EXTRA_CALLS.items()


CALL_NAMES = list(dict.fromkeys(call.partition("(")[0] for _, call in _canonical_rows()))
"""Names of the functions that ``syscalls/`` has, in a stable order: a name's index is its call number."""


def canonical_calls():
    """Name -> argument kinds of the functions of ``CALL_NAMES``, in the same order."""
    calls = {}
    for row, call in _canonical_rows():
        name, kinds = call.partition("(")[0], [kind for kind, *_ in arguments(call)]
        if calls.setdefault(name, kinds) != kinds:
            raise ValueError(f"{row}: {name} is used with other kinds of arguments elsewhere")
    return calls
