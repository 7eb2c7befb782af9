# SPDX-License-Identifier: Apache-2.0
"""`ulimit -f` is for the program's files, not for what MadFS keeps in memory: mappings and programs on the mount."""
SCRIPT = """
import errno, mmap, os, resource, signal, subprocess, sys
with open("big", "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
    private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    print(shared[:3], shared[-3:], private[-3:])
    shared[70000:70005] = b"store"
    shared.flush()
    print(os.pread(file.fileno(), 5, 70000), os.pwrite(file.fileno(), b"hello", 100), shared[100:105])
    try:
        print(os.pwrite(file.fileno(), b"x" * 10, 300000))
    except OSError as error:
        print(errno.errorcode[error.errno])
    print(os.fstat(file.fileno()).st_size)
    child = os.fork()
    if child == 0:
        shared[5:8] = b"new"
        os._exit(0 if resource.getrlimit(resource.RLIMIT_FSIZE) == (10240, 10240) else 1)
    print(os.waitpid(child, 0)[1], shared[5:8])
print(resource.getrlimit(resource.RLIMIT_FSIZE))
if os.geteuid():
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20480, 20480))
    except ValueError as error:
        print(error)
print(open("big", "rb").read()[70000:70005])
"""


def test_as_locally(runner):
    runner.same(f"""head -c 200000 /dev/zero | tr '\\0' . > big; cp /usr/bin/python3 program
ulimit -f 10
./program -c '{SCRIPT}'; bash -c 'ulimit -f; ulimit -Hf; ulimit -f 5; ulimit -f; ./program -c "print(1)"; ulimit -Hf'
(ulimit -Sf 4; ulimit -Hf; bash -c 'ulimit -f; trap "" XFSZ; head -c 9999 big > small; ls -l small | cut -d" " -f5')
mv big moved""")
