"""The folder that one Postgres works on: taken, made when missing, and freed of what a crash left in it."""

from __future__ import annotations

import fcntl
import locale
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pixelgate_local import processes
from pixelgate_local.binaries import Binaries, find_binaries
from pixelgate_local.errors import LocalError
from pixelgate_local.run_as import RunAs, choose_run_as, give_to, reachable_binaries

USER = "pixelgate"
MAX_SOCKET_PATH_BYTES = 107
"""What a socket's address can hold, less the zero at its end."""
_SOCKET_NAME = ".s.PGSQL.5432"
_INITDB_TIMEOUT_S = 300.0
_POLL_S = 0.01


@dataclass(frozen=True)
class Cluster:
    """A cluster of one major version, held by this process until `release()`."""

    folder: Path
    socket_dir: Path
    log_path: Path
    binaries: Binaries
    run_as: RunAs
    lock: IO[str]

    def run(self, program: str, arguments: Sequence[str], death_signal: signal.Signals) -> subprocess.Popen[bytes]:
        """Start one of Postgres's programs as the user it should see, with its output in the log."""
        with self.log_path.open("ab") as log:
            return processes.spawn(
                [str(self.binaries.folder / program), *arguments],
                death_signal=death_signal,
                output=log,
                env=_environment(),
                inner_uid=self.run_as.inner_uid,
                user=self.run_as.user,
            )

    def last_complaint(self) -> str:
        """Return the last line of the log that says what went wrong."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-40:]
        wanted = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:", "cannot"))]
        return (wanted or lines or ["it left no message"])[-1].strip()

    def clear_leftovers(self, timeout_s: float) -> None:
        """Wait for what a killed launcher left running here, and remove a pid file that tells of nobody.

        Postgres itself takes any process with the number in its pid file for a server, even a zombie. Only then is the
        file removed, and only when nothing of a former server still works here: otherwise it stays, for by it Postgres
        also finds shared memory that is still in use.

        Raises:
            LocalError: a server that is not ours runs here.
        """
        deadline = time.monotonic() + timeout_s
        while (left := servers_on(self.folder)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if left:
            raise LocalError(f"Another Postgres (process {min(left)}) already runs on {self.folder}: stop it first.")
        pid_file = self.folder / "postmaster.pid"
        try:
            number = int(pid_file.read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return
        except ValueError:  # cut short by a crash; Postgres would refuse it
            number = 0
        if number == 0 or processes.exists(number):
            pid_file.unlink()

    def release(self) -> None:
        """Give the folder back."""
        if self.socket_dir.parent != self.folder.parent:
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        self.lock.close()


def take_cluster(
    data_dir: Path, *, binaries: Binaries | None = None, run_as: RunAs | None = None, fsync: bool = True
) -> Cluster:
    """Take `data_dir` for this process, choose the programs that fit it, and make the cluster when there is none.

    Raises:
        LocalError: another launcher holds it, no fitting Postgres is there, or the cluster cannot be made or used.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
    (data_dir / "logs").mkdir(exist_ok=True)
    lock = _lock(data_dir)
    try:
        folder, binaries = _choose(data_dir, binaries)
        run_as = run_as or choose_run_as(binaries)
        binaries = reachable_binaries(binaries, run_as)
        socket_dir = _make_socket_dir(data_dir, run_as)
        cluster = Cluster(folder, socket_dir, data_dir / "logs" / "postgres.log", binaries, run_as, lock)
        if not folder.exists():
            _make(cluster, fsync)
        owner = folder.stat().st_uid
        if run_as == RunAs() and owner != os.geteuid():
            raise LocalError(
                f"{folder} belongs to user {owner}: start Pixelgate as that user, or move the folder away."
            )
        give_to(folder, run_as)
        folder.chmod(0o700)
        return cluster
    except BaseException:
        lock.close()
        raise


def servers_on(folder: Path) -> list[int]:
    """Return the live Postgres processes (a server, or what it left behind) that work on the cluster `folder`."""
    return [
        pid
        for pid in processes.all_pids()
        if processes.program_of(pid) == "postgres"
        and (processes.works_in(pid, folder) or str(folder) in processes.arguments_of(pid))
        and processes.is_alive(pid)
    ]


def _lock(data_dir: Path) -> IO[str]:
    file = (data_dir / "run" / "postgres.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise LocalError(
            f"{data_dir} is in use by another Pixelgate (process {holder}): stop it, or set another PIXELGATE_DATA_DIR."
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _choose(data_dir: Path, binaries: Binaries | None) -> tuple[Path, Binaries]:
    """Return the cluster's folder and the programs for it: an existing folder decides, and is never converted."""
    existing = sorted(path.parent for path in data_dir.glob("pg*/PG_VERSION") if not path.parent.name.endswith(".new"))
    if len(existing) > 1:
        names = " and ".join(path.name for path in existing)
        raise LocalError(f"{data_dir} holds {names}, and only one can be Pixelgate's: move the other one away.")
    if not existing:
        binaries = binaries or find_binaries()
        return data_dir / f"pg{binaries.major}", binaries
    folder = existing[0]
    major = (folder / "PG_VERSION").read_text().strip()
    if not major.isdigit():
        raise LocalError(f"{folder}/PG_VERSION says {major!r}, which is no version of Postgres.")
    if binaries is None:
        try:
            return folder, find_binaries(int(major))
        except LocalError as error:
            raise LocalError(f"{folder} was made by Postgres {major}. {error}") from error
    if binaries.major != int(major):
        raise LocalError(
            f"{folder} was made by Postgres {major}; the one in {binaries.folder} is {binaries.version} and cannot "
            "read it."
        )
    return folder, binaries


def _make_socket_dir(data_dir: Path, run_as: RunAs) -> Path:
    folder = data_dir / "run"
    if len(os.fsencode(folder / _SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES or run_as.user is not None:
        # In a folder of its own for the system user too: it must not own the one that holds the lock.
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = run_as.user is None and 0 < len(runtime) < 60 and os.access(runtime, os.W_OK)
        folder = Path(tempfile.mkdtemp(prefix="pixelgate-", dir=runtime if usable else "/tmp"))
        give_to(folder, run_as)
    folder.chmod(0o700)
    return folder


def _make(cluster: Cluster, fsync: bool) -> None:
    """Run initdb beside the final name and rename: a start that was cut off leaves nothing that looks whole."""
    unfinished = cluster.folder.with_name(f"{cluster.folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    give_to(unfinished, cluster.run_as)
    arguments = ["-D", str(unfinished), "-U", USER, "-A", "trust", "-E", "UTF8", "--data-checksums"]
    arguments += [f"--locale={_utf8_locale()}", "--no-instructions"]
    if cluster.binaries.major >= 17:
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if not fsync:
        arguments.append("--no-sync")
    process = cluster.run("initdb", arguments, signal.SIGKILL)
    try:
        code = process.wait(_INITDB_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        ending = processes.ending(code)
        raise LocalError(f"initdb could not make {cluster.folder} ({ending}): {cluster.last_complaint()}")
    unfinished.rename(cluster.folder)


def _utf8_locale() -> str:
    """Return the locale for lower-casing in full text, which follows the C library: plain C would leave Ü as it is."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        return "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    return "C.UTF-8"


def _environment() -> dict[str, str]:
    """Return this process's environment without libpq's and Postgres's variables, which would override ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}
