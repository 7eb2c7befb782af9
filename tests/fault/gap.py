# SPDX-License-Identifier: Apache-2.0
"""``gap.py CLUSTER SERVER``: meets a server by shared memory, takes a place in its queue and leaves it empty, as a
sender that dies at the wrong moment does.  Prints how many queues it found; then sleeps until its input ends."""
import ctypes
import os
import re
import sys

from pymadfs import cluster
from pymadfs.config import Config
from pymadfs.ops import GETATTR
from pymadfs.rpc import Client

PID_AT = 136  # uct_mm_fifo_ctl_t: head (8), address of a socket in two cache lines, tail (8), pid
FIFO_BYTES_MAX = 1 << 16
EVENT_ARMED = 1 << 63


def queues(pid):
    """Addresses of the queues of process ``pid`` that are mapped here."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-s .*(/SYSV|/dev/shm/|memfd)", line)
            if match is None:
                continue
            begin, end = (int(text, 16) for text in match.groups()[:2])
            for start in range(begin, begin + 64 if end - begin <= FIFO_BYTES_MAX else begin, 64):
                if ctypes.c_int.from_address(start + PID_AT).value == pid:
                    found.append(start)
    return found


def claim(start):
    """Take the next place of a queue, as UCX's senders do."""
    atomic = ctypes.CDLL("libatomic.so.1").__atomic_compare_exchange_8
    atomic.argtypes = ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint64, ctypes.c_int, ctypes.c_int
    atomic.restype = ctypes.c_bool
    seen = ctypes.c_uint64(ctypes.c_uint64.from_address(start).value)
    while not atomic(start, ctypes.byref(seen), seen.value + 1 & ~EVENT_ARMED, 5, 5):
        continue


def main():
    known = cluster.read(sys.argv[1])
    number = int(sys.argv[2])
    client = Client(known, Config())
    try:
        client.call(number, GETATTR, b"/none", 1 << 40)
    except OSError:
        pass  # there is no such inode; but we were heard
    found = queues(known.servers[number].pid)
    for start in found:
        claim(start)
    print(len(found), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
