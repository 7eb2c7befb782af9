# SPDX-License-Identifier: Apache-2.0
"""Random sequences of calls by several processes give on the mount what they give on a local file system.

What is compared: every return value, errno, attribute and byte, and the whole tree at the end.  Not compared: sizes of
directories, st_blocks and st_dev, the values of inode numbers (but which are equal), and times that the clock gave.
When a test fails, its last lines are a minimal script.
"""
import fcntl
import os

import pytest
from driver import Difference, Pair
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="compares users, which only root can become")

NOBODY = 65534
AT_FILE = ("a", "b", "d/a", "d/b", "d/e/a", "l", "../d/a", "./a", "d/../b", "{top}/a", "l/a", "none/a")
DIRECTORIES = ("d", "d/e", "f", "d/", ".", "..", "{top}/d", "l", "l/")
ODD = ("", "a/", "a/b", "d/.", "d/..", "x" * 255, "x" * 256, "d/" + "y" * 255, "/".join("z" * 200 for _ in range(21)))
OLD = 1_000_000_000 * 10**9

NANOSECONDS = st.sampled_from(((1 << 30) - 1, (1 << 30) - 2, 0, 999_999_999, 1_000_000_000, -1))

LAST = st.sampled_from(("a", "b", "e", "e/a", "e/..", ".", "l", "x" * 256))
IDS = st.sampled_from((-1, 0, NOBODY, 1000))
WHO = st.sampled_from(((0, []), (NOBODY, []), (1000, []), (1000, [NOBODY]), (1001, [1000, 0])))

numbers = st.integers(0, 2)
names = st.sampled_from(AT_FILE)
directories = st.sampled_from(DIRECTORIES)
paths = st.one_of(names, directories, st.sampled_from(ODD))
modes = st.sampled_from((0o644, 0o600, 0o755, 0o777, 0o400, 0o000, 0o4755, 0o2755, 0o1777))
sizes = st.sampled_from((0, 1, 10, 4095, 4096, 5000, 70_000))
offsets = st.sampled_from((0, 1, 5, 4090, 4096, 65_536, 131_000))
contents = st.sampled_from(("", "x", "hello", "0123456789" * 20, "y" * 4096, "z" * 9000))
open_flags = st.builds(
    lambda access, more: access | more[0] | more[1],
    st.sampled_from((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)),
    st.tuples(st.sampled_from((0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC)),
              st.sampled_from((0, 0, 0, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH, os.O_SYNC))))

