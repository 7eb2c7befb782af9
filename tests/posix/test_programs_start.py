# SPDX-License-Identifier: Apache-2.0
"""Programs on the mount are found, started and given their libraries as those in a local directory are: also what the
dynamic loader and the kernel open before anything of ours runs in the process."""
import os
import subprocess

import pytest
from support import MADFS, call

from pymadfs import cluster

# main prints what foo() and its dependency give, what it sees of its variables, and then loads what it is told to.
SOURCES = r"""
mkdir -p bin lib lib2 plug
echo 'int dep(void) { return 40; }' > dep.c
echo 'int dep(void); int foo(void) { return dep() + 2; }' > foo.c
echo 'int foo(void); int plugin(void) { return foo() + 1; }' > plugin.c
echo 'int dep(void) { return 100; }' > pre.c
cat > main.c <<'X'
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int foo(void);
static const char *is(const char *name) { return getenv(name) ? getenv(name) : "-"; }
int main(int count, char **arguments) {
  printf("foo %d of %d LD_LIBRARY_PATH=%s", foo(), count, is("LD_LIBRARY_PATH"));
  printf("%s%s\n", strstr(is("LD_PRELOAD"), "pre.so") ? " pre.so" : "", getenv("MADFS_STAGE") ? " MADFS_STAGE" : "");
  for (int i = 1; i < count; i++) {
    void *library = dlopen(arguments[i], RTLD_NOW);
    int (*plugin)(void) = library ? (int (*)(void))dlsym(library, "plugin") : 0;
    if (plugin) printf("plugin %d\n", plugin());
    else printf("%s: not loaded\n", arguments[i]);
  }
  return 0;
}
X
W=$PWD; host=$(mktemp -d /tmp/start.XXXXXX); trap 'rm -rf $host' EXIT
library() { gcc -shared -fPIC -o $1 $2 -Wl,-soname,${1##*/} -Wl,--enable-new-dtags "${@:3}"; }
library lib2/libdep.so dep.c; library pre.so pre.c
library lib/libfoo.so.1 foo.c -Llib2 -ldep -Wl,-rpath,'$ORIGIN/../lib2'
mv lib/libfoo.so.1 lib/libfoo.so.1.2; ln -s libfoo.so.1.2 lib/libfoo.so.1; ln -s libfoo.so.1 lib/libfoo.so
library plug/plugin.so plugin.c -Llib -lfoo -Wl,-rpath,'$ORIGIN/../lib'
program() { gcc -o $1 main.c -Wl,-rpath-link,lib2 "${@:2}"; }
t() { "$@" 2>&1 | sed "s,$host,H,g"; echo "-> ${PIPESTATUS[0]}"; }
"""

