"""The launcher with small fake services: order, readiness, restarts, clear lines, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pixelgate_local import processes
from pixelgate_local.data_folder import read_run_file

HERE = Path(__file__).parent
NAMES = ("gateway", "pipeline", "embed", "caption", "detect", "color", "storage")
DRIVER = """
import sys
from pixelgate_local.launcher import main
from pixelgate_local.services import SERVICES, Service
from dataclasses import replace
sys.exit(main([replace(service, module=f"fake_{service.name}") for service in SERVICES]))
"""


def until(condition: Callable[[], object], say: Callable[[], str] = str, timeout_s: float = 120) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it never came to that:\n{say()}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Run:
    """One launcher with fake services, as a process."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.data_dir = folder, folder / "data"
        self.port = free_port()
        self.output = folder / "console"
        for name in NAMES:
            (folder / f"fake_{name}.py").write_text(f"from fake_service import serve\nserve({name!r})\n")
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(HERE)]),
            "FAKE_DIR": str(folder),
            "PIXELGATE_DATA_DIR": str(self.data_dir),
            "PIXELGATE_PORT": str(self.port),
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",  # no Postgres of our own, unless a test wants it
            "PIXELGATE_MIN_FREE_MB": "1",
            "PIXELGATE_GRACE_S": "3",
            **env,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def tell(self, name: str, what: str, text: str = "") -> Path:
        path = self.folder / f"{name}.{what}"
        path.write_text(text)
        return path

    def start(self) -> Run:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def start_ready(self) -> Run:
        self.start()
        self.until_said("Pixelgate is ready")
        for name in NAMES:
            self.until_said(f"{name} is ready (")
        return self

    def until_said(self, text: str, times: int = 1) -> None:
        until(lambda: self.said().count(text) >= times or self.ended(), self.said)
        assert self.said().count(text) >= times, self.said()

    def said(self) -> str:
        return self.output.read_text()

    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def exit_code(self) -> int:
        assert self.process is not None
        return self.process.wait(120)

    def family(self) -> dict[int, str]:
        """Return each live process that belongs to this run, whoever its parent is by now."""
        mark = f"FAKE_DIR={self.folder}".encode()
        found = {}
        for pid in processes.all_pids():
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if mark in environ.split(b"\0") and processes.is_alive(pid):
                found[pid] = " ".join(processes.arguments_of(pid))
        return found

    def pid_of(self, name: str) -> int:
        for pid, command in self.family().items():
            if f"-m fake_{name}" in command:
                return pid
        raise LookupError(name)

    def events(self) -> list[str]:
        return (self.folder / "events").read_text().split("\n")[:-1]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.exit_code()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    if run.process is not None and run.process.poll() is None:
        run.stop()
    for pid in run.family():
        os.kill(pid, signal.SIGKILL)


def test_it_starts_says_the_address_and_stops_in_order_leaving_nothing(run: Run) -> None:
    run.start_ready()
    assert f"http://127.0.0.1:{run.port}" in run.said()
    assert str(run.data_dir) in run.said()
    told = read_run_file(run.data_dir)
    assert told is not None
    assert (told.address, told.pid) == (f"http://127.0.0.1:{run.port}", run.process and run.process.pid)
    assert run.stop() == 0
    stops = [event.removeprefix("stop ") for event in run.events() if event.startswith("stop")]
    assert stops[:2] == ["gateway", "pipeline"]
    assert sorted(stops[2:]) == sorted(NAMES[2:])
    assert run.family() == {}
    assert read_run_file(run.data_dir) is None


