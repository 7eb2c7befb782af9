# SPDX-License-Identifier: Apache-2.0
"""openat2 with RESOLVE_* flags: what each combination opens, or its errno, is that of a local directory."""
import json
import subprocess
import sys

SCRIPT = """
import ctypes, errno, itertools, json, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
top = sys.argv[1]
os.makedirs(top + "/base/sub/deep")
os.makedirs(top + "/out")
os.chdir(top)
for name in ("base/f", "base/sub/g", "out/h", "base/sub/deep/i"):
    with open(name, "w") as file:
        file.write(name)
for target, name in (("f", "to-f"), ("sub", "to-sub"), ("../out/h", "to-out"), (top + "/out/h", "to-absolute"),
                     ("/f", "to-root"), ("/sub", "to-root-sub"), ("/..", "to-above-root"), ("sub/../f", "up-and-down"),
                     ("to-sub/../../out", "to-outside"), ("none", "dangling"), ("loop", "loop"), ("f/", "to-f-slash"),
                     ("sub/deep/..", "to-dots"), ("..", "to-above"), ("/", "to-slash")):
    os.symlink(target, "base/" + name)
base = os.open("base", os.O_RDONLY)
deep = os.open("base/sub/deep", os.O_RDONLY)
paths = ["f", "sub/g", "to-f", "to-sub/g", "to-sub", "to-out", "to-absolute", "to-root", "to-root-sub/g",
         "to-above-root", "up-and-down", "to-outside/h", "dangling", "loop", "to-f-slash", "to-dots/g", "to-above",
         "to-above/out/h", "..", "../out/h", "sub/../f", "sub/../../base/f", "sub/..", ".", "./", "f/", "f/x", "f/..",
         "none/..", "none", "none/x", "/f", "/sub/g", "/", "//sub//g", "/..", "/../f", top + "/base/f", "", "sub/",
         "to-sub/", "to-slash", "to-slash/f", "sub/deep/../../to-f", "x" * 256]
flags = [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_NOFOLLOW,
         os.O_PATH | os.O_NOFOLLOW, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH]
NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = 2, 4, 8, 16, 32
how = [NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, BENEATH | NO_SYMLINKS, IN_ROOT | NO_SYMLINKS, BENEATH | IN_ROOT,
       BENEATH | NO_MAGICLINKS, 64]

def attempt(directory, path, flags, resolve, mode=0):
    address = struct.pack("<QQQ", flags, mode, resolve)
    fd = libc.syscall(437, directory, path.encode(), address, len(address))
    if fd < 0:
        return errno.errorcode[ctypes.get_errno()]
    info, name = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}").replace(top, "D")
    os.close(fd)
    return [name, oct(info.st_mode)] if name[0] == "D" else "above"

found = {}
for directory, name in ((base, "base"), (deep, "deep"), (-100, "cwd"), (99, "bad")):
    chosen = paths if directory == base else paths[::3]
    for path, flag, resolve in itertools.product(chosen, flags, how):
        result = attempt(directory, path, flag, resolve, 0o640 if flag & os.O_CREAT else 0)
        for made in ("base/none", "none", "base/sub/deep/none"):
            if os.path.lexists(made):
                os.unlink(made)
                result = [result, "made " + made]
        for left in ("to-out", "f", "sub/g", "h"):
            if os.path.lexists("base/sub/deep/" + left) and not os.path.isdir("base/sub/deep/" + left):
                os.unlink("base/sub/deep/" + left)
        found[f"{name} {path.replace(top, 'D')[:40]} {flag:o} {resolve}"] = result
os.chdir("base")
found["magic"] = [attempt(-100, f"/proc/self/fd/{number}{rest}", os.O_RDONLY, resolve) for number in (base, deep)
                  for rest in ("", "/.", "/none") for resolve in (0, NO_MAGICLINKS, NO_SYMLINKS)]
found["cached"] = [attempt(base, "f", flag, CACHED, mode) for flag, mode in (
    (0, 0), (os.O_WRONLY | os.O_TRUNC, 0), (os.O_RDWR | os.O_CREAT, 0o600), (os.O_TMPFILE | os.O_RDWR, 0o600))]
found["unnamed"] = [attempt(base, ".", os.O_TMPFILE | os.O_RDWR, how, 0o600)[1] for how in (0, BENEATH, IN_ROOT)]
def nobody():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    return [attempt(base, path, os.O_RDONLY, how) for how in (BENEATH, IN_ROOT, NO_SYMLINKS)
            for path in ("sub/..", "sub/../f", "sub/deep", "f", "sub/.", "to-sub/g")]
if os.geteuid() == 0:
    os.chmod(top + "/base/sub", 0o600)
    found["nobody"] = nobody()
print(json.dumps(found))
"""

XDEV = """
import ctypes, errno, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
top = sys.argv[1]
base = os.open(top, os.O_RDONLY)
open(top + "/file", "w").close()
os.symlink("/etc", top + "/host"); os.symlink("file", top + "/inside")
def attempt(directory, path):
    address = struct.pack("<QQQ", 0, 0, 1)
    fd = libc.syscall(437, directory, path.encode(), address, len(address))
    return errno.errorcode[ctypes.get_errno()] if fd < 0 else os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
up = "../" * (top.count("/") + 1)
print(*(attempt(base, path) for path in ("file", "inside", "host/passwd", "none", up + "etc/passwd")),
      attempt(-100, top + "/file"), attempt(-100, "/etc/passwd"))
"""


def run(script, environment, directory):
    done = subprocess.run([sys.executable, "-c", script, directory], env=environment, capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_may_be_gone_through(runner, everybodys):
    local = json.loads(run(SCRIPT, runner.plain, f"{everybodys}/d"))
    ours = json.loads(run(SCRIPT, runner.loaded, f"{runner.mount}/openat2"))
    different = [(what, ours[what], local[what]) for what in local if ours[what] != local[what]]
    assert not different, different[:60]
    assert len(local) > 3000


def test_the_mount_is_another_device(runner):
    subprocess.run(["mkdir", f"{runner.mount}/xdev"], env=runner.loaded, check=True, timeout=60)
    assert run(XDEV, runner.loaded, f"{runner.mount}/xdev") == "file file EXDEV ENOENT EXDEV EXDEV passwd\n"
