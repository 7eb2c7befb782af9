# SPDX-License-Identifier: Apache-2.0
"""Threads that come and go: the client outlives those that used it first."""
import subprocess
import sys

SCRIPT = """
import os, sys, threading
def work(n):
    with open(f'{sys.argv[1]}/{n}', 'w') as file: file.write('x' * n)
def together():
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
together()
print(sorted(os.listdir(sys.argv[1])))  # by a thread that has not asked before, when all that had are gone
pid = os.fork()
if not pid:
    together()
    together()
    os._exit(len(os.listdir(sys.argv[1])))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_all_threads_that_made_calls_have_ended(runner, tmp_path):
    """The first of them started the client.  The directory is made by another program."""
    mount = f"{runner.mount}/threads"
    subprocess.run(["mkdir", mount], env=runner.loaded, check=True, timeout=30)
    for python in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run([python, "-c", SCRIPT, mount], env=runner.loaded, capture_output=True, text=True,
                              timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == "['0', '1', '2', '3']\n4\n"
    subprocess.run(["rm", "-r", mount], env=runner.loaded, check=True, timeout=30)
