# SPDX-License-Identifier: Apache-2.0
"""`ulimit -f` is for the program's files, not for what MadFS keeps in memory: mappings and programs on the mount."""
import resource
import subprocess

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


# A program whose limit nobody may lift.
HELD = """
import errno, mmap, os, sys
way, opened = os.getcwd(), []
for i in range(3):
    way += "/" + "x" * 200
    os.mkdir(way)
    opened += [os.open(way, os.O_RDONLY) for _ in range(20)]
print([len(os.readlink(f"/proc/self/fd/{fd}")) - len(way) for fd in opened[::20]])
with open("big", "wb") as file:
    file.write(b"." * 900000)
with open("big", "r+b") as file:
    for access in mmap.ACCESS_COPY, mmap.ACCESS_READ, mmap.ACCESS_WRITE:
        try:
            with mmap.mmap(file.fileno(), 0, access=access) as memory:
                print(len(memory), memory[:2], memory[-2:], memory[1 << 19])
        except OSError as error:
            print(errno.errorcode[error.errno], file=sys.stderr)
try:
    with open("big", "ab", buffering=0) as file:
        print(file.write(b"x" * 200000), file.write(b"x"))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_hard_limit_before_the_start(runner, tmp_path):
    """Files of ours in memory cannot be longer, either: the table of open files is smaller, private mappings are no
    files, and there are no shared ones to write to."""
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    seen = []
    for directory, environment in ((tmp_path, runner.plain), (f"{runner.mount}/held", runner.loaded)):
        subprocess.run(["mkdir", "-p", directory], env=environment, check=True, timeout=30)
        done = subprocess.run(["sh", "-c", f"cd {directory} && exec python3 -c '{HELD}'"], env=environment, timeout=60,
                              capture_output=True, text=True, check=False, preexec_fn=limited)
        seen.append((done.returncode, done.stdout.splitlines()))
        held = done.stderr == "ENODEV\n"
    assert seen[0][0] == 0 and len(seen[0][1]) == 5
    if held:
        del seen[0][1][3]
    assert seen[0] == seen[1]
    assert held or not done.stderr
    subprocess.run(["rm", "-r", f"{runner.mount}/held"], env=runner.loaded, check=True, timeout=30)
