# SPDX-License-Identifier: Apache-2.0
"""Hard links, files without a name, and links in chains: programs do on the mount what they do on a local directory."""
import shutil
import sys

import pytest

SHELL = {
    "ln": "echo one > a; mkdir d; ln a b; ln b d/c; stat -c '%n %h %s' a b d/c; test a -ef d/c && echo same; "
          "ls -i a b d/c | awk '{print $1}' | uniq | wc -l; echo two >> d/c; cat a; rm a; cat b; stat -c %h b; "
          "mv b e; stat -c %h d/c; mv d/c e; ls; ls d; chmod 600 e; stat -c '%a %h' e; rm -r d; stat -c %h e; "
          "ln e f; ln -f f e; stat -c %h e; truncate -s 0 f; wc -c < e",
    "refusals": "echo x > a; mkdir d; ln a a; ln d e; ln none x; ln a none/x; ln a a/x; ln a/ x; ln a x/; ln a d/; "
                "ln -T a d; ln -s none s; ln -L s x; ln -P s t; readlink t; stat -c '%h %F' s t; "
                "ln a /dev/shm/.nothing; "
                "ln /proc/version d/p; ln /none/x y; ln a $(printf 'n%.0s' $(seq 1 256)) 2>/dev/null || echo long; "
                "stat -c %h a; ls",
    "link_follows": "echo x > a; ln -s a s; ln s h; readlink h; ln -L s g; stat -c '%h %F' a g; ln -P s k; ls -F",
    "cp_al": "mkdir -p t/u; seq 1 100000 > t/f; ln t/f t/u/g; ln -s f t/l; cp -al t v; stat -c '%n %h' t/f v/f v/u/g; "
             "rm -r t; stat -c '%n %h' v/f v/u/g; cmp v/f v/u/g && echo equal; cp -a v w; "
             "test w/f -ef w/u/g && echo linked; stat -c %h w/f; cp -rd --preserve=links v x; stat -c %h x/f; "
             "cp -l v/f y; stat -c %h y; du -b --apparent-size v/f v/u/g | wc -l",
    "tar_hard_links": "mkdir -p t/u; seq 1 50000 > t/f; ln t/f t/u/g; ln t/f t/h; tar cf x.tar t; tar tvf x.tar | "
                      "grep -c '^h'; mkdir o; tar xf x.tar -C o; stat -c %h o/t/f; "
                      "test o/t/f -ef o/t/u/g && echo same; "
                      "cmp t/f o/t/h && echo equal; rm x.tar",
    "unlink_while_open": "exec 3<> f; echo data >&3; rm f; ls; echo more >&3; stat -L -c '%h %s' /dev/fd/3; "
                         "exec 4< /dev/null; cat <&4; exec 3>&-; ls",
    "rename_over_open": "echo old > f; echo new > g; exec 3< f; mv g f; cat <&3; cat f; exec 3<&-",
    "child_keeps": "echo kept > f; (exec 3< f; rm f; cat <&3); ls; echo kept > g; exec 5< g; rm g; sh -c 'cat <&5'",
    "find_links": "mkdir -p a/b c; echo x > a/f; ln a/f a/b/g; ln a/f c/h; echo y > c/i; "
                  "find . -type f -links +1 | sort; "
                  "find . -samefile a/f | sort; find . -links 1 -type f",
    "nlink_of_directories": "mkdir -p a/b/c a/d a/e; stat -c '%n %h' a a/b a/d; touch a/f; ln a/f a/g; stat -c %h a; "
                            "rmdir a/d; stat -c %h a; mkdir a/d a/h; stat -c %h a; rm -r a/b; stat -c %h a",
    "chains": "echo end > l0; for i in $(seq 1 41); do ln -s l$((i-1)) l$i; done; cat l39 l40; cat l41; cat l40/; "
              "ln -s loop loop; cat loop; ln -s ping pong; ln -s pong ping; cat ping; ls loop/x; mkdir loop; "
              "touch pong/x; mkdir d; ln -s ../d/in d/in; cat d/in; ln -s in/.. d/up; ls d/up; ln -s self/.. self; "
              "ls self/; stat -L self; ln -s . dot; cat dot/dot/dot/dot/l0; rm loop; ls -d loop",
    "chains_of_directories": "mkdir d0; echo end > d0/f; for i in $(seq 1 41); do ln -s d$((i-1)) d$i; done; "
                             "cat d40/f; "
                             "cat d41/f; mkdir -p a/b; for i in $(seq 1 30); do ln -s ../b a/b/s$i; done; "
                             "cd a/b; echo y > z; cat s1/s2/s3/s4/s5/s6/s7/s8/s9/s10/z; ln -s s1/../b/z up; cat up",
    "slashes": "echo x > f; mkdir d; ln -s f sf; ln -s d sd; ln -s none sn; for p in f sf sd sn d none; do rm $p/; "
               "unlink $p/; rmdir $p/; readlink $p/; stat -c %F $p/; ln -s x $p/; ln f $p/; mkdir $p/; touch $p/; "
               "cat $p/; done 2>&1; ls -F",
    "unlink_directories": "mkdir d e; touch f; unlink d; rm d; rmdir f; unlink f/; rmdir e/; rmdir none; unlink none; "
                          "rmdir d/.; rmdir d/..; unlink d/.; unlink .; rmdir .; ls",
    "link_sizes": "ln -s $(printf 'n%.0s' $(seq 1 4000)) s; stat -c '%s %F' s; ln -s '' e; ln -s a/b/c t; "
                  "stat -c %s t; "
                  "readlink t | tr -d '\\n' | wc -c; ls -l t | cut -d' ' -f9-",
    "git_clone_local": "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1; git init -q -b main o && cd o && "
                       "git config user.email a@b && git config user.name n && seq 1 5000 > f && git add f && "
                       "git commit -q -m one && git gc -q && cd .. && git clone -q --local o c && cmp o/f c/f && "
                       "git -C c log --format=%s && git -C c fsck --full && "
                       "stat -c %h $(ls c/.git/objects/pack/*.pack); rm -rf o c .gitconfig",
}

