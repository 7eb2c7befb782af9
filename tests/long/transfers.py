# SPDX-License-Identifier: Apache-2.0
"""A client of ``test_faults.py``: threads that write and read blocks of 8 KiB to 1 MiB, each in files of its own.

``transfers.py TOP STATE NUMBER SEED``.  What was begun and what is done stands in the file STATE, which survives
whoever is killed: so everybody can tell what each block may hold.  It ends when its standard input does.  With
``check`` in place of the seed it looks at the files of NUMBER.
"""
import errno
import mmap
import os
import random
import select
import struct
import sys
import threading

THREADS, FILES, BLOCKS, TRIES = 6, 2, 5, 600
SIZES = 8 << 10, 47_008, 96 << 10, 300_000, 1 << 20  # bytes of a block, that of each file
WORDS = 2 * THREADS * FILES * BLOCKS + 1  # versions that are done and begun, and the number of EIOs


class State:
    """The versions of all blocks of one client."""

    def __init__(self, path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, 8 * WORDS)
        self._words = memoryview(mmap.mmap(fd, 8 * WORDS)).cast("Q")
        os.close(fd)

    def versions(self, thread, file, block):
        at = 2 * ((thread * FILES + file) * BLOCKS + block)
        return self._words[at], self._words[at + 1]

    def begin(self, thread, file, block):
        at = 2 * ((thread * FILES + file) * BLOCKS + block)
        self._words[at + 1] = self._words[at] + 1
        return self._words[at + 1]

    def done(self, thread, file, block):
        at = 2 * ((thread * FILES + file) * BLOCKS + block)
        self._words[at] = self._words[at + 1]

    def failed(self):
        self._words[WORDS - 1] += 1

    @property
    def failures(self):
        return self._words[WORDS - 1]


def size_of(number, thread, file):
    return SIZES[(number + thread + file) % len(SIZES)]


def word(number, thread, file, block, version):
    return number << 48 | thread << 40 | file << 36 | block << 32 | version


def check(state, number, thread, file, block, data):
    """The block holds what was written last, or some of what was under way."""
    done, begun = state.versions(thread, file, block)
    size = size_of(number, thread, file)
    allowed = {word(number, thread, file, block, done) if done else 0}
    if begun != done:
        allowed.add(word(number, thread, file, block, begun))
    words = memoryview(data[:len(data) & ~7]).cast("Q")
    where = number, thread, file, block, done, begun, size, len(data)
    if set(words) - allowed:
        strange = [(8 * at, hex(found)) for at, found in enumerate(words) if found not in allowed]
        raise AssertionError(where, strange[:3])
    assert len(data) == size or not done, where


def again(state, call, *arguments):
    """What the call gives once it does not fail with EIO, which is what a dead server's callers get."""
    for _ in range(TRIES):
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            state.failed()
            select.select([], [], [], 0.05)
    raise AssertionError(f"EIO {TRIES} times: {call.__name__}{arguments[:1]}")


def whole(state, fd, size, offset):
    """The bytes there, up to the file's end.  A read is short when a server died that has the rest."""
    data = b""
    while len(data) < size and (more := again(state, os.pread, fd, size - len(data), offset + len(data))):
        data += more
    return data


def transfer(state, top, number, thread, seed, end):
    chance = random.Random(f"{seed}-{number}-{thread}")
    fds = [again(state, os.open, f"{top}/{number}-{thread}-{file}", os.O_RDWR | os.O_CREAT) for file in range(FILES)]
    while not end.is_set():
        file, block, act = chance.randrange(FILES), chance.randrange(BLOCKS), chance.random()
        size = size_of(number, thread, file)
        if act < 0.65:
            version = state.begin(thread, file, block)
            data = struct.pack("Q", word(number, thread, file, block, version)) * (size // 8)
            at = 0
            while at < size:
                at += again(state, os.pwrite, fds[file], data[at:], block * size + at)
            state.done(thread, file, block)
        elif act < 0.97:
            check(state, number, thread, file, block, whole(state, fds[file], size, block * size))
        else:
            again(state, os.fsync, fds[file])
    verify(state, top, number, [thread])


def verify(state, top, number, threads):
    for thread in threads:
        for file in range(FILES):
            size = size_of(number, thread, file)
            fd = again(state, os.open, f"{top}/{number}-{thread}-{file}", os.O_RDONLY | os.O_CREAT)
            for block in range(BLOCKS):
                check(state, number, thread, file, block, whole(state, fd, size, block * size))
            os.close(fd)


def main():
    top, path, number, seed = sys.argv[1:]
    state, number, end = State(path), int(number), threading.Event()
    if seed == "check":
        return verify(state, top, number, range(THREADS))
    threads = [threading.Thread(target=transfer, args=(state, top, number, thread, seed, end))
               for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    end.set()
    for thread in threads:
        thread.join()
    print(state.failures)
    return None


if __name__ == "__main__":
    threading.excepthook = lambda what: (sys.__excepthook__(*what[:3]), sys.stderr.flush(), os._exit(1))
    main()
