# SPDX-License-Identifier: Apache-2.0
"""Clients that are stopped in the middle of what they do (Ctrl-Z, a batch system) and go on later."""
import select
import signal
import subprocess
import sys

from test_servers import standing

assert standing  # a fixture

THREADS = 40
WRITERS = f"""
import os, sys, threading
os.chdir(sys.argv[1])
data, end = os.urandom(1 << 20), threading.Event()
def write(name):
    turn = 0
    with open(name, "wb", buffering=0) as file:
        while not end.is_set():
            assert file.write(data) == len(data)
            file.seek(0)
            turn += 1
            if turn == 2:
                print("!", end="", flush=True)
    with open(name, "rb") as file:
        assert file.read() == data
threads = [threading.Thread(target=write, args=(f"f{{number}}",)) for number in range({THREADS})]
for thread in threads:
    thread.start()
sys.stdin.read()
end.set()
"""


def test_stopped_clients_hold_nobody_up_and_go_on(standing):
    """Stopped for longer than a call may take, with more transfers under way than a server has places."""
    _, _, environment = standing
    mount = environment["MADFS_MOUNT"]
    client = subprocess.Popen([sys.executable, "-c", WRITERS, mount], env={**environment, "MADFS_TIMEOUT_MS": "1500"},
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert client.stdout.read(THREADS) == b"!" * THREADS
        client.send_signal(signal.SIGSTOP)
        subprocess.run(["dd", "if=/dev/zero", f"of={mount}/other", "bs=1M", "count=8"], env=environment, check=True,
                       timeout=20, stderr=subprocess.DEVNULL)
        select.select([], [], [], 2)  # longer than the timeout: that is what is tried
        client.send_signal(signal.SIGCONT)
        said = client.communicate(b"", timeout=40)[1]
        assert client.returncode == 0, said
        # Who is stopped within a message blocks a server's queue: that one begins anew, and is found again.
        assert all(b"calls then go on" in line for line in said.splitlines()), said
    finally:
        client.kill()
        client.communicate()
