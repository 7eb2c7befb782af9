# SPDX-License-Identifier: Apache-2.0
"""Extended attributes and special files, on the mount and on a local directory: call by call, and by the tools."""
import os
import shutil
import signal
import subprocess
import sys

import pytest
from support import TIMEOUT_S
from test_calls import CWD, OPEN, program, results

assert program  # a fixture

SHOWN = "getxattr", "fgetxattr", "lgetxattr", "listxattr", "flistxattr", "llistxattr"

SAME = {
    "special": f"""
        mknod D/p {0o010644} 0 , mknod D/p {0o010644} 0 , mknod D/s {0o140644} 5 , mknod D/x {0o050644} 0 ,
        mknod D/x {0o120644} 0 , mknod D/none/p {0o010644} 0 , mknod D/p/q {0o010644} 0 , open D/s 0 , truncate
        D/p 0 , readlink D/p buf:9 9 , mknod D/p/ {0o010644} 0 , mknod D/new/ {0o010644} 0 , open D/p
        {os.O_DIRECTORY} , open D/p {os.O_CREAT | os.O_EXCL} 0644 , openat {CWD} D/s {os.O_PATH} , close 3 ,
        open D/p {os.O_WRONLY | os.O_NONBLOCK} , open D/p {os.O_RDWR | os.O_TRUNC} , write $17 str:abc 3 , read
        $17 buf:9 9 , creat D/p 0600 , openat {CWD} D/p {os.O_RDONLY | os.O_NONBLOCK} , read $21 buf:9 9 ,
        rename D/p D/s , stat D/s buf:200 , unlink D/s , unlink D/p""",
    "set": f"""
        {OPEN} , setxattr D/f user.a str:xyz 3 0 , setxattr D/f user.a str:x 1 1 , setxattr D/f user.b str:x 1 2
        , setxattr D/f user.a str:x 1 4 , setxattr D/f user.a bad 1 0 , setxattr D/f bad str:x 1 0 , setxattr
        D/none bad bad 1 4 , setxattr D/none user.a str:x 1 0 , setxattr D/f str: str:x 1 0 , setxattr D/f
        user.{'n' * 251} str:x 1 0 , setxattr D/f user.{'n' * 250} str:x 1 0 , setxattr D/f user.a str:x 65537 0
        , setxattr D/f foo str:x 1 0 , setxattr D/f user. str:x 1 0 , setxattr D/f user.e null 0 0 , getxattr
        D/f user.e null 0 , setxattr D/f/ user.a str:x 1 0 , fsetxattr $0 user.a str:longer 6 2 , fsetxattr 77
        user.a str:x 1 0 , fgetxattr $0 user.a buf:9 9 , lsetxattr D/f user.a str:q 1 0 , getxattr D/f user.a
        buf:9 9 , setxattr D/f user.a str:x 1 3 , setxattr D/f user.z str:x 1 3""",
    "get": f"""
        {OPEN} , setxattr D/f user.a str:0123456789 10 0 , getxattr D/f user.a buf:99 99 , getxattr D/f user.a
        buf:9 9 , getxattr D/f user.a buf:10 10 , getxattr D/f user.a null 0 , getxattr D/f user.b buf:9 9 ,
        getxattr D/f bad buf:9 9 , getxattr D/f user.a bad 99 , getxattr D/none user.a buf:9 9 , fgetxattr 77
        user.a buf:9 9 , lgetxattr D/f user.a buf:20 20 , open D/f {os.O_PATH} , fgetxattr $13 user.a buf:9 9 ,
        getxattr D/f nonsense buf:9 9 , getxattr D/f str: buf:9 9 , getxattr D/f user. buf:9 9 , getxattr D/f
        user.{'n' * 300} buf:9 9 , getxattr D/f trusted.x buf:9 9 , getxattr D user.a buf:9 9""",
    "list": f"""
        {OPEN} , listxattr D/f buf:9 9 , setxattr D/f user.a str:x 1 0 , listxattr D/f buf:99 99 , listxattr D/f
        null 0 , listxattr D/f buf:6 6 , listxattr D/f bad 99 , flistxattr $0 buf:99 99 , flistxattr 77 buf:9 9
        , listxattr D/none buf:9 9 , llistxattr D/f buf:99 99 , removexattr D/f user.a , listxattr D/f buf:9 9""",
    "remove": f"""
        {OPEN} , removexattr D/f user.a , setxattr D/f user.a str:x 1 0 , removexattr D/f user.a , fremovexattr
        $0 user.a , removexattr D/none user.a , removexattr D/f bad , lremovexattr D/f user.q , fremovexattr 77
        user.a , removexattr D/f system.x , removexattr D/f x""",
    "links": f"""
        {OPEN} , symlink f D/l , symlink none D/m , setxattr D/l user.a str:x 1 0 , getxattr D/f user.a buf:9 9
        , lgetxattr D/l user.a buf:9 9 , lsetxattr D/l user.a str:x 1 0 , llistxattr D/l buf:9 9 , setxattr D/m
        user.a str:x 1 0 , getxattr D/m user.a buf:9 9 , lremovexattr D/l user.a , mknod D/p {0o010644} 0 ,
        setxattr D/p user.a str:x 1 0 , getxattr D/p user.a buf:9 9 , listxattr D/p buf:9 9""",
}

