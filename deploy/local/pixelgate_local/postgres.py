"""One Postgres server for one machine: made, started, watched and stopped by this process, reached by a socket.

The server is a direct child, listens on no network, and ends with the thread that started it. Its data folder belongs
to one major version and to one launcher at a time.
"""

from __future__ import annotations

import fcntl
import locale
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pixelgate_local import processes
from pixelgate_local.binaries import Binaries, find_binaries
from pixelgate_local.errors import LocalError
from pixelgate_local.run_as import RunAs, choose_run_as, give_to, reachable_binaries

USER = "pixelgate"
DATABASE = "pixelgate"
MAX_SOCKET_PATH_BYTES = 107
_SOCKET_NAME = ".s.PGSQL.5432"
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
        self.log_path = self.data_dir / "logs" / "postgres.log"
        self._fsync = fsync
        self._binaries = binaries
        self._run_as = run_as
        self._start_timeout_s = start_timeout_s
        self._cluster: Path | None = None
        self._socket_dir: Path | None = None
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The libpq connection string of Pixelgate's database, known from `prepare()` on."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        """Return the libpq connection string of `database` on this server."""
        assert self._socket_dir is not None, "prepare() gives the server its socket"
        return make_conninfo(host=str(self._socket_dir), user=USER, dbname=database)

    @property
    def pid(self) -> int | None:
        """The server's process number while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """The code with which the server ended (negative: the signal), None while it runs or before it started."""
        return self._process.poll() if self._process is not None else None

    @property
    def version(self) -> str:
        """The version of the server's programs, known from `prepare()` on."""
        assert self._binaries is not None
        return self._binaries.version

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
        """Take the folder for this process, choose the programs, make the cluster when missing, clear stale leftovers."""
        for folder in (self.data_dir, self.data_dir / "run", self.data_dir / "logs"):
            folder.mkdir(mode=0o700 if folder.name == "run" else 0o755, parents=True, exist_ok=True)
        self._take_lock()
        try:
            cluster = self._cluster = self._choose()
            if self._socket_dir is None:
                self._socket_dir = self._make_socket_dir()
            if not cluster.exists():
                self._make_cluster(cluster)
            owner = cluster.stat().st_uid
            if self._run_as == RunAs() and owner != os.geteuid():
                raise LocalError(
                    f"{cluster} belongs to user {owner}: start Pixelgate as that user, or set another PIXELGATE_DATA_DIR."
                )
            give_to(cluster, self._run_as or RunAs())
            cluster.chmod(0o700)
            self._clear_leftovers(cluster)
        except BaseException:
            self._release()
            raise

    def spawn(self) -> None:
        """Start the server process, without waiting for it."""
        assert self._binaries is not None
        assert self._run_as is not None
        assert self._cluster is not None
        command = [
            str(self._binaries.folder / "postgres"),
            "-D",
            str(self._cluster),
            "-h",
            "",
            "-k",
            str(self._socket_dir),
        ]
        options = {"unix_socket_permissions": "0700", "logging_collector": "off", "jit": "off"}
        if not self._fsync:
            options |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self.log_path.open("ab") as log:
            self._process = processes.spawn(
                command,
                death_signal=signal.SIGINT,  # a fast, clean shutdown
                output=log,
                env=_environment(),
                inner_uid=self._run_as.inner_uid,
                user=self._run_as.user,
            )

    def wait_ready(self) -> None:
        """Wait until the server takes connections, and see that Pixelgate's database is there.

        Raises:
            LocalError: it ended, or did not answer in time.
        """
        assert self._process is not None
        assert self._cluster is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not self._says_ready():
            if (code := self._process.poll()) is not None:
                raise LocalError(f"Postgres did not start ({_ending(code)}): {self._last_complaint()}")
            if time.monotonic() > deadline:
                raise LocalError(f"Postgres was not ready within {self._start_timeout_s:g} s; see {self.log_path}")
            time.sleep(_POLL_S)
        with psycopg.connect(self.dsn_of("postgres"), autocommit=True, connect_timeout=30) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if known is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def stop(self, grace_s: float = 30.0) -> None:
        """Stop the server (fast shutdown, then harder ones after `grace_s` each) and give the folder back."""
        process = self._process
        if process is not None:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                if process.poll() is not None:
                    break
                process.send_signal(number)
                try:
                    process.wait(grace_s)
                except subprocess.TimeoutExpired:
                    continue
        self._release()

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); the folder stays this process's own."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        path = self.data_dir / "run" / "postgres.lock"
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise LocalError(
                f"{self.data_dir} is in use by another Pixelgate (process {holder}): stop it, or set another "
                "PIXELGATE_DATA_DIR."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._lock = file

    def _release(self) -> None:
        if self._socket_dir is not None and not self._socket_dir.is_relative_to(self.data_dir):
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._socket_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _choose(self) -> Path:
        """Return the cluster's folder, and settle which programs run it, and as whom."""
        existing = sorted(path.parent for path in self.data_dir.glob("pg*/PG_VERSION"))
        if len(existing) > 1:
            names = " and ".join(path.name for path in existing)
            raise LocalError(
                f"{self.data_dir} holds {names}, and only one can be Pixelgate's: move the other one away."
            )
        major = _version_of(existing[0]) if existing else None
        if self._binaries is None:
            try:
                self._binaries = find_binaries(major)
            except LocalError as error:
                if not existing:
                    raise
                raise LocalError(f"{existing[0]} was made by Postgres {major}. {error}") from error
        if major not in (None, self._binaries.major):
            raise LocalError(
                f"{existing[0]} was made by Postgres {major}; the one in {self._binaries.folder} is "
                f"{self._binaries.version} and cannot read it."
            )
        if self._run_as is None:
            self._run_as = choose_run_as(self._binaries)
        self._binaries = reachable_binaries(self._binaries, self._run_as)
        return existing[0] if existing else self.data_dir / f"pg{self._binaries.major}"

    def _make_socket_dir(self) -> Path:
        assert self._run_as is not None
        folder = self.data_dir / "run"
        if len(os.fsencode(folder / _SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES:
            runtime = os.environ.get("XDG_RUNTIME_DIR", "")
            short = runtime if runtime and len(runtime) < 60 and os.access(runtime, os.W_OK) else "/tmp"
            folder = Path(tempfile.mkdtemp(prefix="pixelgate-", dir=short))
        folder.chmod(0o700)
        give_to(folder, self._run_as)
        return folder

    def _make_cluster(self, cluster: Path) -> None:
        """Run initdb beside the final name and rename: a start that was cut off leaves nothing that looks whole."""
        assert self._binaries is not None
        assert self._run_as is not None
        unfinished = cluster.with_name(f"{cluster.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        give_to(unfinished, self._run_as)
        # Full text lower-cases by the libc locale: plain C would leave Ü as it is.
        command = [
            str(self._binaries.folder / "initdb"),
            "-D",
            str(unfinished),
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        command += ["--data-checksums", f"--locale={_utf8_locale()}", "--no-instructions"]
        if self._binaries.major >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self._fsync:
            command.append("--no-sync")
        with self.log_path.open("ab") as log:
            process = processes.spawn(
                command,
                death_signal=signal.SIGKILL,
                output=log,
                env=_environment(),
                inner_uid=self._run_as.inner_uid,
                user=self._run_as.user,
            )
            try:
                code = process.wait(self._start_timeout_s * 5)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise LocalError(f"initdb could not make {cluster} ({_ending(code)}): {self._last_complaint()}")
        unfinished.rename(cluster)

    def _clear_leftovers(self, cluster: Path) -> None:
        """Wait for what a killed launcher left running on `cluster`, and remove a pid file that tells of nobody.

        Postgres itself takes any live process with the number in its pid file for a server, and a zombie too. Only then
        is the file removed, and only when nothing of a former server still works on the folder: otherwise it stays,
        for by it Postgres also finds shared memory that is still in use.
        """
        deadline = time.monotonic() + self._start_timeout_s
        while (left := _servers_on(cluster)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if left:
            raise LocalError(f"Another Postgres (process {min(left)}) already runs on {cluster}: stop it first.")
        pid_file = cluster / "postmaster.pid"
        try:
            number = int(pid_file.read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return
        except ValueError:  # cut short by a crash; Postgres would refuse it
            number = 0
        if number == 0 or processes.exists(number):
            pid_file.unlink()

    def _says_ready(self) -> bool:
        assert self._process is not None
        assert self._cluster is not None
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def _last_complaint(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-40:]
        wanted = [line for line in lines if "FATAL" in line or "PANIC" in line or "error:" in line or "cannot" in line]
        return (wanted or lines or ["it left no message"])[-1].strip()


def _version_of(cluster: Path) -> int:
    text = (cluster / "PG_VERSION").read_text().strip()
    if not text.isdigit():
        raise LocalError(f"{cluster}/PG_VERSION says {text!r}, which is no version of Postgres.")
    return int(text)


def _servers_on(cluster: Path) -> list[int]:
    """Return the live Postgres processes (server or what it left behind) that work on `cluster`."""
    return [
        pid
        for pid in processes.all_pids()
        if processes.program_of(pid) == "postgres"
        and (processes.works_in(pid, cluster) or str(cluster) in processes.arguments_of(pid))
        and processes.is_alive(pid)
    ]


def _environment() -> dict[str, str]:
    """Return this process's environment without libpq's and Postgres's variables, which would override ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _utf8_locale() -> str:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        return "C"
    else:
        return "C.UTF-8"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"
