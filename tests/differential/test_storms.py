# SPDX-License-Identifier: Apache-2.0
"""Several processes at the same few names, thousands of times: what must hold at every moment, and at the end."""
import os

import pytest
from support import MADFS, call
from test_races import RACE_S, python

# Each is run by several processes at once: TOP, the number of the process, how many there are, and rounds.
COMMON = r"""
import collections, ctypes, errno, os, random, sys
top, me, processes, rounds = sys.argv[1], *map(int, sys.argv[2:5])
chance = random.Random(me)
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(top)
def attempt(function, *arguments, allowed=(errno.ENOENT, errno.EEXIST)):
    try:
        function(*arguments)
    except OSError as error:
        if error.errno not in allowed: print(me, function.__name__, arguments, error)
        return False
    return True
def exchange(old, new):
    if libc.renameat2(-100, old.encode(), -100, new.encode(), 2): raise OSError(ctypes.get_errno(), "exchange")
def wrong(*what): print(me, *what)
print("begins", flush=True)
sys.stdin.readline()
"""

STORMS = {
    # A directory is not removed under a file, and no file is made in one that is gone.
    "rmdir_and_create": r"""
for turn in range(rounds):
    if me == 0:
        attempt(os.mkdir, "d")
        attempt(os.rmdir, "d", allowed=(errno.ENOENT, errno.ENOTEMPTY))
    else:
        name = f"d/{me}"
        if attempt(lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL))):
            if not os.path.exists(name) or str(me) not in os.listdir("d"): wrong("made and gone", turn)
            os.unlink(name)
""",
    # Neither of two directories ends up in itself.
    "cycles": r"""
for name in ("a", "b"): attempt(os.mkdir, name)
mine, other = ("a", "b") if me % 2 else ("b", "a")
for turn in range(rounds // 8):
    inner = f"{other}/{mine}"
    if attempt(os.rename, mine, inner, allowed=(errno.ENOENT, errno.EINVAL, errno.ENOTEMPTY)):
        attempt(os.rename, inner, mine, allowed=(errno.ENOENT, errno.ENOTEMPTY, errno.EINVAL))
    found = [os.path.join(at, name) for at, names, _ in os.walk(".") for name in names]
    if len(found) > 4: wrong(found)
""",
    # At every moment each name is one of the files.
    "exchange": r"""
names = [f"f{number}" for number in range(5)]
for number, name in enumerate(names):
    if number % processes == me:
        with open(name, "x") as file: file.write(name * 3000)
while not all(os.path.exists(name) and os.path.getsize(name) == 6000 for name in names): pass
for turn in range(rounds // 4):
    old, new = chance.sample(names, 2)
    if me % 2: attempt(exchange, old, new, allowed=())
    else:
        try:
            with open(old) as file: data = file.read()
            if len(data) != 6000 or len({data[at:at + 2] for at in range(0, 6000, 2)}) != 1: wrong(old, len(data))
        except OSError as error: wrong(old, error)
""",
    # The number of links is that of the names.
    "links": r"""
attempt(lambda: os.close(os.open("file", os.O_CREAT)))
for turn in range(rounds):
    name = f"n{chance.randrange(12)}"
    match chance.randrange(4):
        case 0 | 1: attempt(os.link, "file", name)
        case 2: attempt(os.unlink, name)
        case 3: attempt(os.rename, name, f"n{chance.randrange(12)}")
    links = os.stat("file").st_nlink
    if not 1 <= links <= 13 + processes: wrong(links)
""",
    # Each record is there once, whole, and those of one process in their order.
    "append": r"""
file = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
for turn in range(rounds // 8):
    size = chance.choice((1, 30, 4000, 50_000, 700_000))
    record = b"%d %d %d\n" % (me, turn, size) + bytes((65 + me,)) * size + b"\n"
    if os.write(file, record) != len(record): wrong("a short count")
""",
    # Who opens the name gets one of the files, whole.
    "replace": r"""
for turn in range(rounds):
    mine = f"new-{me}"
    match chance.randrange(3):
        case 0:
            with open(mine, "w") as file: file.write(f"{me}" * 5000)
            os.rename(mine, "name")
        case 1: attempt(os.unlink, "name")
        case 2:
            try:
                with open("name") as file: data = file.read()
                if len(data) != 5000 or len(set(data)) != 1: wrong(len(data), set(data))
            except FileNotFoundError: pass
""",
}

# What is looked at when all are done.
ENDS = {
    "links": r"""
import os, sys
os.chdir(sys.argv[1])
print(os.stat("file").st_nlink - sum(os.path.samefile(name, "file") for name in os.listdir(".")) or "", end="")
""",
    "append": r"""
import collections, os, sys
os.chdir(sys.argv[1])
turns = collections.Counter()
with open("log", "rb") as file:
    for line in file:
        me, turn, size = map(int, line.split())
        if turn != turns[me] or file.read(size + 1) != bytes((65 + me,)) * size + b"\n": sys.exit(f"{me} {turn}")
        turns[me] += 1
print("" if set(turns.values()) == {int(sys.argv[2]) // 8} else turns, end="")
""",
    "cycles": r"""
import os, sys
os.chdir(sys.argv[1])
found = sorted(name for _, names, _ in os.walk(".") for name in names)
print("" if found == ["a", "b"] else found, end="")
""",
}


def storm(environment, name, rounds, processes=4):
    """What is wrong with what the processes saw, with the end, and with what fsck finds."""
    top = f"{environment['MADFS_MOUNT']}/storm-{name}"
    assert call(["mkdir", top], environment=environment).returncode == 0
    runners = [python(["-c", COMMON + STORMS[name]], top, number, processes, rounds, environment=environment)
               for number in range(processes)]
    try:
        for runner in runners:
            assert runner.stdout.readline() == "begins\n"
        for runner in runners:
            runner.stdin.write("go\n")
            runner.stdin.flush()
        found = "".join(runner.communicate(timeout=RACE_S)[0] for runner in runners)
    finally:
        for runner in runners:
            runner.kill()
            runner.communicate()
    if name in ENDS:
        end = python(["-c", ENDS[name]], top, rounds, environment=environment)
        found += end.communicate(timeout=RACE_S)[0]
    assert call(["rm", "-r", top], environment=environment).returncode == 0
    done = call([*MADFS, "fsck", "--cluster", environment["MADFS_CLUSTER"]])
    return found + ("" if done.returncode == 0 else done.stdout + done.stderr)


@pytest.mark.parametrize("name", STORMS)
def test_storm(trio, name):
    assert storm({**os.environ, **trio}, name, 160) == ""


@pytest.mark.long
@pytest.mark.parametrize("name", STORMS)
def test_long_storm(trio, name):
    assert storm({**os.environ, **trio}, name, 3000, processes=6) == ""