# Linux 6.13 and later.
AT = {
    "at": f"""
        {OPEN} , setxattr D/f user.a str:xyz 3 0 , getxattrat {CWD} D/f 0 user.a bad 16 , getxattrat {CWD} D/f 0
        user.a bad 8 , getxattrat {CWD} D/f 0 user.a bad 5000 , getxattrat {CWD} D/f 9 user.a buf:16 16 ,
        getxattrat {CWD} D/f 0 user.a buf:16 16 , getxattrat $0 str: {0x1000} user.a buf:16 16 , listxattrat
        {CWD} D/f 0 buf:99 99 , listxattrat $0 str: {0x1000} buf:99 99 , listxattrat $0 null {0x1000} null 0 ,
        removexattrat {CWD} D/f {0x100} user.a , removexattrat $0 str: {0x1000} user.a , setxattrat {CWD} D/f 0
        user.b buf:16 16 , setxattrat $0 str: {0x1000} user.c buf:16 16 , listxattr D/f buf:99 99""",
}


def compare(runner, program, tmp_path, name, text):
    line = " ".join(text.split())
    local = results(program, line, f"{tmp_path}/local", runner.plain, SHOWN)
    if ("setxattr", "EOPNOTSUPP", None) in local[:4]:
        pytest.skip("the local file system has no extended attributes")
    assert results(program, line, f"{runner.mount}/xattr-{name}", runner.loaded, SHOWN) == local


@pytest.mark.parametrize("name", SAME)
def test_same_as_locally(runner, program, tmp_path, name):
    compare(runner, program, tmp_path, name, SAME[name])


@pytest.mark.parametrize("name", AT)
def test_new_calls(runner, program, tmp_path, name):
    kernel = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if kernel < (6, 13):
        pytest.skip("the kernel has no getxattrat to compare with")
    compare(runner, program, tmp_path, name, AT[name])


TOOLS = """
touch f; mkdir d; ln -s f l; ln -s none dl; mkfifo p; mknod c c 1 3; mknod b b 7 260
setfattr -n user.a -v hello f; getfattr -d f; setfattr -n user.a -v x l; getfattr -n user.a f
setfattr -h -n user.q -v 1 l; setfattr -h -n trusted.q -v 1 l; getfattr -h -m - -d l
setfattr -n user.q -v 1 p;  getfattr -n user.q p; setfattr -n trusted.t -v 1 p; getfattr -d -m - p
setfattr -n foo.x -v 1 f; setfattr -n user. -v 1 f; setfattr -n security.x -v y f; getfattr -d -m - f | sort
setfattr -x user.none f; setfattr -x user.a f; getfattr -d f; setfattr -n user.d -v dir d; getfattr -d d
mv f g; getfattr -d -m - g; cp -a g h; getfattr -d -m - h; cp -a d d2; getfattr -d d2
tar --xattrs --xattrs-include='*' -cf - g d h | (mkdir t; cd t; tar --xattrs --xattrs-include='*' -xf -)
cd t; getfattr -d -m - g d h; cd ..
stat -c '%F %t %T %a %h %n' p c b; cp -a p c b d/; ls d; stat -c '%F %t %T %a %h %n' d/*; rm p; mknod p p; mknod p p
mv p pp; rm -r d pp c b; ls; touch d2/x
if command -v rsync > /dev/null; then rsync -aX d2/ d3; getfattr -d d3; fi
"""


