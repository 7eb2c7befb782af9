# SPDX-License-Identifier: Apache-2.0
"""Locks between processes, on the mount and on a local directory: who gets one, who waits, and when they end."""
import os
import shutil
import signal
import subprocess
import sys

import pytest
from support import TIMEOUT_S
from test_calls import OPEN, program, results

assert program  # a fixture

R, W, P = f"open D/f {os.O_RDONLY}", f"open D/f {os.O_WRONLY}", f"open D/f {os.O_PATH}"

CALLS = {
    "flock": f"""
        {OPEN} , {R} , flock $0 2 , flock $2 5 , flock $2 6 , flock $2 8 , flock $0 1 , flock $2 5 , flock $0 6
        , flock $2 8 , flock $0 6 , flock $0 0 , flock $0 3 , flock $0 4 , flock $0 99 , flock 77 5 , {P} ,
        flock $16 5 , flock $16 77 , dup $0 , flock $19 8 , flock $2 6 , close $2 , flock $0 6""",
    "flock_converts": f"""
        {OPEN} , {R} , {R} , flock $0 1 , flock $2 1 , flock $0 6 , flock $3 6 , flock $2 8 , flock $3 6 , flock
        $0 5 , close $3 , flock $0 5 , flock $0 5""",
    "flock_of_directories": f"""
        open D {os.O_DIRECTORY} , open D {os.O_DIRECTORY} , flock $0 6 , flock $1 5 , close $0 , flock $1 5""",
    "fcntl": f"""
        {OPEN} , fcntl $0 6 bad , fcntl $0 5 bad , fcntl 77 6 bad , fcntl $0 37 bad , {P} , fcntl $6 6 bad""",
}


@pytest.mark.parametrize("name", CALLS)
def test_same_calls(runner, program, tmp_path, name):
    line = " ".join(CALLS[name].split())
    local = results(program, line, f"{tmp_path}/local", runner.plain)
    assert results(program, line, f"{runner.mount}/locks-{name}", runner.loaded) == local


LIBRARY = """
import ctypes, errno, fcntl, os, signal, struct, subprocess, sys
RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
OFD_GET, OFD_SET, OFD_WAIT = 36, 37, 38

def record(command, file, kind, start=0, length=0, whence=0, pid=0):
    try:
        found = fcntl.fcntl(file, command, struct.pack("hhqqi4x", kind, whence, start, length, pid))
    except OSError as error:
        return errno.errorcode[error.errno]
    kind, whence, start, length, pid = struct.unpack("hhqqi4x", found)
    holder = {os.getpid(): "own", os.getppid(): "parent"}.get(pid, pid if pid < 1 else "other")
    return (kind, whence, start, length, holder) if command in (fcntl.F_GETLK, OFD_GET) else "ok"

def get(file, *arguments): return record(fcntl.F_GETLK, file, *arguments)
def set(file, *arguments): return record(fcntl.F_SETLK, file, *arguments)
def wait(file, *arguments): return record(fcntl.F_SETLKW, file, *arguments)

def whole(file, how):
    try:
        fcntl.flock(file, how)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def child(function):
    "What a child of fork prints, and its end."
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 0
        try:
            function()
        except BaseException as error:
            print(type(error).__name__, error)
            code = 1
        sys.stdout.flush()
        os._exit(code)
    return os.waitpid(pid, 0)[1]

def probe():
    "Which bytes of 0..39 another process could lock."
    file = open("f", "r+")
    print("".join("." if set(file, WR, at, 1) == "ok" else "r" if set(file, RD, at, 1) == "ok" else "W"
                  for at in range(40)))
"""

