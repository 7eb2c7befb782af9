# SPDX-License-Identifier: Apache-2.0
"""Runs sequences of calls on a local directory and on the mount, and compares what came of every one."""
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys

ACTOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "actor.py")
ANCIENT_NS = 2_000_000_000 * 10**9 // 2  # times before this were set by a test; later ones are "now"
ANSWER_S = 30


class Difference(AssertionError):
    pass


class Side:
    """Processes that work below ``base``, one for each user id of ``users``, in an environment."""

    def __init__(self, base, environment, users):
        self.base, self.users = base, users
        self.actors = [subprocess.Popen([sys.executable, "-S", "-E", ACTOR], env=environment, text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in users]
        self.top = None
        self.inodes = {}
        self.ended = ""  # how an actor did, which all later examples fail by

    def begin(self, number):
        """A fresh directory that everybody may write to."""
        self.top = f"{self.base}/{number}"
        self.inodes = {}
        self.ask(0, "begin", self.base, 0)
        self.ask(0, "chmod", self.base, 0o755)  # an example may have changed it, through ".."
        self.ask(0, "chown", self.base, 0, 0, True)
        self.ask(0, "mkdir", self.top, 0o777)
        self.ask(0, "chmod", self.top, 0o777)
        for actor, uid in enumerate(self.users):
            begun = self.ask(actor, "begin", self.top, uid)
            assert begun == ["ok", None], (self.top, uid, begun)

    def ask(self, actor, name, *arguments):
        process = self.actors[actor]
        if self.ended:
            raise Difference(self.ended)
        arguments = [value.replace("{top}", self.top) if isinstance(value, str) and self.top else value
                     for value in arguments]
        process.stdin.write(json.dumps([name, *arguments]) + "\n")
        if not select.select([process.stdout], [], [], ANSWER_S)[0]:
            process.kill()
            self.ended = f"the process on {self.base} did not come back from {name}{tuple(arguments)}"
            raise Difference(self.ended)
        line = process.stdout.readline()
        if not line:
            self.ended = f"the process on {self.base} died at {name}{tuple(arguments)}: {process.wait()}"
            raise Difference(self.ended)
        return json.loads(line)

    def result(self, actor, name, *arguments):
        """As ``ask``, with what differs from one file system to another made equal."""
        kind, value = self.ask(actor, name, *arguments)
        if kind == "error":
            return value
        if name == "getcwd" or name == "readlink":
            return value.replace(self.top, "{top}")
        if name == "list":
            return [[entry, self._known(ino), type_] for entry, ino, type_ in value]
        if isinstance(value, dict):
            for time in ("atime", "mtime", "ctime"):
                value[time] = value[time] if value[time] < ANCIENT_NS else "now"
            value["ino"] = self._known(value["ino"])
        return value

    def _known(self, ino):
        return self.inodes.setdefault(ino, len(self.inodes))

    def tree(self):
        """Everything below the top, as the first actor sees it."""
        found, directories = {}, ["{top}"]
        self.ask(0, "become", 0, [])
        while directories:
            directory = directories.pop()
            listing = self.result(0, "list", directory)
            found[directory] = self.result(0, "lstat", directory)
            if not isinstance(listing, list):
                found[directory, "list"] = listing
                continue
            for name, _, kind in listing:
                path = f"{directory}/{name}"
                found[path] = self.result(0, "lstat", path)
                if kind == "d":
                    directories.append(path)
                elif kind == "l":
                    found[path, "target"] = self.result(0, "readlink", path)
                elif found[path]["mode"].startswith("0o10"):
                    self.ask(0, "open", 99, path, os.O_RDONLY | os.O_NOATIME, 0)
                    found[path, "bytes"] = self.result(0, "read", 99, 1 << 20)
                    self.ask(0, "close", 99)
        return found

    def close(self):
        for process in self.actors:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            try:
                process.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Pair:
    """The same processes on a local directory and on the mount."""

    def __init__(self, local, mount, environment, users=(0, 0)):
        # Paths of the same length, for links to them have a size.
        mount = mount + "-" * (len(local) - len(mount))
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MADFS_", "LD_PRELOAD"))}
        self._mount, self._environment = mount, {**plain, **environment}
        subprocess.run(["mkdir", mount], env=self._environment, check=True)
        os.mkdir(local)
        self.sides = [Side(local, plain, users), Side(mount, self._environment, users)]
        self.users = users
        self._numbers = itertools.count()

    def compare(self, steps):
        """Run ``steps``, tuples (actor, call, argument...), on both sides.  Raises Difference with a script of what was
        done when they do not agree."""
        number = next(self._numbers)
        here, there = self.sides
        script = []
        for side in self.sides:
            side.begin(number)
        try:
            for actor, name, *arguments in steps:
                local, ours = (side.result(actor % len(self.users), name, *arguments) for side in self.sides)
                script.append(f"process {actor % len(self.users)}: {name}{tuple(arguments)!r} -> {local!r}")
                if local != ours:
                    self._differ(script, f"on the mount: {ours!r}")
            trees = [side.tree() for side in self.sides]
            for path in sorted({*trees[0], *trees[1]}, key=str):
                if trees[0].get(path) != trees[1].get(path):
                    script.append(f"at the end: {path} is {trees[0].get(path)}")
                    self._differ(script, f"on the mount: {trees[1].get(path)}")
        finally:
            with contextlib.suppress(Difference, BrokenPipeError):
                for side in self.sides:
                    for actor in range(len(self.users)):
                        side.ask(actor, "begin", side.base, 0)
            shutil.rmtree(here.top, ignore_errors=True)
            subprocess.run(["rm", "-rf", there.top], env=self._environment, check=False)

    def _differ(self, script, last):
        raise Difference("\n".join(["the mount and a local directory differ:", *script, last]))

    def close(self):
        for side in self.sides:
            side.close()
        subprocess.run(["rm", "-rf", self._mount], env=self._environment, check=False)
