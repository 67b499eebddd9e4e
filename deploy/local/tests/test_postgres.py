"""The one-machine Postgres: starts, survives, recovers, and never touches a process that is not its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from pixelgate_local import cluster as cluster_module
from pixelgate_local import processes, run_as
from pixelgate_local.binaries import Binaries, find_binaries, installed_binaries
from pixelgate_local.cluster import servers_on
from pixelgate_local.errors import LocalError
from pixelgate_local.postgres import LocalPostgres

INSTALLED = list(installed_binaries())
PACKAGE = Path(processes.__file__).parent
IS_ROOT = os.geteuid() == 0


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def run(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def until(condition: object, timeout_s: float = 120) -> None:
    """Wait until `condition()` holds."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.parametrize("binaries", INSTALLED, ids=[f"postgres-{b.version}" for b in INSTALLED])
def test_what_was_stored_is_there_after_a_restart(tmp_path: Path, binaries: Binaries) -> None:
    with LocalPostgres(tmp_path, binaries=binaries) as server:
        run(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
        assert run(server.dsn, "SHOW server_encoding") == [("UTF8",)]
        assert run(server.dsn, "SHOW fsync") == [("on",)]
        assert run(server.dsn, "SHOW listen_addresses") == [("",)]
        assert run(server.dsn, "SELECT lower('ÜÄ'), to_tsvector('simple', 'Übung')::text") == [("üä", "'übung':1")]
        folder = server.cluster.folder
    assert (folder, folder.stat().st_mode & 0o777) == (tmp_path / f"pg{binaries.major}", 0o700)
    assert server.exit_code == 0
    assert servers_on(folder) == []
    with LocalPostgres(tmp_path) as server:  # the folder decides which version runs it
        assert server.cluster.binaries.major == binaries.major
        assert run(server.dsn, "SELECT number FROM kept") == [(7,)]


def test_no_acknowledged_commit_is_lost_by_kill_9(tmp_path: Path) -> None:
    acknowledged: list[int] = []

    def write(dsn: str, start: int) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for number in range(start, start + 100_000):
                    connection.execute("INSERT INTO written VALUES (%s)", [number])
                    acknowledged.append(number)
        except psycopg.OperationalError:
            return  # the kill, which is what ends the writing

    with LocalPostgres(tmp_path) as server:
        run(server.dsn, "CREATE TABLE written (number int PRIMARY KEY)")
        for turn in range(3):
            dsn, goal = server.dsn, len(acknowledged) + 100
            writers = [threading.Thread(target=write, args=(dsn, turn * 1_000_000 + w * 100_000)) for w in range(3)]
            for writer in writers:
                writer.start()
            until(lambda goal=goal: len(acknowledged) > goal)
            server.kill()
            for writer in writers:
                writer.join()
            server.start()
            assert server.dsn == dsn, "services keep the address that they were given"
            found = {number for (number,) in run(dsn, "SELECT number FROM written")}
            assert set(acknowledged) <= found
        assert len(acknowledged) > 300


def test_a_pid_file_with_a_strangers_number_is_removed_and_the_stranger_lives(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    with LocalPostgres(tmp_path, fsync=False) as server:
        pid_file = server.cluster.folder / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        server.kill()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.start()
        assert run(server.dsn, "SELECT 1") == [(1,)]
    assert stranger.poll() is None


def test_a_pid_file_with_a_zombies_number_is_removed(tmp_path: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: not processes.is_alive(zombie.pid))
    assert processes.exists(zombie.pid)
    with LocalPostgres(tmp_path, fsync=False) as server:
        pid_file = server.cluster.folder / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        server.kill()
        pid_file.write_text("\n".join([str(zombie.pid), *lines[1:]]) + "\n")
        server.start()
    zombie.wait()


def test_a_server_that_somebody_else_runs_on_the_folder_is_left_alone(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path, fsync=False) as server:
        cluster = server.cluster
        cluster.lock.close()  # as if started by hand, without our lock
        with pytest.raises(LocalError, match=rf"process {server.pid}.*already runs.*stop it first"):
            LocalPostgres(tmp_path, start_timeout_s=0.3).start()
        assert server.pid is not None
        assert run(server.dsn, "SELECT 1") == [(1,)]


def test_a_second_launcher_gets_one_clear_line(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path, fsync=False) as server:
        with pytest.raises(LocalError) as refusal:
            LocalPostgres(tmp_path).start()
        assert str(refusal.value) == (
            f"{tmp_path} is in use by another Pixelgate (process {os.getpid()}): stop it, or set another "
            "PIXELGATE_DATA_DIR."
        )
        assert run(server.dsn, "SELECT 1") == [(1,)]


def test_a_start_that_was_cut_off_during_initdb_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    half = tmp_path / f"pg{find_binaries().major}.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("15\n")
    with LocalPostgres(tmp_path, fsync=False) as server:
        assert run(server.dsn, "SELECT 1") == [(1,)]
    assert not half.exists()


def test_a_folder_of_a_version_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pg14").mkdir()
    (tmp_path / "pg14" / "PG_VERSION").write_text("14\n")
    with pytest.raises(LocalError, match=r"pg14 was made by Postgres 14\. No Postgres 14 .*DATABASE_URL"):
        LocalPostgres(tmp_path).start()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "pg14", "run"]


def test_a_folder_of_another_version_than_the_given_programs_is_refused(tmp_path: Path) -> None:
    major = INSTALLED[0].major
    (tmp_path / f"pg{major + 1}").mkdir()
    (tmp_path / f"pg{major + 1}" / "PG_VERSION").write_text(f"{major + 1}\n")
    with pytest.raises(LocalError, match=f"was made by Postgres {major + 1}; .* cannot read it"):
        LocalPostgres(tmp_path, binaries=INSTALLED[0]).start()


def test_two_clusters_in_one_folder_are_refused(tmp_path: Path) -> None:
    for major in (16, 18):
        (tmp_path / f"pg{major}").mkdir()
        (tmp_path / f"pg{major}" / "PG_VERSION").write_text(f"{major}\n")
    with pytest.raises(LocalError, match="holds pg16 and pg18"):
        LocalPostgres(tmp_path).start()


def test_a_long_data_path_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 25) / "with a space and 'quotes'"
    with LocalPostgres(data_dir, fsync=False) as server:
        socket_dir = server.cluster.socket_dir
        assert not socket_dir.is_relative_to(data_dir)
        assert socket_dir.stat().st_mode & 0o777 == 0o700
        assert len(os.fsencode(socket_dir / ".s.PGSQL.5432")) <= cluster_module.MAX_SOCKET_PATH_BYTES
        assert run(server.dsn, "SELECT 1") == [(1,)]
    assert not socket_dir.exists()