PYTHON = {
    "os_link": """
import os, errno
def attempt(function, *arguments, **keywords):
    try: result = function(*arguments, **keywords)
    except OSError as e: print(function.__name__, "->", errno.errorcode[e.errno])
    else: print(function.__name__, result if isinstance(result, (int, bytes, str)) else type(result).__name__)
open("f", "w").write("x" * 10000)
os.mkdir("d"); os.symlink("f", "s")
attempt(os.link, "f", "g"); attempt(os.link, "f", "g"); attempt(os.link, "d", "e"); attempt(os.link, "d", "g")
attempt(os.link, "none", "g"); attempt(os.link, "none", "none/x"); attempt(os.link, "f", "none/x")
attempt(os.link, "s", "t"); attempt(os.link, "s", "u", follow_symlinks=False)
attempt(os.link, "f/", "x"); attempt(os.link, "f", "x/"); attempt(os.link, "f", "d/"); attempt(os.link, "f", "g/")
attempt(os.link, "f", "."); attempt(os.link, "f", ".."); attempt(os.link, "f", "d/."); attempt(os.link, "", "x")
attempt(os.link, "f", ""); attempt(os.link, "f", "f/x"); attempt(os.link, "f", "d" + "/x" * 3)
attempt(os.link, "/proc/version", "p"); attempt(os.link, "/etc/none", "p"); attempt(os.link, "/proc/version", "g")
attempt(os.link, "f", "/dev/shm/.nothing"); attempt(os.link, "f", "/etc/passwd"); attempt(os.link, "f", "/none/x")
dfd = os.open("d", os.O_RDONLY)
attempt(os.link, "f", "in", dst_dir_fd=dfd); attempt(os.link, "in", "out", src_dir_fd=dfd)
print(os.stat("f").st_nlink, os.path.samefile("f", "d/in"), sorted(os.listdir(".")), os.lstat("t").st_nlink)
before = os.stat("f"); os.utime("d/in", (5, 6)); after = os.stat("f")
print(after.st_mtime, after.st_ino == before.st_ino, os.stat("out") == after)
os.truncate("g", 3); print(open("d/in").read(), os.stat("out").st_size)
os.rename("g", "out"); print(sorted(os.listdir(".")), os.stat("f").st_nlink)
for name in ("g", "out", "d/in"): os.unlink(name)
print(os.stat("f").st_nlink, os.stat("d").st_nlink)
""",
    "tmpfile": """
import os, errno, fcntl, tempfile
def attempt(function, *arguments, **keywords):
    try: result = function(*arguments, **keywords)
    except OSError as e: print(function.__name__, "->", errno.errorcode[e.errno])
    else: print(function.__name__, result if isinstance(result, (int, bytes, str)) else type(result).__name__)
os.mkdir("d"); open("f", "w"); os.symlink("d", "s"); T = os.O_TMPFILE
for path in ("none", "f", "f/x", "", "none/x"): attempt(os.open, path, T | os.O_RDWR)
attempt(os.open, "d", T | os.O_RDONLY); attempt(os.open, "d", T | os.O_RDWR | os.O_CREAT)
attempt(os.open, "d", T & ~os.O_DIRECTORY | os.O_RDWR); attempt(os.open, "s", T | os.O_RDWR | os.O_NOFOLLOW)
fd = os.open("s", T | os.O_RDWR, 0o640)
print(oct(os.fstat(fd).st_mode), os.fstat(fd).st_nlink, os.listdir("d"), os.write(fd, b"tmp" * 5000))
attempt(os.lseek, fd, 0, 0); attempt(os.read, fd, 3); print(os.fstat(fd).st_size)
attempt(os.link, f"/proc/self/fd/{fd}", "d/named", src_dir_fd=0); attempt(os.link, f"/proc/self/fd/{fd}", "x")
print(os.fstat(fd).st_nlink, os.listdir("d"), os.path.getsize("d/named"))
attempt(os.link, f"/proc/self/fd/{fd}", "d/named", src_dir_fd=0)
attempt(os.link, f"/proc/self/fd/{fd}", "two", src_dir_fd=0)
print(os.stat("two").st_nlink); os.unlink("two"); os.unlink("d/named"); print(os.fstat(fd).st_nlink)
attempt(os.link, f"/proc/self/fd/{fd}", "d/named", src_dir_fd=0); os.close(fd)
fd = os.open("d", T | os.O_WRONLY | os.O_EXCL)
attempt(os.write, fd, b"x"); attempt(os.read, fd, 1); attempt(os.link, f"/proc/self/fd/{fd}", "d/named", src_dir_fd=0)
os.close(fd); os.rmdir("d")
with tempfile.TemporaryFile(dir=".") as t:
    t.write(b"z" * 100000); t.seek(0); print(len(t.read()), sorted(os.listdir(".")))
with tempfile.NamedTemporaryFile(dir=".") as t: t.write(b"q")
print(sorted(os.listdir(".")))
""",
    "empty_path": """
import ctypes, os, errno
libc = ctypes.CDLL(None, use_errno=True)
def linkat(fd, old, other, new, flags):
    r = libc.linkat(fd, old, other, new, flags)
    return r and errno.errorcode[ctypes.get_errno()]
EMPTY, FOLLOW, CWD = 0x1000, 0x400, -100
open("f", "w").write("x"); os.mkdir("d"); os.symlink("f", "s")
fd = os.open("f", os.O_RDONLY); path = os.open("s", os.O_PATH | os.O_NOFOLLOW); dfd = os.open("d", os.O_RDONLY)
host = os.open("/proc/version", os.O_RDONLY); opath = os.open("f", os.O_PATH)
print(linkat(fd, b"", CWD, b"a", EMPTY), linkat(path, b"", CWD, b"b", EMPTY), linkat(dfd, b"", CWD, b"c", EMPTY))
print(linkat(host, b"", CWD, b"c", EMPTY), linkat(fd, b"", CWD, b"/dev/shm/.c", EMPTY))
print(linkat(opath, b"", dfd, b"e", EMPTY))
print(linkat(fd, b"", CWD, b"c", 0), linkat(CWD, b"", CWD, b"c", EMPTY), linkat(99, b"", CWD, b"c", EMPTY))
print(linkat(CWD, b"s", CWD, b"g", FOLLOW), linkat(CWD, b"s", CWD, b"h", 0), linkat(CWD, b"s", CWD, b"h", 1))
print(linkat(fd, b"", CWD, b"a", EMPTY), linkat(host, b"", CWD, b"a", EMPTY), linkat(fd, b"", CWD, b"none/a", EMPTY))
print(linkat(CWD, b"/proc/self/fd/%d" % path, CWD, b"i", FOLLOW))
print(linkat(CWD, b"/proc/self/fd/%d" % fd, CWD, b"j", FOLLOW))
print(os.stat("f").st_nlink, os.readlink("b"), os.readlink("h"), sorted(os.listdir(".")), os.listdir("d"))
print(os.readlink("", dir_fd=path), os.readlink(b"", dir_fd=path))
for bad in (fd, dfd, opath):
    try: print(os.readlink("", dir_fd=bad))
    except OSError as e: print(errno.errorcode[e.errno])
os.unlink("f"); os.unlink("a"); os.unlink("g"); os.unlink("d/e"); os.unlink("j")
print(os.fstat(fd).st_nlink, linkat(fd, b"", CWD, b"again", EMPTY), os.read(fd, 9))
""",
    "unlinked": """
import os, subprocess, sys
def show(fd): s = os.fstat(fd); print(s.st_nlink, s.st_size, os.pread(fd, 20, 0), flush=True)
fd = os.open("f", os.O_CREAT | os.O_RDWR); os.write(fd, b"0123456789"); os.unlink("f"); show(fd)
os.pwrite(fd, b"x" * 3, 4); show(fd); os.ftruncate(fd, 5); show(fd); os.fchmod(fd, 0o600)
os.ftruncate(fd, 2000000); show(fd)
open("f", "w").write("another"); show(fd); print(open("f").read())
other = os.open("f", os.O_RDONLY); open("g", "w").write("third"); os.rename("g", "f"); show(other)
print(open("f").read())
pid = os.fork()
if not pid:
    show(fd); show(other); os.write(fd, b"child"); os._exit(0)
os.waitpid(pid, 0); show(fd)
print(subprocess.run(["cat"], stdin=other, capture_output=True).stdout)
r, w = os.pipe(); done, ended = os.pipe()
if not os.fork():  # the one who opened ends before its child looks
    last = os.open("f", os.O_RDONLY); os.unlink("f")
    if not os.fork():
        os.read(r, 1); show(last); os._exit(0)
    os._exit(0)
os.wait(); os.write(w, b"!"); os.close(ended); os.read(done, 1)  # its end is seen at the end of the pipe
os.close(fd); os.close(other); print(os.listdir("."))
if not os.fork():  # a program that inherits what has no name any more
    last = os.open("h", os.O_CREAT | os.O_RDWR); os.write(last, b"heirloom"); os.lseek(last, 0, 0); os.unlink("h")
    os.dup2(last, 0); os.execvp("sh", ["sh", "-c", "sleep 0.1; cat; ls"])
os.wait()
""",
}


@pytest.mark.parametrize("name", SHELL)
def test_shell(runner, name):
    if name.startswith("git") and not shutil.which("git"):
        pytest.skip("git is not installed")
    runner.same(SHELL[name])


@pytest.mark.parametrize("name", PYTHON)
def test_python(runner, name):
    runner.same(f"{sys.executable} - <<'EOF'\n{PYTHON[name]}\nEOF")
