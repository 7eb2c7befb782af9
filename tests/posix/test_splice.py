# SPDX-License-Identifier: Apache-2.0
"""splice between files of the mount and pipes: what moves, what stays, what blocks, and every error in its order."""
import sys

import pytest

PRELUDE = """
import errno, fcntl, os, select, signal, subprocess, sys, threading
def attempt(*arguments, **keywords):
    try: return os.splice(*arguments, **keywords)
    except OSError as error: return errno.errorcode[error.errno]
data = bytes(range(256)) * 1000
with open("data", "wb") as file: file.write(data)
source, target = os.open("data", os.O_RDONLY), os.open("target", os.O_RDWR | os.O_CREAT)
r, w = os.pipe()
def where(fd): return os.lseek(fd, 0, os.SEEK_CUR)
"""

SCRIPTS = {
    "to_pipe": """
print(attempt(source, w, 5), os.read(r, 99), where(source))
print(attempt(source, w, 7, offset_src=1000), os.read(r, 99) == data[1000:1007], where(source))
os.lseek(source, -3, os.SEEK_END)
print(attempt(source, w, 100), os.read(r, 99), attempt(source, w, 100), where(source))
""",
    "fills_the_pipe": """
fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 8192)
print(attempt(source, w, 100000), where(source), attempt(source, w, 10, flags=2), where(source))
os.set_blocking(w, False)
print(attempt(source, w, 10), where(source), os.read(r, 9999) == data[:8192], attempt(source, w, 1), os.read(r, 9))
os.close(r)
signal.signal(signal.SIGPIPE, lambda *_: print("SIGPIPE"))
print(attempt(source, w, 10), where(source))
""",
    "whole_file_by_a_small_pipe": """
moved = 0
while count := attempt(source, w, 1 << 20):
    while count: count -= attempt(r, target, count)
print(where(source), where(target), open("target", "rb").read() == data)
""",
    "from_pipe": """
os.write(w, b"0123456789")
print(attempt(r, target, 4), where(target), attempt(r, target, 3, offset_dst=100), where(target))
print(attempt(r, target, 100), where(target), os.pread(target, 200, 0))
print(attempt(r, target, 5, flags=2)); os.set_blocking(r, False); print(attempt(r, target, 5))
os.close(w); print(attempt(r, target, 5))
""",
    "waits_for_the_pipe": """
child = subprocess.Popen(["sh", "-c", "read line; echo $line"], stdin=subprocess.PIPE, stdout=w, text=True)
calls = []
signal.signal(signal.SIGALRM, lambda *_: (calls.append(1), child.stdin.write("late\\n"), child.stdin.close()))
signal.setitimer(signal.ITIMER_REAL, 0.05)
print(attempt(r, target, 100), os.pread(target, 100, 0), calls, child.wait())
fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 4096); attempt(source, w, 4096)
signal.signal(signal.SIGALRM, lambda *_: calls.append(len(os.read(r, 4096))))
signal.setitimer(signal.ITIMER_REAL, 0.05)
print(attempt(source, w, 4096), calls)
""",
    "errors": """
only_read, append = os.open("target", os.O_RDONLY), os.open("target", os.O_RDWR | os.O_APPEND)
directory, path = os.open(".", os.O_RDONLY), os.open("data", os.O_PATH)
os.write(w, b"abc")
print(attempt(source, target, 1), attempt(source, target, 0), attempt(source, w, 1, flags=64), attempt(999, w, 1))
print(attempt(source, 999, 1), attempt(r, only_read, 1), attempt(r, append, 1), attempt(directory, w, 1))
print(attempt(path, w, 1), attempt(r, path, 1), attempt(r, target, 1, offset_src=0))
print(attempt(source, w, 1, offset_dst=0))
print(attempt(source, w, 1, offset_src=-1), attempt(r, target, 1, offset_dst=-1), attempt(source, r, 1))
print(attempt(w, target, 1), attempt(os.open("target", os.O_WRONLY), w, 1), where(source), where(target))
print(os.read(r, 9))
try: os.sendfile(w, directory, 0, 9)
except OSError as error: print(errno.errorcode[error.errno])
""",
    "notification": """
directory = os.open(".", os.O_RDONLY)
for fd in directory, source:
    for mask in 0, fcntl.DN_MULTISHOT:
        try: print(fcntl.fcntl(fd, fcntl.F_NOTIFY, mask))
        except OSError as error: print(errno.errorcode[error.errno])
print(fcntl.fcntl(source, fcntl.F_GETLEASE) == fcntl.F_UNLCK)
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_splice(runner, name):
    runner.same(f"{sys.executable} -B - <<'PROGRAM'\n{PRELUDE}{SCRIPTS[name]}\nPROGRAM", timeout=20)