@pytest.mark.skipif(not shutil.which("setfattr"), reason="setfattr is missing (package attr)")
@pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes and device nodes are for root")
def test_tools(runner):
    assert b"user.d=" in runner.same(TOOLS)


def python(runner, code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", code, *arguments], env=runner.loaded, capture_output=True, text=True,
                          timeout=TIMEOUT_S, check=False, **options)


CHUNKS = """
import os, sys
d = sys.argv[1] + "/sizes"
os.mkdir(d)
name = "user.madfs.chunk_size"
for bad in (b"0", b"-1", b"x", b"", b"99999999999", b"1e6", b"67108865"):
    try:
        os.setxattr(d, name, bad)
        print("accepted", bad)
    except OSError as error:
        assert error.errno == 22, (bad, error)
assert os.listxattr(d) == []
os.setxattr(d, name, b"70000")
assert os.getxattr(d, name) == b"70000" and os.listxattr(d) == [name]
os.mkdir(d + "/sub")
for number in range(20):
    path = d + "/sub/f%d" % number
    with open(path, "wb") as file:
        file.write(bytes(200000))
    assert os.stat(path).st_blksize == 70000 and os.getxattr(path, name) == b"70000" and os.listxattr(path) == []
    os.unlink(path)
assert os.stat(d).st_blksize == 4096
try:
    os.setxattr(path, name, b"1")
except FileNotFoundError:
    pass
os.removexattr(d, name)
open(d + "/g", "w").close()
print(os.stat(d + "/g").st_blksize, os.listxattr(d + "/sub"))
os.rmdir(d + "/sub"); os.unlink(d + "/g"); os.rmdir(d)
"""


def test_chunk_size_of_a_directory(runner):
    done = python(runner, CHUNKS, runner.mount)
    assert (done.stdout, done.stderr) == ("524288 ['user.madfs.chunk_size']\n", "")


PIPES = """
mkfifo p; (read line < p; echo "got $line") & echo hello > p; wait
mkfifo q; (cat q; echo end) & exec 7> q; echo one >&7; echo two >&7; exec 7>&-; wait
test -p p && echo pipe; rm p; ls; seq 20000 > q & wc -l < q; wait
"""


def test_pipes_between_processes(runner):
    assert runner.same(PIPES).startswith(b"got hello\none\ntwo\nend\npipe\nq\n")


BLOCKED = """
import os, signal, sys
path = sys.argv[1] + "/blocked"
os.mkfifo(path)
class Woken(Exception): pass
def woken(*_): raise Woken
signal.signal(signal.SIGALRM, woken)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    os.open(path, os.O_RDONLY)
except Woken:
    print("woken")
os.unlink(path)
"""


def test_a_signal_ends_the_wait_for_the_other_end(runner):
    done = python(runner, BLOCKED, runner.mount)
    assert (done.stdout, done.stderr) == ("woken\n", "")


def test_a_waiting_open_can_be_terminated(runner):
    path = f"{runner.mount}/terminated"
    subprocess.run(["mkfifo", path], env=runner.loaded, check=True, timeout=TIMEOUT_S)
    process = subprocess.Popen(["bash", "-c", f"echo ready; read line < {path}"], env=runner.loaded,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGTERM
    subprocess.run(["rm", path], env=runner.loaded, check=True, timeout=TIMEOUT_S)