RANGES = """
file = open("f", "w+")
file.write("0123456789" * 4); file.flush()
for arguments in ((WR, 0, 10), (RD, 3, 3), (UN, 5, 2), (WR, 20, -5), (RD, 30), (WR, 35), (UN, 38, 1), (UN, 0, 0),
                  (WR, 5, 5, 1), (RD, -5, 0, 2), (UN,), (RD, -1), (RD, 0, -1), (RD, 2**63 - 1, 1), (RD, 2**63 - 1, 2),
                  (RD, 0, 1, 9), (7, 0, 1), (UN, 0, 0)):
    print(arguments, set(file, *arguments))
    child(probe)
set(file, WR, 4, 4)
set(file, RD, 20)
file.seek(7)
def questions():
    file = open("f", "r+")
    for arguments in ((WR,), (RD,), (RD, 6, 1), (WR, 0, 4), (WR, 19, 2), (RD, 25), (UN,), (WR, -3, 0, 2),
                      (WR, 0, 0, 8)):
        print(arguments, get(file, *arguments), record(OFD_GET, file, *arguments))
    record(OFD_SET, file, RD, 12, 3)
    record(OFD_SET, file, RD, 30, 3)
    for arguments in ((UN,), (UN, 13, 1), (UN, 15, 2), (UN, 15), (UN, 33), (UN, 0, 12)):
        print(arguments, record(OFD_GET, file, *arguments), record(OFD_GET, open("f"), *arguments))
child(questions)
print(get(file, WR), get(file, WR, 4, 4, 0, 99))
reader, writer, path = open("f"), open("f", "a"), os.open("f", os.O_PATH)
print(set(reader, WR), set(writer, RD), set(reader, RD), set(writer, WR), set(path, RD), get(path, RD), get(reader, WR))
"""

LIVES = """
file = open("f", "w+")
# A child inherits no record locks; closing any descriptor of the file ends them.
print(set(file, WR, 0, 10)); child(probe)
def inherited(): print(set(file, WR), get(file, WR, 0, 5)); probe()
child(inherited)
open("f").close(); child(probe)
print(set(file, WR, 0, 10)); spare = os.dup(file.fileno()); os.close(spare); child(probe)
print(set(file, WR, 0, 10)); spare = open("f"); os.dup2(0, spare.fileno()); child(probe)
print(set(file, WR, 0, 10)); spare = open("f"); os.closerange(spare.fileno(), spare.fileno() + 1); child(probe)
# Those of open files belong to what fork and dup share.
print(record(OFD_SET, file, WR, 0, 10), record(OFD_SET, file, WR, 0, 10, 0, 5)); child(probe)
open("f").close(); child(probe)
print(set(file, WR, 0, 1), get(file, WR), child(lambda: print(record(OFD_SET, file, UN, 5, 5)))); child(probe)
other = open("f", "r+"); print(record(OFD_SET, other, WR), record(OFD_GET, other, WR)); other.close()
copy = os.dup(file.fileno()); print(record(OFD_SET, copy, UN)); child(probe)
# flock
print(whole(file, fcntl.LOCK_EX), child(lambda: print(whole(open("f"), fcntl.LOCK_SH | fcntl.LOCK_NB))))
print(set(file, WR))  # another kind of lock
child(lambda: print(whole(file, fcntl.LOCK_UN), whole(open("f"), fcntl.LOCK_SH | fcntl.LOCK_NB)))
def keeps(): os.close(copy); file.close()
print(whole(file, fcntl.LOCK_EX)); child(keeps)
child(lambda: print(whole(open("f"), fcntl.LOCK_SH | fcntl.LOCK_NB)))
file.close(); child(lambda: print(whole(open("f"), fcntl.LOCK_SH | fcntl.LOCK_NB)))
os.close(copy); child(lambda: print(whole(open("f"), fcntl.LOCK_SH | fcntl.LOCK_NB)))
# A child that goes on when its parent is gone.
read, write = os.pipe()
back, forth = os.pipe()
def parent():
    file = open("f")
    fcntl.flock(file, fcntl.LOCK_EX)
    if not os.fork():
        os.close(write)
        os.write(forth, b"1")
        os.read(read, 1)
        os._exit(0)
child(parent); os.read(back, 1)
print(whole(open("f"), fcntl.LOCK_SH | fcntl.LOCK_NB)); os.close(write); print(whole(open("f"), fcntl.LOCK_EX))
"""