SCRIPTS = {
    # By what names the mount: DT_RUNPATH with $ORIGIN, DT_RPATH, LD_LIBRARY_PATH, a path as the name of a library.
    "search": """
program bin/origin -Llib -lfoo -Wl,-rpath,'$ORIGIN/../lib'; t bin/origin $W/plug/plugin.so plugin.so
program bin/rpath -Llib -lfoo -Wl,-rpath,$W/lib -Wl,--disable-new-dtags; t bin/rpath plug/plugin.so
program bin/plain -Llib -lfoo; t bin/plain; t env LD_LIBRARY_PATH=/usr/lib:$W/lib: bin/plain plugin.so
t env LD_LIBRARY_PATH=lib:plug bin/plain plugin.so; t env LD_LIBRARY_PATH=$W/none:/none bin/plain
gcc -shared -fPIC -o lib/nameless.so foo.c lib2/libdep.so; program bin/slash $W/lib/nameless.so $W/lib2/libdep.so
t bin/slash; (cd bin; t ./slash; LD_LIBRARY_PATH=../lib t ./plain); t env LD_LIBRARY_PATH='$ORIGIN/../lib' bin/plain
""",
    # LD_PRELOAD, and programs that lie elsewhere.
    "host": """
program $host/plain -Llib -lfoo; program $host/rpath -Llib -lfoo -Wl,-rpath,$W/lib
t $host/plain; t env LD_LIBRARY_PATH=$W/lib $host/plain $W/plug/plugin.so; t $host/rpath
t env LD_PRELOAD=$W/pre.so LD_LIBRARY_PATH=$W/lib $host/plain; cd lib2; t env LD_PRELOAD=../pre.so $host/rpath; cd ..
t env -i LD_LIBRARY_PATH=$W/lib $host/plain; t env LD_PRELOAD=$W/pre.so /bin/echo only preloaded
printf '#!%s\\n' $host/rpath > $host/script; chmod +x $host/script; t env LD_LIBRARY_PATH=$W/lib $host/script
cp lib/libfoo.so.1 lib2/libdep.so $host/; rm -r lib lib2; t env LD_LIBRARY_PATH=$W/lib:$host $host/plain
""",
    # From programs that fork in different ways; the environment is theirs.
    "callers": """
program bin/plain -Llib -lfoo; program bin/origin -Llib -lfoo -Wl,-rpath,'$ORIGIN/../lib'; t env -i bin/origin
t sh -c "LD_LIBRARY_PATH=$W/lib; export LD_LIBRARY_PATH; bin/plain; cd bin; ./plain; exec ./plain x"
python3 -c "
import os, subprocess
run = lambda *command, **how: print(subprocess.run(command, capture_output=True, text=True, **how).stdout, end='')
run('bin/origin'); os.environ['LD_LIBRARY_PATH'] = '$W/lib'; run('bin/plain', close_fds=False)
run('./plain', cwd='bin', start_new_session=True); run('bin/plain', preexec_fn=lambda: None)
pid = os.fork()
if not pid: os.execv('bin/plain', ['a', 'b'])
print(os.waitpid(pid, 0)[1], os.waitpid(os.posix_spawn('bin/plain', ['p'], os.environ), 0)[1])
try: os.execve('bin/none', ['x'], os.environ)
except OSError as error: print(error)
try: os.execve('bin/plain', ['x'], {**os.environ, 'A': 'too long for the kernel' * 10000})
except OSError as error: print(error)"
""",
    # `#!` lines: interpreters on the mount, with arguments, that are scripts themselves.
    "scripts": """
program bin/origin -Llib -lfoo -Wl,-rpath,'$ORIGIN/../lib'
printf '#!%s/bin/origin %s\\n' $W $W/plug/plugin.so > one; printf '#!%s/one x y\\n' $W > two
printf '#!%s/two\\n' $W > $host/three; printf '#!/usr/bin/env -S A=1 %s/bin/origin\\n' $W > four; chmod +x one two four
chmod +x $host/three; t ./one arg; t ./two; t $host/three last; t ./four; PATH=$W:$PATH t one
chmod -x one; t ./one; t ./two
for i in 1 2 3 4 5 6 7; do printf '#!%s/loop%s\\n' $W $((i - 1)) > loop$i; chmod +x loop$i; done; cp bin/origin loop0
t ./loop4; t ./loop5; python3 -c "
import os
try: os.execv('loop7', ['loop7'])
except OSError as error: print(error)"
printf '#!\\n' > empty; printf '#!  \\n' > blank; printf '#! /bin/sh  -e \\necho sh $0\\n' > sh; chmod +x empty blank sh
t ./sh; t ./empty; t ./blank
""",
    # The loader, executed by its name; what `ldd` makes of a program.
    "loaded": """
program bin/origin -Llib -lfoo -Wl,-rpath,'$ORIGIN/../lib'; program bin/plain -Llib -lfoo
ld=/lib64/ld-linux-x86-64.so.2; test -e $ld || ld=/lib/ld-linux-aarch64.so.1
t $ld bin/origin x $W/plug/plugin.so; t $ld $W/bin/origin; t $ld --library-path $W/lib:lib2 ./bin/plain y
t $ld --library-path lib bin/plain; t env LD_LIBRARY_PATH=lib $ld bin/plain; cd bin; t $ld ./origin; cd ..
cp /bin/echo /bin/ls .; t $ld ./echo --argv0 two; t $ld --argv0 other ./ls --none; t env -i $ld ./echo empty
t $ld --verify bin/origin; t $ld --verify main.c; t $ld ./none; t $ld main.c; t $ld --inhibit-cache ./echo last
t python3 -c "import os; os.execv('$ld', ['a', './echo', 'from', 'python'])"; (exec $ld ./echo replaced)
ldd bin/origin | sed -n 's,^\\t\\(lib[a-z]*\\.so\\)[.0-9]* => .*/\\(lib[a-z]*\\.so\\).*,\\1 \\2,p' | sort
ldd $W/bin/plain 2>&1 | grep -c 'not found'; ls /proc/self/fd > before; $ld ./ls /proc/self/fd > after
t python3 -c "print(len(open('before').readlines()) == len(open('after').readlines()))"
""",
    # The loader itself, a program that is open only, one that may be executed and not read.
    "kernel": """
program bin/origin -Llib -lfoo -Wl,-rpath,'$ORIGIN/../lib'; cp /lib64/ld-linux-x86-64.so.2 lib/ld.so
program bin/loader -Llib -lfoo -Wl,-rpath,$W/lib -Wl,--dynamic-linker=$W/lib/ld.so; t bin/loader; cp bin/loader $host/
t $host/loader; cp /bin/echo echo; cat > open.py <<'X'
import ctypes, os, sys
how, name = sys.argv[1:]
fd = os.open(name, os.O_RDONLY if how != "path" else os.O_PATH)
if how != "path": os.unlink(name)
arguments = (ctypes.c_char_p * 3)(b"name", how.encode(), None)
if how == "fd":
    os.set_inheritable(fd, True)
    os.execv(f"/proc/self/fd/{fd}", ["name", how])
if how == "fexecve": os.execve(fd, ["name", how], {})
libc = ctypes.CDLL(None, use_errno=True)
number = 322 if os.uname().machine == "x86_64" else 281
libc.syscall(number, fd, b"", arguments, (ctypes.c_char_p * 1)(None), 0x1000)
print(os.strerror(ctypes.get_errno()))
X
for how in fd fexecve execveat path; do cp echo e; t python3 open.py $how e; done; cp bin/origin bin/gone
t python3 open.py fexecve bin/gone; cp echo secret; chmod 111 secret; chmod 755 .; printf 'echo script\\n' > text
chmod 111 text; t python3 -c "
import os, subprocess
def nobody(): os.setgid(65534); os.setuid(65534)
run = lambda *command: subprocess.run(command, preexec_fn=nobody)
run('./secret', 'executed')
try: run('./text')
except OSError as error: print(error.strerror)
nobody()
for name in 'secret', 'text':
    try: open(name)
    except OSError as error: print(error.strerror)
try: os.execv('./main.c', ['x'])
except OSError as error: print(error.strerror)
"
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_start(request, runner, name):
    if name == "kernel":
        request.getfixturevalue("others_may_run_it")
    assert runner.same(SOURCES + SCRIPTS[name] + "\nrm -rf *\n", timeout=120)


def test_copies_are_gone_when_a_program_has_started(runner, standing):
    """Also when it could not be started.  (One that the loader gives up may leave some, which are removed later.)"""
    directory = cluster.shared_directory(cluster.read(standing).secret)
    before = os.listdir(directory)
    runner.same(SOURCES + """
program bin/plain -Llib -lfoo; LD_LIBRARY_PATH=lib t bin/plain; python3 -c "
import os
try: os.execve('bin/plain', ['x'], {'LD_LIBRARY_PATH': 'lib', 'A': 'too long for the kernel' * 10000})
except OSError as error: print(error)"
rm -rf *
""")
    assert [name for name in os.listdir(directory) if name.startswith(b"stage-") and name not in before] == []


def test_madfs_run_starts_what_needs_libraries_of_the_mount(runner, standing, tmp_path):
    where = f"{runner.mount}/start-{next(runner.numbers)}"
    script = f"mkdir {where}; cd {where}; {SOURCES} program bin/plain -Llib -lfoo; program bin/rpath -Llib -lfoo " \
             f"-Wl,-rpath,$W/lib; cp bin/* {tmp_path}/"
    subprocess.run(["bash", "-c", script], env=runner.loaded, check=True, timeout=60)
    for program, variables in ((f"{tmp_path}/rpath", {}), (f"{tmp_path}/plain", {"LD_LIBRARY_PATH": f"{where}/lib"}),
                               (f"{where}/bin/rpath", {})):
        done = call([*MADFS, "run", "--cluster", standing, "--", program], environment=variables)
        assert (done.returncode, done.stdout[:6], done.stderr) == (0, "foo 42", "")
    subprocess.run(["rm", "-r", where], env=runner.loaded, check=True, timeout=60)