NAMESPACE = [
    st.tuples(st.just("open"), numbers, names, open_flags, modes),
    st.tuples(st.just("close"), numbers),
    st.tuples(st.just("write"), numbers, contents),
    st.tuples(st.just("mkdir"), directories, modes),
    st.tuples(st.just("mkdir"), paths, modes),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("symlink"), paths, paths),
    st.tuples(st.just("readlink"), paths),
    st.tuples(st.just("rename"), paths, paths, st.sampled_from((0, 0, 0, 1, 2, 3, 8))),
    st.tuples(st.just("rename"), names, names, st.sampled_from((0, 1, 2))),
    st.tuples(st.just("rename"), directories, directories, st.sampled_from((0, 1, 2))),
    st.tuples(st.just("link"), paths, paths, st.booleans()),
    st.tuples(st.just("link_open"), numbers, names),
    st.tuples(st.just("mknod"), names, st.sampled_from((0o100644, 0o010600, 0o140600))),
    st.tuples(st.just("stat"), paths),
    st.tuples(st.just("lstat"), paths),
    st.tuples(st.just("fstat"), numbers),
    st.tuples(st.just("list"), paths),
    st.tuples(st.just("chdir"), directories),
    st.tuples(st.just("fchdir"), numbers),
    st.tuples(st.just("getcwd")),
    st.tuples(st.just("openat2"), numbers, paths, open_flags, st.just(0),
              st.sampled_from((0, 2, 4, 8, 16, 12, 24, 64))),
    st.tuples(st.just("openat2"), numbers, names, st.just(os.O_CREAT | os.O_RDWR), st.sampled_from((0o640, 1 << 16)),
              st.sampled_from((0, 4, 8, 16))),
    st.tuples(st.just("reopen"), numbers, numbers, open_flags),
    st.tuples(st.just("open"), numbers, directories, st.sampled_from((os.O_TMPFILE | os.O_RDWR, os.O_TMPFILE | os.O_RDWR
              | os.O_EXCL, os.O_RDONLY | os.O_DIRECTORY, os.O_TMPFILE)), modes),
    st.tuples(st.just("opendir"), st.just(0), directories),
    st.tuples(st.just("readdir"), st.just(0), st.integers(1, 3)),
    st.tuples(st.just("rewinddir"), st.just(0)),
    st.tuples(st.just("listed"), st.just(0)),
    st.tuples(st.just("one_inode"), paths),
    st.tuples(st.just("open"), numbers, directories, st.just(os.O_RDONLY | os.O_DIRECTORY), st.just(0)),
    st.tuples(st.just("open_at"), numbers, numbers, LAST, open_flags, modes),
    st.tuples(st.just("mkdir_at"), numbers, LAST, modes),
    st.tuples(st.just("unlink_at"), numbers, LAST),
    st.tuples(st.just("rename_at"), numbers, LAST, numbers, LAST),
    st.tuples(st.just("stat_at"), numbers, LAST),
]

ATTRIBUTES = [
    st.tuples(st.just("open"), numbers, names, open_flags, modes),
    st.tuples(st.just("mkdir"), directories, modes),
    st.tuples(st.just("symlink"), names, names),
    st.tuples(st.just("stat"), names),
    st.tuples(st.just("lstat"), paths),
    st.tuples(st.just("fstat"), numbers),
    st.tuples(st.just("access"), paths, st.integers(0, 8)),
    st.tuples(st.just("chmod"), paths, modes),
    st.tuples(st.just("fchmod"), numbers, modes),
    st.tuples(st.just("chown"), paths, IDS, IDS, st.booleans()),
    st.tuples(st.just("utime"), paths, st.sampled_from((OLD, OLD + 5, 0)), st.sampled_from((OLD, OLD + 1)),
              st.booleans()),
    st.tuples(st.just("utimens"), paths, NANOSECONDS, NANOSECONDS, st.sampled_from((0, 0, 0x100, 0x8000))),
    st.tuples(st.just("xattr_size"), names, st.sampled_from(("user.a", "user.b")),
              st.sampled_from((0, 1, 4, 400, 70_000))),
    st.tuples(st.just("setxattr"), names, st.sampled_from(("user.a", "user." + "n" * 250, "user." + "n" * 251)),
              st.sampled_from(("", "x" * 1000, "x" * 65537)), st.sampled_from((0, 1, 2, 3, 4))),
    st.tuples(st.just("mkdir"), directories, st.sampled_from((0o2777, 0o2755))),
    st.tuples(st.just("chmod"), directories, st.sampled_from((0o2777, 0o3777, 0o1777))),
    st.tuples(st.just("open"), numbers, directories, st.just(os.O_TMPFILE | os.O_RDWR), modes),
    st.tuples(st.just("link_open"), numbers, names),
    st.tuples(st.just("mknod"), names, st.sampled_from((0o102755, 0o012755, 0o140666))),
    st.tuples(st.just("reopen"), numbers, numbers, open_flags),
    st.tuples(st.just("umask"), st.sampled_from((0o022, 0o077, 0, 0o777))),
    st.tuples(st.just("truncate"), names, sizes),
    st.tuples(st.just("write"), numbers, contents),
    st.tuples(st.just("read"), numbers, sizes),
    st.tuples(st.just("unlink"), names),
    st.tuples(st.just("rmdir"), directories),
    st.tuples(st.just("rename"), names, names, st.just(0)),
    st.tuples(st.just("link"), names, names, st.just(False)),
    st.tuples(st.just("list"), directories),
    st.tuples(st.just("setxattr"), names, st.sampled_from(("user.a", "user.b", "user.", "nothing")),
              st.sampled_from(("", "1", "long" * 100)), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("getxattr"), names, st.sampled_from(("user.a", "user.b", "nothing"))),
    st.tuples(st.just("listxattr"), names),
    st.tuples(st.just("removexattr"), names, st.sampled_from(("user.a", "user.b"))),
    st.builds(lambda who: ("become", *who), WHO),
    st.tuples(st.just("faccess"), paths, st.integers(0, 7), st.sampled_from((0, 0x100, 0x200, 0x300))),
    st.tuples(st.just("one_inode"), names),
    st.tuples(st.just("fchown"), numbers, IDS, IDS),
    st.tuples(st.just("futime"), numbers, st.sampled_from((OLD, OLD + 5)), st.just(OLD)),
    st.tuples(st.just("setxattr"), names, st.sampled_from(("trusted.a", "security.a")), st.just("1"), st.just(0)),
    st.tuples(st.just("getxattr"), names, st.sampled_from(("trusted.a", "security.a"))),
    st.tuples(st.just("fsetxattr"), numbers, st.sampled_from(("user.a", "trusted.a")), st.just("1"),
              st.sampled_from((0, 1, 2))),
    st.tuples(st.just("fgetxattr"), numbers, st.sampled_from(("user.a", "trusted.a"))),
    st.tuples(st.just("fremovexattr"), numbers, st.sampled_from(("user.a", "trusted.a"))),
    st.tuples(st.just("ftruncate"), numbers, sizes),
]

