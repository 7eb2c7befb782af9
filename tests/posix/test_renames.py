# SPDX-License-Identifier: Apache-2.0
"""Renames and exchanges of files and directories do on the mount what they do on a local directory."""
import sys

import pytest

MAKE_TREE = """
mkdir -p a/b/c a/empty a-b other
for i in 1 2 3 4 5 6 7 8 9; do echo $i > a/f$i; echo b$i > a/b/g$i; done
seq 1 300000 > a/b/c/large; ln -s ../f1 a/b/link; ln a/f2 a/b/hard; echo x > a-b/x; echo y > other/y; chmod 750 a/b
"""

SHELL = {
    "mv_tree": MAKE_TREE + "mv a moved && find . | sort && mv moved/b other/b && find . | sort; "
                           "cat other/b/g3 moved/f2; "
                           "stat -c '%n %A %s %h' moved moved/empty other other/b other/b/hard moved/f2; "
                           "ls a; mv moved a && cmp a/f2 other/b/hard && rm -r a && find . | sort",
    "mv_back_and_forth": MAKE_TREE + "for i in 1 2 3; do mv a/b other/b && mv other/b a/b; done; find . | sort; "
                                     "cat a/b/g1; echo more >> a/b/g1; cat a/b/g1; rm -r a other a-b; ls",
    "mv_T": MAKE_TREE + "mkdir target; mv -T a target && find . | sort; mv -T other target; mv -T target a-b; "
                        "touch file; mv -T target file; mv -T file target; mv -n other a-b; find . | sort",
    "cycles": MAKE_TREE + "mv a a/b; mv a a/b/c/d; mv a a/none/d; mv -T a/b a; mv a/b/c/large/x .; mv a .; "
                          "find . | sort",
    "links_above": MAKE_TREE + "ln -s a/b short; mv short/c short/d && mv short/d viaC && ls -F viaC a/b; mv a c; "
                               "ls short; ln -sfn c/b short; mv viaC short/; ls short/viaC; mv short/ x 2>/dev/null; "
                               "mv short y; ls -F",
    "descriptors": MAKE_TREE + "exec 5>>a/f1 6<a/b/g2; mv a z; echo late >&5; cat <&6; exec 5>&- 6<&-; cat z/f1; "
                               "rm -r z; ls",
    "cwd": MAKE_TREE + "cd a/b; mv ../../a ../../z; pwd -P; ls; cat g4; echo new > made; cd ..; pwd -P; "
                       "cd ..; find . | sort",
    "cwd_of_a_child": MAKE_TREE + "(cd a/b && ls c && mv ../../a ../../z && ls && touch here && ls -l here | wc -l); "
                                  "find . | sort",
    "rm_rf_racing_mv": MAKE_TREE + "mv a z && rm -rf z/b && rmdir z/empty && rmdir z; rm z/*; rmdir z; find . | sort",
}

PYTHON = """
import ctypes, errno, itertools, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(old, new, flags, a=-100, b=-100):
    if libc.renameat2(a, os.fsencode(old), b, os.fsencode(new), flags):
        return errno.errorcode[ctypes.get_errno()]
    return 0
def make():
    os.makedirs("d/sub/deep"); os.makedirs("full/x"); os.mkdir("empty")
    for name in ("f", "d/f", "d/sub/f", "full/f", "g"): open(name, "w").write(name)
    os.symlink("f", "link"); os.symlink("none", "dangling"); os.symlink("d", "dlink"); os.link("f", "hard")
def wipe():
    for top, names, files in os.walk(".", topdown=False):
        for name in files: os.unlink(os.path.join(top, name))
        for name in names:
            path = os.path.join(top, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
def shape():
    found = []
    for top, names, files in os.walk("."):
        for name in names + files:
            path = os.path.join(top, name)
            info = os.lstat(path)
            text = os.readlink(path) if os.path.islink(path) else open(path).read() if os.path.isfile(path) else ""
            found.append((path, oct(info.st_mode), info.st_nlink, text))
    return sorted(found)
"""