def test_a_path_with_spaces_and_quotes_serves(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path / "it's a \\ folder", fsync=False) as server:
        assert run(server.dsn, "SELECT 1") == [(1,)]


def test_a_failed_start_says_why_in_one_line_and_gives_the_folder_back(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path, fsync=False) as server:
        control = server.cluster.folder / "global" / "pg_control"
    whole = control.read_bytes()
    control.write_bytes(whole[:100])
    with pytest.raises(LocalError, match=r"Postgres ended .*: .*(FATAL|PANIC).*pg_control"):
        LocalPostgres(tmp_path).start()
    control.write_bytes(whole)
    with LocalPostgres(tmp_path, fsync=False):
        pass


LAUNCHER = """
    import sys, time
    from pathlib import Path
    from pixelgate_local.postgres import LocalPostgres

    server = LocalPostgres(Path(sys.argv[1]), fsync=False)
    server.start()
    print(server.pid, flush=True)
    time.sleep(600)
"""


@contextmanager
def launched(data_dir: Path, *before: str, python: str = sys.executable) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a launcher as a process of its own; yield it and its server's process number."""
    command = [*before, python, "-c", textwrap.dedent(LAUNCHER), str(data_dir)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as launcher:
        try:
            assert launcher.stdout is not None
            yield launcher, int(launcher.stdout.readline())
        finally:
            launcher.kill()


def test_the_server_ends_with_its_launcher_and_the_next_start_waits_for_that(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, server_pid):
        (folder,) = tmp_path.glob("pg*")
        assert server_pid in servers_on(folder)
        launcher.send_signal(signal.SIGKILL)
    with LocalPostgres(tmp_path, fsync=False) as server:  # at once: the old server may still be shutting down
        assert run(server.dsn, "SELECT 1") == [(1,)]
        assert not processes.is_alive(server_pid)


def python_for(uid: int) -> str:
    """Return a Python of this version that user `uid` can start: root's own may lie under a closed home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/local/bin/{version}", f"/usr/bin/{version}"):
        try:
            subprocess.run([python, "-c", ""], user=uid, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"LOUD: no {version} that another user than root can start, so non-root starts are not tested here")


@pytest.mark.skipif(not IS_ROOT, reason="only root can start it as somebody else; without root every test here does so")
def test_it_works_as_a_user_who_is_not_root() -> None:
    nobody = pwd.getpwnam("nobody")
    python = python_for(nobody.pw_uid)
    # In a folder of its own: pytest's are closed to others.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pixelgate-test-XXXXXX"], text=True).strip())
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    try:
        data_dir = folder / "data"
        as_nobody = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
        with launched(data_dir, *as_nobody, python=python) as (_, server_pid):
            assert os.stat(f"/proc/{server_pid}").st_uid == nobody.pw_uid
            with pytest.raises(LocalError, match="in use by another Pixelgate"):
                LocalPostgres(data_dir).start()
        until(lambda: not processes.is_alive(server_pid))
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.skipif(not IS_ROOT, reason="Postgres refuses nobody but root")
def test_root_gets_a_server_whose_files_stay_roots(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path, fsync=False) as server:
        if server.cluster.run_as.user is not None:
            pytest.fail("user namespaces are forbidden on this machine: this test needs one that allows them")
        assert server.pid is not None
        assert Path(f"/proc/{server.pid}/uid_map").read_text().split() == [
            str(server.cluster.run_as.inner_uid),
            "0",
            "1",
        ]
        assert {path.stat().st_uid for path in server.cluster.folder.rglob("*")} == {0}


@pytest.mark.skipif(not IS_ROOT, reason="only root can become a system user")
def test_where_namespaces_are_forbidden_a_system_user_runs_a_copy_of_the_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pixelgate-test-XXXXXX"], text=True).strip())
    folder.chmod(0o755)
    monkeypatch.setattr(run_as, "COPIES", folder / "programs")
    monkeypatch.setattr(run_as, "namespaces_allowed", lambda binaries, run_as: False)
    try:
        # Programs that nobody but root can reach, as under root's home.
        closed = folder / "closed"
        closed.mkdir(mode=0o700)
        wheel = next(binaries for binaries in INSTALLED if "pgserver" in str(binaries.folder))
        package = wheel.folder.parents[1]
        for part in (wheel.folder.parent, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, closed / part.relative_to(package.parent), symlinks=True)
        binaries = replace(wheel, folder=closed / wheel.folder.relative_to(package.parent))
        with LocalPostgres(folder / "data", fsync=False, binaries=binaries) as server:
            used = server.cluster
            assert used.run_as.user is not None
            assert used.binaries.folder.is_relative_to(folder / "programs" / f"postgres-{wheel.version}")
            assert os.stat(f"/proc/{server.pid}").st_uid == used.run_as.user[0]
            assert run(server.dsn, "SELECT 1") == [(1,)]
            server.kill()
            server.start()
            assert run(server.dsn, "SELECT 1") == [(1,)]
        unreachable = closed / "data"
        with pytest.raises(LocalError, match=r"cannot reach .*PIXELGATE_DATA_DIR.*DATABASE_URL"):
            LocalPostgres(unreachable, binaries=binaries).start()
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_without_any_postgres_the_line_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pixelgate_local.binaries.installed_binaries", lambda: iter(()))
    with pytest.raises(LocalError, match=r"No Postgres ≥ 15 on this machine .*set DATABASE_URL"):
        LocalPostgres(tmp_path).start()
