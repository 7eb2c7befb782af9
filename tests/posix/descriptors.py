# SPDX-License-Identifier: Apache-2.0
"""What programs do with descriptors: ``descriptors.py CASE DIRECTORY`` prints what it saw, the same on any file system.
"""
import array
import concurrent.futures
import ctypes
import errno
import fcntl
import multiprocessing
import os
import resource
import select
import socket
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
PIDFD_GETFD = 438
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4


def attempt(function, *arguments, **options):
    """The result, or the name of the errno."""
    try:
        return function(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno]


def is_open(fd):
    return not isinstance(attempt(os.fstat, fd), str)


def new(name="f", flags=os.O_RDWR | os.O_CREAT | os.O_TRUNC):
    return os.open(name, flags, 0o600)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def limit_from_the_start():
    """EMFILE and the lowest number with a table of 32, which is full."""
    os.close(new())
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    numbers = []
    while isinstance(fd := attempt(os.open, "f", os.O_RDONLY), int):
        numbers.append(fd)
    print(numbers, fd, attempt(os.dup, numbers[0]), attempt(os.open, "/dev/null", 0), attempt(os.pipe))
    os.close(numbers[5])
    print(attempt(os.dup, numbers[0]), attempt(os.dup, 0))
    for fd in numbers[3], numbers[7]:
        os.close(fd)
    print(attempt(os.open, "f", 0), attempt(os.open, "/dev/null", 0), attempt(os.open, "/dev/null", 0))


