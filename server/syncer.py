# SPDX-License-Identifier: Apache-2.0
"""The background sync thread: one round of fsync serves everybody who waited when it began.

RocksDB would hold the interpreter while it syncs its log; os.fsync on the log's descriptor does not, so the event loop
goes on meanwhile.
"""
import ctypes
import os
import threading


class Syncer:
    """Runs rounds; ``kv`` and ``chunks`` say what to sync.  ``post(function, *arguments)`` runs something on the loop.

    ``request`` is called on the loop; ``done(error)`` (error: OSError or None) runs there too, after a round that began
    after the request.
    """

    def __init__(self, kv, chunks, post):
        self._kv, self._chunks, self._post = kv, chunks, post
        self._waiting = []
        self._wake = threading.Condition()
        self._stopped = False
        self.rounds = 0
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def request(self, ino, done):
        """Call ``done`` when all that is acknowledged of ``ino``, and all metadata, is on disk."""
        plan = self._chunks.sync_plan(ino)
        with self._wake:
            self._waiting.append((plan, done))
            self._wake.notify()

    def stop(self):
        """Finish the rounds that were asked for and end the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def _run(self):
        while True:
            with self._wake:
                while not self._waiting and not self._stopped:
                    self._wake.wait()
                waiting, self._waiting = self._waiting, []
            if not waiting:
                return
            error = self._round([plan for plan, _ in waiting])
            self.rounds += 1
            self._post(self._finish, waiting, error)

    def _round(self, plans):
        """Data before the metadata that refers to it."""
        try:
            if any(everything for _, _, everything in plans):
                syncfs(self._chunks.fileno())
            for pieces, _, _ in plans:
                for piece in pieces:
                    os.fsync(piece.fd)
            self._chunks.sync_names(set().union(*(directories for _, directories, _ in plans)))
            for fd in self._kv.sync_fds():
                os.fsync(fd)
        except OSError as error:
            return error
        return None

    def _finish(self, waiting, error):
        for plan, done in waiting:
            self._chunks.sync_done(plan, failed=error is not None)
            done(error)


def syncfs(fd):
    """Write everything of the file system that ``fd`` lies on."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")
