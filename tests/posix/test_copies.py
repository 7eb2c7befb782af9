# SPDX-License-Identifier: Apache-2.0
"""copy_file_range and sendfile between descriptors of every kind: results and errnos are those of a local directory."""
import subprocess
import sys

SCRIPT = """
import errno, os, sys
top = sys.argv[1]
os.mkdir(top); os.chdir(top); os.mkdir("d")

def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

both = os.open("w", os.O_RDWR | os.O_CREAT)
os.write(both, b"hello world")
fds = {"both": both, "read": os.open("w", os.O_RDONLY), "write": os.open("w", os.O_WRONLY), "bad": 99,
       "append": os.open("w", os.O_RDWR | os.O_APPEND), "path": os.open("w", os.O_PATH),
       "dir": os.open("d", os.O_RDONLY), "dir path": os.open("d", os.O_PATH),
       "other": os.open("o", os.O_RDWR | os.O_CREAT), "pipe": os.pipe()[1],
       "host": os.open("/etc/passwd", os.O_RDONLY), "host path": os.open("/etc/passwd", os.O_PATH),
       "host dir": os.open("/etc", os.O_RDONLY)}
for a in fds:
    for b in fds:
        for count in (0, 3):
            for offsets in ((0, 0), (0, 20), (), (-1, 0), (0, -7)):
                print(a, b, count, offsets, attempt(os.copy_file_range, fds[a], fds[b], count, *offsets))
                os.lseek(both, 0, os.SEEK_SET)
            for offset in (0, 9, 99, -1):
                print("send", a, b, count, offset, attempt(os.sendfile, fds[b], fds[a], offset, count))
print(os.pread(both, 99, 0), os.pread(fds["other"], 99, 0))
"""


def test_as_locally(runner, tmp_path):
    found = []
    for directory, environment in ((f"{tmp_path}/d", runner.plain), (f"{runner.mount}/copies", runner.loaded)):
        done = subprocess.run([sys.executable, "-c", SCRIPT, directory], env=environment, timeout=60,
                              capture_output=True, text=True)
        found.append((done.returncode, done.stderr, done.stdout.splitlines()))
    assert found[0][:2] == (0, "")
    assert [pair for pair in zip(found[1][2], found[0][2]) if pair[0] != pair[1]] == []
    assert found[1] == found[0] and len(found[0][2]) > 3000