PROGRAMS = """
file = open("f", "w+")
ask = [sys.executable, "-c", "import fcntl, sys\\nf = open('f', 'r+')\\ntry: fcntl.%s(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
       "\\nexcept OSError as error: print(error)\\nelse: print('got it')"]
def asked(kind):
    sys.stdout.flush()
    subprocess.run([*ask[:2], ask[2] % kind])
for kind in ("lockf", "flock"):
    for keep in (True, False):
        read, write = os.pipe()
        back, forth = os.pipe()
        os.set_inheritable(back, True)
        if not os.fork():
            os.close(write); os.dup2(read, 0); os.dup2(forth, 1)
            file = open("f", "r+")
            getattr(fcntl, kind)(file, fcntl.LOCK_EX)
            os.set_inheritable(file.fileno(), keep)
            os.execvp("cat", ["cat"])
        os.close(read)
        os.write(write, b"x"); os.read(back, 1)
        asked(kind); asked(kind)
        os.close(write); os.wait(); asked(kind)
"""

WAITS = """
class Woken(Exception): pass
def woken(*_): raise Woken
file, read, write = open("f", "w+"), *os.pipe()
fcntl.flock(file, fcntl.LOCK_EX); set(file, WR, 0, 10)
def blocked():
    mine = open("f", "r+")
    signal.signal(signal.SIGALRM, woken)
    for function, *arguments in ((fcntl.flock, mine, fcntl.LOCK_SH), (wait, mine, RD, 5, 1),
                                 (record, OFD_WAIT, mine, WR)):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try: print(function(*arguments))
        except Woken: print("woken")
child(blocked)
libc = ctypes.CDLL(None, use_errno=True)
def interrupted(restart):
    mine = open("f", "r+")
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    print(libc.flock(mine.fileno(), fcntl.LOCK_SH), ctypes.get_errno() == errno.EINTR)
child(lambda: interrupted(False))
if not os.fork():
    os.read(read, 1)
    fcntl.flock(file, fcntl.LOCK_UN)
    os._exit(0)
def restarted():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)  # written to by the handler in C: that of Python runs when the call has ended
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    print(whole(open("f"), fcntl.LOCK_EX))
child(restarted); os.wait()
# A circle of two processes over two files.
a, b = open("a", "w+"), open("b", "w+")
r1, w1 = os.pipe()
print(wait(a, WR))
sys.stdout.flush()
pid = os.fork()
if not pid:
    print(wait(b, WR)); sys.stdout.flush(); os.write(w1, b"1"); found = wait(a, WR)
    print("deadlock" if found == "EDEADLOCK" else found); sys.stdout.flush(); os._exit(0)
os.read(r1, 1)
first = wait(b, WR)
print("deadlock" if first == "EDEADLOCK" else first); sys.stdout.flush(); set(a, UN)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("script", [RANGES, LIVES, PROGRAMS, WAITS], ids=["ranges", "lives", "programs", "waits"])
def test_same_as_locally(runner, tmp_path, script):
    path = tmp_path / "script.py"
    path.write_text(LIBRARY + script)
    assert runner.same(f"{sys.executable} {path}")


SHELL = """
echo 0 > count
increment() { flock 9; n=$(cat count); echo $((n + 1)) > count; }
for i in 1 2 3 4; do (for j in 1 2 3 4 5; do increment; flock -u 9; done) 9> lock & done; wait; cat count
for i in 1 2 3 4 5 6; do flock lock -c 'n=$(cat count); echo $((n + 1)) > count' & done; wait; cat count
exec 8> lock; flock 8; flock -n lock true; echo $?; (flock -n 7; echo $?) 7> lock
flock -u 8; flock -n lock true; echo $?; flock 8; exec 8>&-; flock -n lock true; echo $?
flock -s lock flock -s -n lock echo both; flock -s lock flock -n lock echo never; echo $?
flock -w 0.2 lock flock -w 0.1 lock true; echo $?
plus() { n=$(cat count); echo $((n + 1)) > count; }
for i in 1 2 3 4; do (for j in 1 2 3; do until ln -s x dot 2> /dev/null; do :; done; plus; rm dot; done) & done; wait
cat count
"""


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is missing (package util-linux)")
def test_shell(runner):
    assert runner.same(SHELL).startswith(b"20\n26\n1\n1\n0\n0\nboth\n1\n1\n")


HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "r+")
if sys.argv[2] == "flock": fcntl.flock(file, fcntl.LOCK_EX)
elif sys.argv[2] == "lockf": fcntl.lockf(file, fcntl.LOCK_EX)
else: fcntl.fcntl(file, 38, __import__("struct").pack("hhqqi4x", 1, 0, 0, 0, 0))
print("held", flush=True)
sys.stdin.read()
"""


