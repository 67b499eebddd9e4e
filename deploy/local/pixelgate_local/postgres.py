"""One Postgres server for one machine: started, watched and stopped by this process, reached by a socket.

The server is a direct child, listens on no network, and ends with the thread that started it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pixelgate_local import processes
from pixelgate_local.binaries import Binaries
from pixelgate_local.cluster import USER, Cluster, take_cluster
from pixelgate_local.errors import LocalError
from pixelgate_local.run_as import RunAs

DATABASE = "pixelgate"
_POLL_S = 0.01


class LocalPostgres:
    """A Postgres whose cluster is `data_dir/pg<major>`; a context manager, and restartable after a crash.

    `start()` is `prepare()`, `spawn()`, `wait_ready()`. Of these only `spawn()` must be called in a thread that lives
    as long as the server is wanted (the main thread): the kernel stops the server when that thread ends.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        fsync: bool = True,
        binaries: Binaries | None = None,
        run_as: RunAs | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        """Use `data_dir` (made when missing). `fsync=False` is for tests: it gives up surviving a power cut.

        `binaries` and `run_as` are found out when not given.
        """
        self.data_dir = data_dir.absolute()
        self._fsync = fsync
        self._binaries = binaries
        self._run_as = run_as
        self._start_timeout_s = start_timeout_s
        self._cluster: Cluster | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def cluster(self) -> Cluster:
        """The folder that the server works on; there from `prepare()` to `stop()`."""
        if self._cluster is None:
            raise LocalError("Postgres has not been prepared.")
        return self._cluster

    @property
    def dsn(self) -> str:
        """The libpq connection string of Pixelgate's database; there from `prepare()` to `stop()`."""
        return self._dsn_of(DATABASE)

    @property
    def pid(self) -> int | None:
        """The server's process number while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """The code with which the server ended (negative: the signal); None while it runs or before it started."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            LocalError: it cannot be; the message says why in one line.
        """
        self.prepare()
        try:
            self.spawn()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def prepare(self) -> None:
        """Take the folder, make the cluster when there is none, and clear what a crash left; repeatable."""
        if self._cluster is None:
            self._cluster = take_cluster(self.data_dir, binaries=self._binaries, run_as=self._run_as, fsync=self._fsync)
        try:
            self._cluster.clear_leftovers(self._start_timeout_s)
        except BaseException:
            self._release()
            raise

    def spawn(self) -> None:
        """Start the server process, without waiting for it."""
        options = {"unix_socket_permissions": "0700", "logging_collector": "off", "jit": "off"}
        if not self._fsync:
            options |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        arguments = ["-D", str(self.cluster.folder), "-h", "", "-k", str(self.cluster.socket_dir)]
        for name, value in options.items():
            arguments += ["-c", f"{name}={value}"]
        # At SIGINT Postgres closes its connections and shuts down cleanly.
        self._process = self.cluster.run("postgres", arguments, signal.SIGINT)

    def wait_ready(self) -> None:
        """Wait until the server takes connections, and see that Pixelgate's database is there.

        Raises:
            LocalError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + self._start_timeout_s
        while not self._says_ready():
            if (code := self.exit_code) is not None:
                raise LocalError(f"Postgres ended ({processes.ending(code)}): {self.cluster.last_complaint()}")
            if time.monotonic() > deadline:
                raise LocalError(
                    f"Postgres was not ready within {self._start_timeout_s:g} s; see {self.cluster.log_path}"
                )
            time.sleep(_POLL_S)
        with psycopg.connect(self._dsn_of("postgres"), autocommit=True, connect_timeout=30) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if known is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def stop(self, grace_s: float = 30.0) -> None:
        """Stop the server (by a fast shutdown, then by harder signals, each after `grace_s`) and release the folder."""
        if self._process is not None:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                self._process.send_signal(number)  # does nothing to a process that has ended
                try:
                    self._process.wait(grace_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._release()

    def kill(self) -> None:
        """End the server as a crash would, by SIGKILL; the folder stays this process's own."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _dsn_of(self, database: str) -> str:
        return make_conninfo(host=str(self.cluster.socket_dir), user=USER, dbname=database)

    def _says_ready(self) -> bool:
        """Read the eighth line of the pid file, as pg_ctl does: no connection is tried before it can succeed."""
        try:
            lines = (self.cluster.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        ours = self._process is not None and len(lines) >= 8 and lines[0] == str(self._process.pid)
        return ours and lines[7].strip() == "ready"

    def _release(self) -> None:
        if self._cluster is not None:
            self._cluster.release()
            self._cluster = None