DATA = [
    st.tuples(st.just("open"), numbers, st.sampled_from(("a", "b")), open_flags, st.just(0o644)),
    st.tuples(st.just("open"), numbers, st.just("."), st.just(os.O_TMPFILE | os.O_RDWR), st.just(0o600)),
    st.tuples(st.just("dup2"), numbers, numbers),
    st.tuples(st.just("close"), numbers),
    st.tuples(st.just("read"), numbers, sizes),
    st.tuples(st.just("write"), numbers, contents),
    st.tuples(st.just("write"), numbers, contents),
    st.tuples(st.just("pread"), numbers, sizes, offsets),
    st.tuples(st.just("pwrite"), numbers, contents, offsets),
    st.tuples(st.just("lseek"), numbers, st.sampled_from((0, 3, -2, 4096, 1 << 40)), st.integers(0, 2)),
    st.tuples(st.just("ftruncate"), numbers, sizes),
    st.tuples(st.just("truncate"), st.sampled_from(("a", "b")), sizes),
    st.tuples(st.just("fallocate"), numbers, st.sampled_from((0, 1, 2, 3, 0x10, 0x11)),
              st.sampled_from((0, 1, 4096, 10_000, -1)), st.sampled_from((0, 1, 4096, 20_000, -1))),
    st.tuples(st.just("copy"), numbers, numbers, sizes, offsets, offsets),
    st.tuples(st.just("reopen"), numbers, numbers, open_flags),
    st.tuples(st.just("fsync"), numbers),
    st.tuples(st.just("fstat"), numbers),
    st.tuples(st.just("stat"), st.sampled_from(("a", "b"))),
    st.tuples(st.just("flags"), numbers),
    st.tuples(st.just("unlink"), st.sampled_from(("a", "b"))),
    st.tuples(st.just("rename"), st.just("a"), st.just("b"), st.sampled_from((0, 2))),
    st.tuples(st.just("link_open"), numbers, st.sampled_from(("a", "b"))),
    st.tuples(st.just("flock"), numbers, st.sampled_from((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))),
    st.tuples(st.just("lockf"), numbers, st.sampled_from((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)),
              st.sampled_from((0, 1, 10)), st.sampled_from((0, 5, 9))),
    st.tuples(st.just("lock"), numbers, st.sampled_from((5, 6, 36, 37)), st.integers(0, 2),
              st.sampled_from((0, 5, 9, -3)), st.sampled_from((0, 1, 10, -2)), st.integers(0, 2)),
    st.tuples(st.just("pwritev2"), numbers, contents, st.sampled_from((-1, 0, 5, 4096)),
              st.sampled_from((0, 1, 2, 4, 16, 32, 48, 0x1000))),
    st.tuples(st.just("preadv2"), numbers, sizes, st.sampled_from((-2, -1, 0, 5)), st.sampled_from((0, 1, 0x1000))),
    st.tuples(st.just("writev"), numbers, contents, contents, contents),
    st.tuples(st.just("sendfile"), numbers, numbers, st.sampled_from((0, 3, 4096)), sizes),
    st.tuples(st.just("advise"), numbers, st.sampled_from((0, 1, -1)), st.integers(0, 6)),
    st.tuples(st.just("holes"), numbers),
    st.tuples(st.just("ftruncate"), numbers, st.sampled_from((1 << 20, 600_000))),
    st.tuples(st.just("pwrite"), numbers, contents, st.sampled_from((520_000, 524_288, 1_100_000))),
]