SCRIPTS = {
    "all_pairs": PYTHON + """
names = "f", "d", "d/sub", "empty", "full", "none", "f/x", "link/", "d/sub/new"
make()
before = shape()
for flags in (3, 8, 1 << 30): print(renameat2("f", "x", flags))
for old, new in (("n" * 256, "x"), ("f", "n" * 256), ("none/x", "y"), ("f", "none/y"), ("dlink/", "x"),
                 ("f", "d/."), (".", "x"), ("f", ".."), ("f", ""), ("", "f"), ("none/.", "f"), ("f", "none/.")):
    print(renameat2(old, new, 0))
for flags in (0, 1, 2):
    for old, new in itertools.product(names, names):
        result = renameat2(old, new, flags)
        print(flags, old[:20], new[:20], result)
        if not result and shape() != before:
            print(shape())
            wipe(); make()
assert shape() == before
wipe()
""",
    "exchange": PYTHON + """
make()
for old, new in (("d", "full"), ("f", "d"), ("full/sub", "empty"), ("dlink", "g"), ("empty", "g"),
                 ("full/f", "dangling")):
    inodes = os.lstat(old).st_ino, os.lstat(new).st_ino
    print(old, new, renameat2(old, new, 2), (os.lstat(new).st_ino, os.lstat(old).st_ino) == inodes)
    print(shape())
wipe()
""",
    "times_and_links": PYTHON + """
import time
make()
# Inodes made within one tick of the clock have the same times: here every one has its own.
for number, name in enumerate(("d/sub/deep", "d/sub", "d", "full/f", "full/x", "full", "empty", "f", "g", ".")):
    os.utime(name, (number, number))
def stamps(*names):
    return [(info.st_mtime_ns, info.st_ctime_ns, info.st_nlink) for info in map(os.lstat, names)]
def settled(*names):
    # A parent's times follow a little later, and the clock of inodes is coarse.
    while True:
        found = stamps(*names)
        time.sleep(0.1)
        if stamps(*names) == found: return found
def changed(act, before, after):
    old = settled(*before)
    act()
    print(before, after, [(a[0] != b[0], a[1] != b[1], b[2] - a[2]) for a, b in zip(old, settled(*after))])
changed(lambda: os.rename("d/sub", "full/sub"), ["d", "full", "d/sub", "."], ["d", "full", "full/sub", "."])
changed(lambda: os.rename("full/sub", "empty"), ["empty", "full", "full/sub", "."], ["empty", "full", "empty", "."])
changed(lambda: renameat2("d", "full/f", 2), [".", "full", "d", "full/f"], [".", "full", "full/f", "d"])
changed(lambda: os.rename("g", "h"), [".", "g"], [".", "h"])
changed(lambda: os.rename("h", "full/h"), [".", "full", "h"], [".", "full", "full/h"])
changed(lambda: os.rename("hard", "f"), [".", "hard", "f"], [".", "hard", "f"])
wipe()
""",
    "directory_descriptors": PYTHON + """
make()
fd, sub = os.open("d", os.O_RDONLY), os.open("d/sub", os.O_PATH)
inode = os.fstat(fd).st_ino
os.rename("d", "full/moved")
print(os.fstat(fd).st_ino == inode, sorted(os.listdir(fd)), os.stat("f", dir_fd=fd).st_size, os.fstat(sub).st_nlink)
os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=sub)); os.mkdir("newd", dir_fd=fd)
print(sorted(os.listdir("full/moved")), sorted(os.listdir("full/moved/sub")))
os.mkdir("d"); open("d/other", "w").close()
print(sorted(os.listdir(fd)), os.path.exists("/proc/self/fd/%d/sub" % fd))
os.chmod(fd, 0o711); os.utime(fd, (5, 6)); print(oct(os.stat("full/moved").st_mode), os.stat("full/moved").st_mtime)
os.fchdir(fd); print(os.path.basename(os.getcwd()), sorted(os.listdir(".")))
os.rename("../moved", "../again"); print(os.path.basename(os.getcwd()), sorted(os.listdir(".")))
print(os.stat("..").st_ino == os.stat("../../full").st_ino)
open("here", "w").close(); os.chdir("../.."); print(sorted(os.listdir("full/again")))
os.close(fd); os.close(sub)
wipe()
""",
}


@pytest.mark.parametrize("name", SHELL)
def test_shell(runner, name):
    runner.same(SHELL[name])


@pytest.mark.parametrize("name", SCRIPTS)
def test_calls(runner, name):
    script = SCRIPTS[name].replace('"$', "'$")
    output = runner.same(f"cat > ../script-$$.py <<'EOF'\n{script}\nEOF\n{sys.executable} ../script-$$.py; s=$?; "
                         "rm ../script-$$.py; exit $s")
    assert output