def test_postgres_is_there_before_storage_and_after_it(run: Run) -> None:
    del run.env["DATABASE_URL"]
    run.start_ready()
    said = run.said()
    assert said.index("postgres is ready") < said.index("storage is ready")
    environ = json.loads((run.folder / "storage.env").read_text())
    with psycopg.connect(environ["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert run.stop(signal.SIGTERM) == 0
    assert run.family() == {}
    assert (run.data_dir / "logs" / "postgres.log").read_text().rstrip().endswith("database system is shut down")


def test_only_the_owner_of_the_stores_sees_how_to_open_them(run: Run) -> None:
    run.env |= {"S3_SECRET_KEY": "key", "QDRANT_API_KEY": "key", "S3_ENDPOINT": "127.0.0.1:1"}
    run.start_ready()
    environs = {name: json.loads((run.folder / f"{name}.env").read_text()) for name in NAMES}
    assert len({environ["PIXELGATE_SERVICE_TOKEN"] for environ in environs.values()}) == 1
    assert len(environs["gateway"]["PIXELGATE_SERVICE_TOKEN"]) >= 32
    for name, environ in environs.items():
        seen = {"DATABASE_URL", "S3_SECRET_KEY", "QDRANT_API_KEY", "S3_ENDPOINT"} & set(environ)
        assert len(seen) == (4 if name == "storage" else 0), name
        assert environ["HF_HUB_OFFLINE"] == "1"
        assert environ["PIXELGATE_DATA_DIR"] == str(run.data_dir)
    ports = {name: environs[name][f"PIXELGATE_{name.upper()}_PORT"] for name in NAMES if name != "gateway"}
    for name in ("embed", "storage"):
        assert environs["gateway"][f"PIXELGATE_{name.upper()}_URL"] == f"http://127.0.0.1:{ports[name]}"


def test_it_waits_until_every_part_says_that_it_is_ready(run: Run) -> None:
    unready = run.tell("embed", "unready")
    run.start()
    for name in ("gateway", "pipeline", "storage"):
        run.until_said(f"{name} is ready")
    until(lambda: "waiting for embed (model: loading)" in run.said(), run.said)
    assert "Pixelgate is ready" not in run.said()
    unready.unlink()
    run.until_said("Pixelgate is ready")


def test_it_does_not_wait_for_what_only_adds_to_pictures(run: Run) -> None:
    unready = run.tell("caption", "unready")
    run.start()
    run.until_said("Pixelgate is ready")
    assert "caption is ready" not in run.said()
    unready.unlink()
    run.until_said("caption is ready")


def test_what_only_adds_to_pictures_may_fail_to_start_for_ever(run: Run) -> None:
    run.env["PIXELGATE_START_ATTEMPTS"] = "1"
    run.tell("caption", "exit", "ValueError: the weights are gone")
    run.start()
    run.until_said("Pixelgate is ready")
    run.until_said("caption ended (exit code 3: ValueError: the weights are gone); starting it again", times=2)
    assert not run.ended()


def test_slow_work_stands_back(run: Run) -> None:
    run.start_ready()
    niceness = {name: os.getpriority(os.PRIO_PROCESS, run.pid_of(name)) for name in NAMES}
    assert niceness["gateway"] == niceness["embed"] < niceness["detect"] < niceness["caption"]


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_service_is_started_again_and_said_so(run: Run, name: str) -> None:
    run.start_ready()
    killed = run.pid_of(name)
    os.kill(killed, signal.SIGKILL)
    run.until_said(f"{name} is ready again")
    assert f"{name} ended (killed by SIGKILL); starting it again in 0.2 s" in run.said()
    assert run.pid_of(name) != killed


def test_killed_postgres_is_started_again_at_the_same_address(run: Run) -> None:
    del run.env["DATABASE_URL"]
    run.start_ready()
    (server,) = (pid for pid, command in run.family().items() if "postgres -D" in command)
    os.kill(server, signal.SIGKILL)
    run.until_said("postgres is ready again")
    assert "postgres ended (killed by SIGKILL)" in run.said()
    environ = json.loads((run.folder / "storage.env").read_text())
    with psycopg.connect(environ["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_restarts_come_slower_and_slower(run: Run) -> None:
    run.start_ready()
    exits = run.tell("embed", "exit", "ValueError: the weights are gone")
    os.kill(run.pid_of("embed"), signal.SIGKILL)
    line = "embed ended (exit code 3: ValueError: the weights are gone); starting it again in {} s"
    for wait in ("0.4", "0.8", "1.6"):
        run.until_said(line.format(wait))
    exits.unlink()
    run.until_said("embed is ready again")
    assert not run.ended()


def test_what_never_starts_ends_the_start_with_its_own_last_words(run: Run) -> None:
    run.tell("storage", "exit", "some words\nRuntimeError: the schema is newer than this program\nmore words")
    run.env["PIXELGATE_START_ATTEMPTS"] = "2"
    run.start()
    assert run.exit_code() == 1
    last = run.said().splitlines()[-1]
    assert last.startswith("storage does not start (exit code 3: RuntimeError: the schema is newer than this program)")
    assert run.family() == {}


def test_a_service_that_lives_but_does_not_answer_is_started_again(run: Run) -> None:
    run.env |= {"PIXELGATE_PROBE_S": "0.2", "PIXELGATE_SILENCE_S": "1"}
    run.start_ready()
    silent = run.pid_of("embed")
    mute = run.tell("embed", "mute")
    run.until_said("embed ended (no answer for 1 s)")
    mute.unlink()
    run.until_said("embed is ready again")
    assert not processes.is_alive(silent)


def test_a_stubborn_service_and_its_child_are_killed_after_the_grace_time(run: Run) -> None:
    run.tell("embed", "stubborn")
    child = run.tell("embed", "child")
    run.start_ready()
    assert processes.is_alive(int(child.read_text()))
    assert run.stop() == 0
    assert "embed did not end within 3 s: killed" in run.said()
    assert run.family() == {}


def test_a_second_signal_shortens_the_grace_time(run: Run) -> None:
    run.env["PIXELGATE_GRACE_S"] = "500"
    run.tell("embed", "stubborn")
    run.start_ready()
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    run.until_said("SIGINT: stopping …")
    assert run.stop() == 0
    assert run.family() == {}


def test_a_signal_during_the_start_stops_it_too(run: Run) -> None:
    del run.env["DATABASE_URL"]
    run.tell("embed", "unready")
    run.start()
    run.until_said("gateway is ready")
    assert run.stop() == 0
    assert run.family() == {}


def test_killing_the_launcher_leaves_no_process(run: Run) -> None:
    del run.env["DATABASE_URL"]
    run.tell("embed", "stubborn")
    run.tell("pipeline", "child")
    run.start_ready()
    assert run.process is not None
    run.process.kill()
    run.process.wait()
    until(lambda: run.family() == {}, lambda: str(run.family()))
    assert "stop gateway" in run.events(), "it was killed although it could have ended by itself"


def test_a_start_right_after_a_kill_waits_for_what_was_left_running(run: Run) -> None:
    del run.env["DATABASE_URL"]
    for name in ("gateway", "storage"):  # they hold the public port and the stores until the guard ends them
        run.tell(name, "stubborn")
    run.start_ready()
    assert run.process is not None
    left = [run.pid_of(name) for name in ("gateway", "storage")]
    run.process.kill()
    run.process.wait()
    run.output.unlink()
    run.start_ready()
    assert "Waiting for what a killed Pixelgate left running" in run.said()
    assert " ended (" not in run.said()
    assert not any(processes.is_alive(pid) for pid in left)


def test_a_second_start_on_the_same_folder_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    run.start_ready()
    (tmp_path / "second").mkdir()
    second = Run(tmp_path / "second", PIXELGATE_DATA_DIR=str(run.data_dir)).start()
    assert second.exit_code() == 1
    (line,) = second.said().splitlines()
    assert line.startswith(f"Pixelgate already runs on {run.data_dir} (http://127.0.0.1:{run.port}, process ")
    assert not run.ended()
    assert read_run_file(run.data_dir) is not None


def test_the_public_port_in_use_is_one_line_that_names_the_setting(run: Run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", run.port))
        other.listen()
        run.start()
        assert run.exit_code() == 1
    assert run.said() == (
        f"Port {run.port} is in use by another program: stop that one, or set PIXELGATE_PORT to a free port.\n"
    )
    assert run.family() == {}


def test_an_inner_port_in_use_gives_way_and_is_said(run: Run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        run.env["PIXELGATE_EMBED_PORT"] = str(taken)
        run.start_ready()
        told = read_run_file(run.data_dir)
        assert told is not None
        assert told.ports["embed"] != taken
        assert f"Port {taken} is in use; embed takes {told.ports['embed']}" in run.said()


def test_two_systems_run_side_by_side(run: Run, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = Run(tmp_path / "second")
    run.start()
    second.start()
    try:
        run.until_said("Pixelgate is ready")
        second.until_said("Pixelgate is ready")
        assert " ended (" not in run.said() + second.said()
    finally:
        second.stop()
    assert second.family() == {}


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"PIXELGATE_MIN_FREE_MB": "999999999"},
            r"Only \d+ MB are free .* wants 999999999 MB: free some space",
        ),
        ({"PIXELGATE_PORT": "eight"}, "PIXELGATE_PORT is not valid: Input should be a valid integer"),
        ({"PIXELGATE_DATA_DIR": "/proc/none"}, "The data folder /proc/none cannot be used .*set PIXELGATE_DATA_DIR"),
        ({"PIXELGATE_HOST": "203.0.113.7"}, "PIXELGATE_HOST '203.0.113.7' is no address of this machine"),
    ],
    ids=["full-disk", "bad-port", "unusable-folder", "foreign-host"],
)
def test_what_is_in_the_way_is_one_line(run: Run, env: dict[str, str], line: str) -> None:
    run.env |= env
    run.start()
    assert run.exit_code() == 1
    (said,) = run.said().splitlines()
    assert re.search(line, said), said


def test_a_disk_that_fills_up_while_running_is_said_once(run: Run) -> None:
    run.env |= {"PIXELGATE_WARN_FREE_MB": "999999999", "PIXELGATE_DISK_CHECK_S": "0.1"}
    run.start_ready()
    run.until_said("MB are free on the disk")
    time.sleep(1)
    assert run.said().count("MB are free on the disk") == 1


def test_logs_begin_anew_at_each_start_and_tmp_is_emptied(run: Run) -> None:
    log = run.data_dir / "logs" / "embed.log"
    log.parent.mkdir(parents=True)
    log.write_text("of the last run\n")
    (run.data_dir / "tmp" / "upload").mkdir(parents=True)
    run.start_ready()
    assert "of the last run" not in log.read_text()
    assert log.with_name("embed.log.1").read_text() == "of the last run\n"
    assert list((run.data_dir / "tmp").iterdir()) == []