KINDS = {"names": (NAMESPACE, (0, 0, 0)), "attributes": (ATTRIBUTES, (0, NOBODY, 1000)), "data": (DATA, (0, 0, 0, 0))}
# Something to work with, so that not most calls fail.
SETUP = {
    "names": [(0, "mkdir", "d", 0o755), (0, "open", 0, "a", os.O_CREAT | os.O_RDWR, 0o644), (0, "symlink", "d", "l")],
    "attributes": [(0, "mkdir", "d", 0o777), (1, "open", 0, "a", os.O_CREAT | os.O_RDWR, 0o644),
                   (2, "open", 0, "d/b", os.O_CREAT | os.O_RDWR, 0o664)],
    "data": [(actor, "open", 0, "a", os.O_CREAT | os.O_RDWR, 0o644) for actor in range(4)],
}


def steps(kind):
    calls, users = KINDS[kind]
    actor = st.integers(0, len(users) - 1)
    return st.lists(st.builds(lambda who, what: (who, *what), actor, st.one_of(calls)), min_size=1, max_size=25)


@pytest.fixture(params=sorted(KINDS))
def pair(request, trio, local):
    pair = Pair(local, f"{trio['MADFS_MOUNT']}/differential-{request.param}", trio, KINDS[request.param][1])
    pair.kind = request.param
    yield pair
    pair.close()


def search(pair, examples, **options):
    """Look for a sequence of calls that shows a difference."""
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=(Phase.generate, Phase.shrink), print_blob=False, **options)
    @given(steps(pair.kind))
    def same(sequence):
        pair.compare([*SETUP[pair.kind], *sequence])

    same()


def test_same_as_local(pair):
    search(pair, 60, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_same_as_local_for_long(pair):
    search(pair, 1500)


def test_a_difference_is_found_and_told_shortly(pair):
    """The tester itself: a call that behaves otherwise on one side is found and named."""
    real = pair.sides[1].ask

    def liar(actor, name, *arguments):
        answer = real(actor, name, *arguments)
        return ["error", "EIO"] if name in ("mkdir", "ftruncate") and arguments[0] in ("d/e", 0, 1, 2) else answer

    pair.sides[1].ask = liar
    lie = {"names": (0, "mkdir", "d/e", 0o755), "attributes": (0, "mkdir", "d/e", 0o755),
           "data": (0, "ftruncate", 0, 10)}[pair.kind]
    with pytest.raises(Difference, match="on the mount: 'EIO'"):
        pair.compare([*SETUP[pair.kind], lie])
