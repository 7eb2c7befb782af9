# SPDX-License-Identifier: Apache-2.0
"""Sockets with a path in the mount: processes of one node talk through them as through local ones."""
import os
import subprocess
import sys

import pytest

TIMEOUT_S = 60

COMMON = """
import ctypes, errno, os, signal, socket, stat, struct, sys
top = sys.argv[1]
os.chdir(top)
os.umask(0o022)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(call, *arguments):
    try:
        result = call(*arguments)
        return result
    except OSError as error:
        return errno.errorcode[error.errno]

def stream():
    return socket.socket(socket.AF_UNIX)

def datagram():
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

def tell(*what):
    print(*[part.replace(top, "D") if isinstance(part, str) else part for part in what], flush=True)
"""

SCRIPTS = {
    "streams": """
listener, client = stream(), stream()
tell(attempt(listener.bind, "a"), stat.filemode(os.stat("a").st_mode), listener.getsockname())
tell(attempt(client.connect, "a"), attempt(listener.bind, "b"), os.path.lexists("b"))
listener.listen(1)
tell(attempt(client.connect, top + "/a"), client.getpeername(), repr(client.getsockname()))
accepted, address = listener.accept()
tell(repr(address), accepted.getsockname(), repr(accepted.getpeername()))
client.send(b"hi")
tell(accepted.recv(5), attempt(client.connect, "a"), attempt(client.connect, "none"))
named = stream()
named.bind(top + "/named")
tell(attempt(named.connect, "a"))
accepted, address = listener.accept()
tell(address, accepted.getpeername(), sorted(os.listdir()))
os.rename("a", "moved")
os.link("moved", "linked")
tell(listener.getsockname(), attempt(stream().connect, "moved"), attempt(stream().connect, "a"))
listener.accept()
tell(attempt(stream().connect, "linked"))
listener.close()
tell(attempt(stream().connect, "moved"), attempt(stream().bind, "moved"))
os.unlink("moved")
again = stream()
tell(attempt(again.bind, "moved"), attempt(stream().connect, "linked"))
""",
    "datagrams": """
first, second = datagram(), datagram()
first.bind("first")
second.bind("./second")
tell(attempt(second.sendto, b"x", "first"), first.recvfrom(10))
tell(attempt(first.sendmsg, [b"yy"], [], 0, "second"), second.recvmsg(10))
tell(attempt(second.connect, "first"), second.getpeername(), second.send(b"zzz"), first.recv(9))
os.symlink("first", "link")
other = datagram()
tell(attempt(other.sendto, b"q", "link"), first.recvfrom(9), attempt(datagram().bind, "link"))
os.rename("first", "third")
tell(attempt(other.sendto, b"q", "third"), first.recv(9), first.getsockname())
os.unlink("third")
tell(attempt(other.sendto, b"q", "third"), attempt(other.connect, "third"), second.send(b"r"), first.recv(9))
""",
    "errors": """
listener = stream()
listener.bind("s")
os.mkdir("dir")
open("file", "w").close()
os.symlink("none", "dangling")
os.symlink("loop", "loop")
for path in ("file", "file/", "dir", "none", "none/x", "file/x", "dangling", "loop", "s/", "dir/..", "n" * 107,
             "dir/../s", "./s", "dir/x"):
    tell(path[:9], attempt(stream().connect, path), attempt(stream().bind, path), attempt(datagram().sendto, b"", path),
         attempt(datagram().connect, path))
tell(attempt(open, "s"), attempt(os.open, "s", os.O_PATH) != "x", attempt(os.truncate, "s", 1), attempt(os.rmdir, "s"))
tell(attempt(stream().sendto, b"x", "s"), attempt(stream().sendto, b"x", "none"))
internet = socket.socket()
address = struct.pack("=H", socket.AF_UNIX) + b"s" + bytes(1)
for call in (libc.bind, libc.connect):
    tell(call(internet.fileno(), address, len(address)), errno.errorcode[ctypes.get_errno()])
    tell(call(999, address, len(address)), errno.errorcode[ctypes.get_errno()])
    file = os.open("file", os.O_RDONLY)
    tell(call(file, address, len(address)), errno.errorcode[ctypes.get_errno()])
os.umask(0o077)
private = stream()
os.fchmod(private.fileno(), 0o770)
private.bind("private")
tell(stat.filemode(os.stat("private").st_mode), sorted(os.listdir()))
""",
    "users": """
listener = stream()
listener.bind("s")
listener.listen(4)
os.chmod(top, 0o755)
os.mkdir("closed", 0o700)
inner = stream()
inner.bind("closed/s")
os.mkdir("open")
os.chmod("open", 0o777)
os.mkfifo("open/pipe")
os.chmod("open/pipe", 0o622)
def as_nobody(step):
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            step()
        finally:
            os._exit(0)
    os.wait()
def step():
    tell(attempt(stream().connect, "s"), attempt(stream().bind, "n"), attempt(stream().connect, "closed/s"))
    tell(attempt(datagram().connect, "s"), attempt(stream().bind, "closed/n"))
    own = stream()
    tell(attempt(own.bind, "open/own"), own.getsockname(), os.stat("open/own").st_uid)
    tell(attempt(os.open, "open/pipe", os.O_RDONLY), attempt(os.open, "open/pipe", os.O_WRONLY | os.O_NONBLOCK))
    os.mkfifo("open/mine", 0o600)
as_nobody(step)
os.chmod("s", 0o602)
as_nobody(lambda: tell(attempt(stream().connect, "s")))
tell(listener.accept()[1])
reader, theirs = (os.open(name, os.O_RDONLY | os.O_NONBLOCK) for name in ("open/pipe", "open/mine"))
def write():
    for name in ("open/pipe", "open/mine"):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, name.encode())
as_nobody(write)
tell(os.read(reader, 99), os.read(theirs, 99))
""",
    "several messages": """
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]
class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("vector", ctypes.POINTER(Vector)),
                ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int), ("padding", ctypes.c_int), ("length", ctypes.c_uint), ("unused", ctypes.c_int)]
sender, receiver = datagram(), datagram()
sender.bind("sender with a longer name than the kernel's own: " + "x" * 50)
receiver.bind("receiver")
keep = []
def messages(count, names):
    list_ = (Message * count)()
    for number, message in enumerate(list_):
        name = ctypes.create_string_buffer(names[number % len(names)], 110)
        vector = Vector(b"message %d " % number, 9)
        keep.extend((name, vector))
        message.name, message.namelen = ctypes.addressof(name), 110
        message.vector, message.count = ctypes.pointer(vector), 1
    return list_
named = struct.pack("=H", socket.AF_UNIX) + b"receiver"
list_ = messages(3, [named])
done = 0
while done < 3:
    sent = libc.sendmmsg(sender.fileno(), ctypes.byref(list_, done * ctypes.sizeof(Message)), 3 - done, 0)
    assert sent > 0, ctypes.get_errno()
    done += sent
tell(done, [message.length for message in list_])
list_ = messages(5, [b""])
tell(libc.recvmmsg(receiver.fileno(), list_, 5, socket.MSG_DONTWAIT, None))
tell([(ctypes.string_at(message.name + 2), message.namelen) for message in list_[:3]])
for room in (0, 1, 2, 3, 5, 40, 110):
    name, size = ctypes.create_string_buffer(b"?" * 110, 110), ctypes.c_uint(room)
    tell(libc.getsockname(sender.fileno(), name, ctypes.byref(size)), size.value, name.raw[:min(room, 60)])
tell(libc.getsockname(sender.fileno(), None, ctypes.byref(size)), ctypes.get_errno())
longest = datagram()
path = "y" * 108
address = struct.pack("=H", socket.AF_UNIX) + path.encode()
tell(libc.bind(longest.fileno(), address, 110), os.path.exists(path))
name, size = ctypes.create_string_buffer(120), ctypes.c_uint(120)
tell(libc.getsockname(longest.fileno(), name, ctypes.byref(size)), size.value, name.raw[2:112])
""",
    "waiting": """
listener = stream()
listener.bind("s")
listener.listen(0)
first = stream()
first.connect("s")
class Woken(Exception): pass
def woken(*_): raise Woken
signal.signal(signal.SIGALRM, woken)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    stream().connect("s")
except Woken:
    tell("woken from connect")
listener.accept()
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    listener.accept()
    listener.accept()
except Woken:
    tell("woken from accept")
read, write = os.pipe()
left, right = stream(), None
left.connect("s")
right, _ = listener.accept()
socket.send_fds(left, [b"take"], [write])
_, fds, _, _ = socket.recv_fds(right, 9, 1)
os.write(fds[0], b"through the socket")
tell(os.read(read, 99))
""",
    "programs": """
from multiprocessing.connection import Client, Listener
import asyncio, threading
with Listener("address", "AF_UNIX") as server:
    threading.Thread(target=lambda: Client("address").send({"a": [1, 2]})).start()
    with server.accept() as connection:
        tell(connection.recv(), server.address)
tell(os.path.lexists("address"))
async def main():
    async def answer(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
    server = await asyncio.start_unix_server(answer, "served")
    reader, writer = await asyncio.open_unix_connection("served")
    writer.write(b"loud\\n")
    tell(await reader.readline(), writer.get_extra_info("peername"))
    writer.close()
    server.close()
asyncio.run(main())
""",
}


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", SCRIPTS)
def test_sockets_as_locally(runner, name, tmp_path, everybodys):
    if name == "users" and os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    (tmp_path / "script.py").write_text(COMMON + SCRIPTS[name])
    os.mkdir(f"{everybodys}/d")
    there = f"{runner.mount}/sockets-{name.replace(' ', '-')}"
    subprocess.run(["mkdir", there], env=runner.loaded, check=True, timeout=TIMEOUT_S)
    seen = []
    for directory, environment in ((f"{everybodys}/d", runner.plain), (there, runner.loaded)):
        done = subprocess.run([sys.executable, str(tmp_path / "script.py"), directory], env=environment, text=True,
                              capture_output=True, timeout=TIMEOUT_S / 2)
        seen.append((done.returncode, done.stdout, done.stderr.replace(directory, "D")))
    assert seen[1] == seen[0]
    assert (seen[0][0], seen[0][2]) == (0, "")


def test_a_link_of_the_hosts_to_a_socket(runner, tmp_path):
    subprocess.run(["mkdir", f"{runner.mount}/behind"], env=runner.loaded, check=True, timeout=TIMEOUT_S)
    (tmp_path / "link").symlink_to(f"{runner.mount}/behind")
    script = """if 1:
        import socket, sys, os
        listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[1] + "/s")
        listener.listen(1)
        client.connect(sys.argv[2] + "/s")
        os.symlink(sys.argv[3], sys.argv[2] + "/out")
        outside, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        outside.bind(sys.argv[2] + "/out/there")
        outside.listen(1)
        client.connect(sys.argv[2] + "/out/there")
        print(os.listdir(sys.argv[2]), os.listdir(sys.argv[3]), os.path.basename(client.getpeername()))
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "link"), f"{runner.mount}/behind",
                           str(tmp_path)], env=runner.loaded, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.stderr, sorted(done.stdout)) == ("", sorted("['s', 'out'] ['link', 'there'] there\n"))
