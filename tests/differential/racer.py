# SPDX-License-Identifier: Apache-2.0
"""One of several processes that make, rename, link and remove the same few names, to get in each other's way.

``racer.py TOP SEED STEPS [EIO]``: says that it begins, and works below TOP; prints the errors that a local file system
would never give, one a line; with EIO that error is one of a dead server and is taken for granted.  It makes STEPS
steps, and goes on until standard input ends.  Standard library only.
"""
import ctypes
import errno
import os
import random
import select
import sys

libc = ctypes.CDLL(None, use_errno=True)

# What somebody else may have done to the name meanwhile.
RACED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EPERM,
         errno.EBUSY}
NAMES = ("a", "b", "c", "d")


def path(chance):
    """A name at most three levels deep."""
    return "/".join(chance.choice(NAMES) for _ in range(chance.choice((1, 1, 2, 2, 3))))


def rename(old, new, flags):
    if libc.renameat2(-100, old.encode(), -100, new.encode(), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def create(chance):
    fd = os.open(path(chance), os.O_CREAT | os.O_WRONLY | chance.choice((0, os.O_EXCL, os.O_TRUNC)), 0o644)
    try:
        os.write(fd, b"x" * chance.choice((1, 100, 5000)))
    finally:
        os.close(fd)


MOVES = (
    create,
    create,
    lambda chance: os.mkdir(path(chance)),
    lambda chance: os.mkdir(path(chance)),
    lambda chance: os.unlink(path(chance)),
    lambda chance: os.rmdir(path(chance)),
    lambda chance: rename(path(chance), path(chance), chance.choice((0, 0, 1, 2))),
    lambda chance: os.link(path(chance), path(chance)),
    lambda chance: os.listdir(path(chance)),
    lambda chance: os.stat(path(chance)),
)


def main():
    top, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    allowed = RACED | {getattr(errno, name) for name in sys.argv[4:]}
    chance = random.Random(seed)
    os.chdir(top)
    print("begins", flush=True)
    step = 0
    while step < steps or not select.select([0], [], [], 0)[0]:
        step += 1
        move = chance.choice(MOVES)
        try:
            move(chance)
        except OSError as error:
            if error.errno not in allowed:
                print(f"process {seed}, step {step}: {errno.errorcode.get(error.errno)} {error}", flush=True)


if __name__ == "__main__":
    main()
