# SPDX-License-Identifier: Apache-2.0
"""Objects that appear while the program runs: loads.c loads late.c in every way there is."""
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from support import TIMEOUT_S

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86_64")

PLAIN = ("-fPIC",)
# Test -> how its library is made.
LIBRARIES = {
    "plain": PLAIN,
    "namespace": PLAIN,
    "again": PLAIN,
    "threads": PLAIN,
    "protect": PLAIN,
    "part": PLAIN,
    "shared": PLAIN,
    "jit": PLAIN,
    "no_room": PLAIN,
    "no_gap": PLAIN,
    "relocated": ("-fPIC", "-DTEXT_RELOCATION", "-Wl,-z,notext"),
    "constructor": ("-fPIC", "-DCONSTRUCTOR"),
}
# What does not change that a library's calls are found.
FORMS = {
    "initfirst": ("-fPIC", "-DCONSTRUCTOR", "-Wl,-z,initfirst"),
    "sysv-hash": ("-fPIC", "-DCONSTRUCTOR", "-Wl,--hash-style=sysv"),
    "packed": ("-fPIC", "-DCONSTRUCTOR", "-Wl,--hash-style=gnu", "-Wl,-z,pack-relative-relocs"),
    "no-build-id": ("-fPIC", "-DCONSTRUCTOR", "-Wl,--build-id=none"),
    "no-unwinding": ("-fPIC", "-DCONSTRUCTOR", "-fno-asynchronous-unwind-tables", "-Wl,--no-eh-frame-hdr"),
    "one-segment": ("-fPIC", "-DCONSTRUCTOR", "-Wl,-z,noseparate-code"),
    "no-sections": ("-fPIC", "-DCONSTRUCTOR"),
    "branch-protection": ("-fPIC", "-DCONSTRUCTOR", "-fcf-protection=full", "-Wl,-z,ibt,-z,shstk"),
}


@pytest.fixture(scope="module")
def loads(tmp_path_factory):
    path = tmp_path_factory.mktemp("loads") / "loads"
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", path, HERE / "loads.c", "-ldl", "-lpthread"], check=True)
    return path


def library(directory, name, flags):
    path = directory / f"{name}.so"
    done = subprocess.run(["gcc", "-shared", "-O2", *flags, "-o", path, HERE / "late.c"], capture_output=True,
                          text=True)
    if done.returncode and name == "packed":
        pytest.skip("this linker does not know -z pack-relative-relocs")
    assert done.returncode == 0, done.stderr
    if name == "no-sections":
        image = bytearray(path.read_bytes())
        at, = struct.unpack_from("<Q", image, 40)
        struct.pack_into("<Q", image, 40, 0)
        struct.pack_into("<HHH", image, 58, 0, 0, 0)
        path.write_bytes(image[:at])
    return path


@pytest.mark.parametrize("name", LIBRARIES)
def test_loads(run, loads, tmp_path, name):
    done = run(loads, name, library(tmp_path, name, LIBRARIES[name]), environment={"MADFS_STRICT": "0"})
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["threads", "again", "namespace", "relocated"])
def test_a_hundred_times(run, loads, tmp_path, name):
    path = library(tmp_path, name, LIBRARIES[name])
    for _ in range(100):
        done = run(loads, name, path)
        assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


@pytest.mark.parametrize("name", FORMS)
def test_form_of_a_library(run, loads, tmp_path, name):
    done = run(loads, "constructor", library(tmp_path, name, FORMS[name]))
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_everything_still_works_without_the_shim(loads, tmp_path):
    """The tests test: without the shim none of the mount is reached."""
    done = subprocess.run([loads, "plain", library(tmp_path, "plain", PLAIN)], capture_output=True, text=True)
    assert done.stdout == "open_it: -2\n"


def test_mprotect_says_what_the_kernel_says(system):
    line = "mprotect 1 4096 4 , mprotect 0 4096 5 , pkey_mprotect 1 4096 4 -1 , mprotect 0 0 4"
    assert system(line) == system(line, shim=False)


def test_just_in_time_compiler(run):
    """node makes pages writable and executable all the time."""
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed")
    script = "let s = 0; for (let i = 0; i < 3e6; i++) s += i % 7; require('fs').writeFileSync('/madfs/n', '' + s); "
    script += "console.log(require('fs').readFileSync('/madfs/n', 'utf8'))"
    done = run(node, "-e", script)
    assert (done.stdout, done.returncode) == ("8999994\n", 0), done.stderr


# A thread loads a library that lies on the mount, while first calls of others start the client, which loads its own.
FIRST_TOUCH = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
static atomic_int stop;
static void *writes(void *number) {
  char name[40];
  snprintf(name, sizeof name, "/madfs/first-%ld", (long)number);
  do {
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    if (write(fd, "x", 1) != 1 || close(fd)) return "";
  } while (!stop);
  return NULL;
}
int main(int count, char **words) {
  pthread_t threads[3];
  void *failed;
  for (long i = 0; i < 3; i++) pthread_create(&threads[i], NULL, writes, (void *)i);
  for (int i = 0; i < 6; i++) {
    void *library = i % 3 ? dlopen(words[count - 1], RTLD_NOW) : dlmopen(LM_ID_NEWLM, words[count - 1], RTLD_NOW);
    if (!library || dlclose(library)) return 1;
  }
  stop = 1;
  for (int i = 0; i < 3; i++)
    if (pthread_join(threads[i], &failed) || failed) return 2;
  return 0;
}
"""


def first_touches(on_mount, directory, rounds):
    (directory / "first.c").write_text(FIRST_TOUCH)
    subprocess.run(["gcc", "-o", directory / "first", directory / "first.c", "-lpthread"], check=True,
                   timeout=TIMEOUT_S)
    lies = library(directory, "lies", PLAIN)
    done = on_mount("bash", "-c", f"""cp {lies} /madfs/first.so
for ((i = 0; i < {rounds}; i++)); do timeout -s KILL {TIMEOUT_S} {directory}/first /madfs/first.so || echo $?; done
rm /madfs/first.so /madfs/first-*""", timeout=TIMEOUT_S + 5 * rounds)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_library_of_the_mount_is_loaded_while_the_client_starts(on_mount, tmp_path):
    first_touches(on_mount, tmp_path, 3)


@pytest.mark.long
@pytest.mark.timeout(700)
def test_a_hundred_times_while_the_client_starts(on_mount, tmp_path):
    first_touches(on_mount, tmp_path, 100)