def limit_lowered_later():
    fds = [new() for _ in range(40)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    print(attempt(os.open, "f", 0), attempt(os.dup, fds[0]), os.write(fds[39], b"abc"), attempt(os.dup2, fds[0], 20),
          attempt(os.dup2, fds[0], 19), attempt(fcntl.fcntl, fds[0], fcntl.F_DUPFD, 20))
    for fd in fds[:10]:
        os.close(fd)
    print([attempt(os.open, "f", 0) for _ in range(12)])


def _with_limit(when, limit):
    """Every number below the limit is dup2'ed onto, used, closed and counted; the limit set before or after the first
    touch, or the soft one alone, which is then raised again."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if when == "before":
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    fd = new()
    os.write(fd, b"0123456789")
    if when != "before":
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit if when == "after" else hard))
    wrong = [number for number in range(3, limit) if number != fd and attempt(os.dup2, fd, number) != number]
    print(when, limit, wrong, attempt(os.dup2, fd, limit), attempt(os.open, "f", 0), attempt(os.pipe),
          os.pread(limit - 1, 4, 3), attempt(os.stat, "none"), attempt(os.mkdir, "d"), attempt(os.rmdir, "d"))
    for number in range(fd + 1, limit):
        os.close(number)
    numbers = []
    while isinstance(number := attempt(os.open, "f", 0), int):
        numbers.append(number)
    print(numbers[0], len(numbers), number, attempt(os.stat, "none"))
    os.closerange(fd + 1, 1 << 16)
    print(subprocess.run(["sh", "-c", "cat f; ulimit -n; ulimit -Hn"], capture_output=True, check=False).stdout)
    everything = ctypes.c_uint(-1)
    print(LIBC.close_range(3, everything, CLOSE_RANGE_CLOEXEC), LIBC.close_range(3, everything, CLOSE_RANGE_UNSHARE),
          attempt(os.read, fd, 4), os.open("f", 0), os.open("/dev/null", 0), attempt(os.listdir, "."))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(limits[0], limits[1] == (hard if when == "soft" else limit))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    wrong = []
    for number in range(5, min(limits[1], 4400)):
        if attempt(os.dup2, 3, number) != number or os.pread(number, 2, 1) != b"12" or os.close(number):
            wrong.append(number)
    print(wrong, content("f"))
    child = os.posix_spawn("/bin/cat", ["cat", "f"], {})
    print(os.waitpid(child, 0)[1], os.system("cat f"))


def limits_before():
    for limit in (20, 64, 256):
        _in_child(_with_limit, "before", limit)


def limits_after():
    for limit in (20, 64):
        _in_child(_with_limit, "after", limit)


def limits_soft():
    for limit in (64, 256):
        _in_child(_with_limit, "soft", limit)


def limits_are_the_programs():
    """A hard limit that was lowered is told, kept, and inherited."""
    attempt(os.stat, "f")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    print(attempt(resource.setrlimit, resource.RLIMIT_NOFILE, (40, 50)), resource.getrlimit(resource.RLIMIT_NOFILE),
          resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE), resource.prlimit(0, resource.RLIMIT_NOFILE, (45, 50)))
    for values in (51, 51), (45, 40), (50, 50):
        try:
            print(resource.setrlimit(resource.RLIMIT_NOFILE, values), hard > 50)
        except ValueError as error:
            print(error)
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)  # who has no capability
    print(LIBC.getrlimit(resource.RLIMIT_NOFILE, ctypes.c_void_p(16)), ctypes.get_errno(),
          LIBC.prlimit(0, resource.RLIMIT_NOFILE, ctypes.c_void_p(16), None), ctypes.get_errno(),
          LIBC.syscall(160, resource.RLIMIT_NOFILE, None), ctypes.get_errno() if os.uname().machine == "x86_64" else 0)
    print(subprocess.run(["sh", "-c", "ulimit -n; ulimit -Hn; sh -c 'ulimit -n 30; ulimit -Hn'; ulimit -Hn"],
                         capture_output=True, check=False).stdout)


def dup2_onto_all_that_is_open():
    """What the client has open is moved as often as the program wants, with locks held and data under way."""
    fd = new()
    os.write(fd, b"0123456789")
    fcntl.flock(fd, fcntl.LOCK_EX)
    large = os.urandom(1 << 20)
    with open("large", "wb") as file:
        file.write(large)
    wrong = []
    for _ in range(3):
        for number in sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 300):
            if attempt(os.dup2, fd, number) != number or os.pread(number, 3, 2) != b"234" or content("large") != large:
                wrong.append(number)
            attempt(os.mkdir, "d")
            attempt(os.rmdir, "d")
    print(wrong)
    wanted = sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 300)[:20] or range(301, 321)
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number in wanted]
    child = os.posix_spawn("/bin/sh", ["sh", "-c", f"cat f /proc/self/fd/{wanted[2]}; wc -c < large"], os.environ,
                           file_actions=actions)
    print(os.waitpid(child, 0)[1])
    locked = "import fcntl; fcntl.flock(open('f'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    print(subprocess.run(["python3", "-c", locked], capture_output=True, check=False).returncode)


def _in_child(function, *arguments):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        function(*arguments)
        sys.stdout.flush()
        os._exit(0)
    print(os.waitpid(child, 0)[1])


def close_loop():
    fd = new()
    os.write(fd, b"x")
    wrong = {attempt(os.close, number) for number in range(3, 65536)} - {None}
    print(wrong, attempt(os.write, fd, b"y"), os.open("f", os.O_RDONLY), os.read(3, 10))


def close_ranges():
    fds = [new() for _ in range(6)]
    os.write(fds[0], b"x")
    print(LIBC.close_range(fds[2], fds[3], 0), [is_open(fd) for fd in fds])
    for fd in fds:
        attempt(os.set_inheritable, fd, True)
    everything = ctypes.c_uint(-1)
    print(LIBC.close_range(fds[4], everything, CLOSE_RANGE_CLOEXEC), [attempt(os.get_inheritable, fd) for fd in fds])
    print(LIBC.close_range(fds[4], everything, CLOSE_RANGE_UNSHARE), os.write(fds[0], b"yy"),
          attempt(os.write, fds[5], b"k"), LIBC.close_range(9, 3, 0), ctypes.get_errno(),
          LIBC.close_range(fds[0], fds[0], 99), ctypes.get_errno(), os.open("f", 0), os.open("/dev/null", 0))


def _onto_every_number(wrong, fd, check):
    """dup2 onto each number of the table, close it again; what went wrong is put into ``wrong``."""
    for number in range(3, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1100)):
        if number == fd or check is None:
            continue
        result = attempt(os.dup2, fd, number)
        if result != number or not check(number):
            wrong.append((number, result))
        else:
            os.close(number)


def dup2_onto_every_number():
    os.close(new("other"))  # what the client needs is open now
    fd, wrong = new(), []
    os.write(fd, b"0123456789")
    _onto_every_number(wrong, fd, lambda number: os.pread(number, 3, 2) == b"234")
    ends = os.pipe()
    os.dup2(ends[0], 2000)
    os.dup2(ends[1], 2001)
    _onto_every_number(wrong, 2001, lambda number: os.write(number, b"z") == len(os.read(2000, 1)))
    print(wrong, os.listdir() != [], content("f"))


def every_number_is_taken():
    os.close(new("other"))
    fd = new("f")
    os.write(fd, b"0123456789")
    top = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1100)
    wrong = [number for number in range(fd + 1, top) if attempt(os.dup2, 0, number) != number]
    print(wrong, os.pread(fd, 3, 2), os.stat("f").st_size, os.mkdir("d"), os.listdir("d"))
    os.closerange(300, top)
    print(content("f"))


def sent_and_fetched():
    """Descriptors in messages, and taken out of another process, share their offset."""
    ours, theirs = socket.socketpair()
    fd = new()
    os.write(fd, b"hello world")
    os.lseek(fd, 6, os.SEEK_SET)
    child = os.fork()
    if child == 0:
        os.close(fd)
        _, ancillary, _, _ = theirs.recvmsg(10, socket.CMSG_SPACE(4))
        got = array.array("i", ancillary[0][2])[0]
        right = os.read(got, 3) == b"wor"
        os.close(got)
        os._exit(3 if right else 4)
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    print(os.waitpid(child, 0)[1] >> 8, os.read(fd, 10))
    child = os.fork()
    if child == 0:
        theirs.recv(1)
        os._exit(0)
    process = os.pidfd_open(child)
    copy = LIBC.syscall(PIDFD_GETFD, process, fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    print(copy >= 0 and os.read(copy, 5), os.read(fd, 6))
    ours.send(b"x")
    os.waitpid(child, 0)


def polled():
    fd = new()
    poll, queue = select.poll(), select.epoll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    print([len(ready) for ready in select.select([fd], [fd], [fd], 0)], [events for _, events in poll.poll(0)],
          attempt(queue.register, fd, select.EPOLLIN))


def executed():
    """A program that is executed has descriptors, offsets, directory and umask, also without any environment."""
    fd = new()
    os.write(fd, b"abc")
    for command in ["sh", "-c", f"echo first >&{fd}"], ["/usr/bin/env", "-i", "/bin/sh", "-c",
                                                        f"echo again >&{fd}; umask; cat 0< f; echo > made"]:
        done = subprocess.run(command, pass_fds=[fd], umask=0o27, stdout=subprocess.PIPE, check=False)
        print(done.returncode, done.stdout, os.lseek(fd, 0, os.SEEK_CUR), oct(os.umask(0o22)))
    print(oct(os.stat("made").st_mode))
    print(subprocess.run(["sh", "-c", f"echo no >&{fd}"], stderr=subprocess.DEVNULL, check=False).returncode,
          content("f"))


def spawned():
    fd = new()
    actions = [(os.POSIX_SPAWN_DUP2, fd, 1), (os.POSIX_SPAWN_OPEN, 7, "in", os.O_RDWR | os.O_CREAT, 0o600),
               (os.POSIX_SPAWN_OPEN, 2, "err", os.O_WRONLY | os.O_CREAT, 0o600), (os.POSIX_SPAWN_CLOSE, fd)]
    with open("in", "w") as file:
        file.write("input\n")
    child = os.posix_spawn("/bin/sh", ["sh", "-c", "echo spawned; cat <&7; echo error >&2"], os.environ,
                           file_actions=actions, setpgroup=0)
    print(os.waitpid(child, 0)[1], os.pread(fd, 100, 0), content("err"), is_open(7))
    failing = [(os.POSIX_SPAWN_OPEN, 7, "no/such", 0, 0)]
    print(attempt(os.posix_spawn, "/bin/true", ["true"], os.environ, file_actions=failing),
          attempt(os.posix_spawn, "./none", ["none"], os.environ), os.write(fd, b"!"), os.open("f", 0))


def pools():
    """Workers by fork, fork of a clean server, and a new program; and a loader that sends open files to its workers."""
    new()
    path = os.path.abspath("f")
    for method in ("fork", "forkserver", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(os.path.getsize, [path] * 4))
    with concurrent.futures.ProcessPoolExecutor(3) as pool:
        print(list(pool.map(os.path.exists, [path, f"{path}-not"] * 3)))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        print(list(pool.map(os.path.exists, [path, f"{path}-not"] * 3)))


def _load(numbers, batches):
    while (number := numbers.get()) is not None:
        batches.put((number, content(f"sample-{number}")))


def loader():
    """Persistent workers that read samples and send batches back, as data loaders of machine learning do."""
    for number in range(40):
        with open(f"sample-{number}", "w") as file:
            file.write(f"{number}" * 1000)
    for context in (multiprocessing.get_context("fork"), multiprocessing.get_context("forkserver")):
        numbers, batches = context.Queue(), context.Queue()
        workers = [context.Process(target=_load, args=(numbers, batches), daemon=True) for _ in range(3)]
        for worker in workers:
            worker.start()
        for number in [*range(40), None, None, None]:
            numbers.put(number)
        found = dict(batches.get() for _ in range(40))
        for worker in workers:
            worker.join()
        print(all(data == b"%d" % number * 1000 for number, data in found.items()), [w.exitcode for w in workers])


def by_name():
    fd = new("g")
    os.write(fd, b"0123456789")
    top = os.getcwd()
    for name in (f"/proc/self/fd/{fd}", f"/dev/fd/{fd}", f"/proc/{os.getpid()}/fd/{fd}", f"/proc/thread-self/fd/{fd}",
                 f"/proc/self/task/{os.getpid()}/fd/{fd}"):
        print(content(name), os.readlink(name).replace(top, "D"), os.stat(name).st_size)
    print(os.readlink("/proc/self/cwd").replace(top, "D"), os.path.exists("/proc/self/cwd/g"),
          os.path.exists("/proc/self/cwd/none"), os.path.exists(f"/proc/self/root{top}/g"),
          os.listdir("/proc/self/cwd"), os.path.islink("/proc/self/cwd"))
    directory = os.open(".", os.O_RDONLY)
    print(os.path.exists(f"/proc/self/fd/{directory}/g"), os.path.exists(f"/dev/fd/{directory}/none"),
          os.listdir(f"/proc/self/fd/{directory}"))


def no_directory():
    """The working directory was removed."""
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    print(attempt(os.getcwd), attempt(new, "x"), subprocess.run(["/bin/pwd"], capture_output=True).returncode)


if __name__ == "__main__":
    # Some need numbers above 1024, which is the usual limit until a program raises it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.chdir(sys.argv[2])
    globals()[sys.argv[1]]()