def holder(runner, path, kind):
    return subprocess.Popen([sys.executable, "-c", HOLDER, path, kind], env=runner.loaded, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)


@pytest.mark.parametrize("kind", ["flock", "lockf", "ofd"])
def test_a_killed_holder_lets_the_next_go_on(runner, kind):
    path = f"{runner.mount}/held-{kind}"
    subprocess.run(["touch", path], env=runner.loaded, check=True, timeout=TIMEOUT_S)
    first = holder(runner, path, kind)
    assert first.stdout.readline() == b"held\n"
    waiting = [holder(runner, path, kind) for _ in range(2)]
    waiting[0].kill()  # one that waits does not stay in line
    waiting[0].communicate(timeout=TIMEOUT_S)
    first.kill()
    assert waiting[1].stdout.readline() == b"held\n"
    for process in (first, waiting[1]):
        process.communicate(timeout=TIMEOUT_S)


def test_a_killed_shell_that_had_somebody_else_lock(runner):
    """The lock is that of the shell's descriptor, although another program took it."""
    path = f"{runner.mount}/by-shell"
    shell = subprocess.Popen(["bash", "-c", f"exec 9> {path}; flock 9; echo held; read line"], env=runner.loaded,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert shell.stdout.readline() == b"held\n"
    tried = subprocess.run(["flock", "-n", path, "true"], env=runner.loaded, timeout=TIMEOUT_S, check=False)
    assert tried.returncode == 1
    waiting = subprocess.Popen(["flock", path, "echo", "got it"], env=runner.loaded, stdout=subprocess.PIPE)
    shell.send_signal(signal.SIGKILL)
    shell.communicate(timeout=TIMEOUT_S)
    assert waiting.communicate(timeout=TIMEOUT_S)[0] == b"got it\n"


SQLITE = """
import os, sqlite3, sys
mode, rounds = sys.argv[1], 15
def connect():
    db = sqlite3.connect("db", timeout=60, isolation_level=None)
    db.execute(f"pragma journal_mode={mode}")
    return db
db = connect()
db.execute("create table t (who, number)")
db.close()
children = []
for who in range(2):
    children.append(os.fork())
    if not children[-1]:
        for number in range(rounds):
            db = connect()
            db.execute("begin immediate")
            (count,) = db.execute("select count(*) from t where who = ?", (who,)).fetchone()
            assert count == number, (count, number)
            db.execute("insert into t values (?, ?)", (who, number))
            db.execute("commit")
            db.close()
        os._exit(0)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
db = connect()
print(db.execute("select who, count(*), sum(number) from t group by who").fetchall())
print(db.execute("pragma integrity_check").fetchall())
db.close()
for name in os.listdir("."):
    if name.startswith("db"):
        os.unlink(name)
"""


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory", "off"])
def test_sqlite_with_two_writers(runner, tmp_path, mode):
    path = tmp_path / "script.py"
    path.write_text(SQLITE)
    said = runner.same(f"{sys.executable} {path} {mode}", timeout=2 * TIMEOUT_S)
    assert said == b"[(0, 15, 105), (1, 15, 105)]\n[('ok',)]\n"
