"""A whole Pixelgate as `make run` starts it, on free ports and in a folder of its own, for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from pixelgate_common.middleware import SERVICE_TOKEN_HEADER

CORE = {
    "gateway": "gateway.main",
    "pipeline": "gateway.pipeline",
    "embed": "embed_service.main",
    "storage": "storage_service.main",
}
"""The processes without which nothing is stored or found, by the module that each runs."""
ADDING = {
    "caption": "caption_service.main",
    "detect": "detect_service.main",
    "color": "color_service.main",
}
"""The processes that add to what is known of stored pictures."""
SERVICES = {**CORE, **ADDING}
"""All processes that `make run` starts; `postgres` is found by its program."""
ALL_STAGES = "clip,resnet,palette,objects,caption,cutout"
ON_REQUEST = "cutout"
"""The stage that works on nothing it is not asked for, unless a setting says otherwise."""
EVERYTHING = {"PIXELGATE_STORAGE_STAGES": ALL_STAGES}
"""The environment of a system that analyses pictures in every way, cutouts included."""
VECTORS_ONLY = {"PIXELGATE_STORAGE_STAGES": "clip,resnet"}
"""The environment of a system that pictures go through fast, for tests of what does not depend on the other stages."""
_CONVERTED = Path.home() / ".cache" / "pixelgate" / "converted-models"


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class System:
    """The launcher and everything it started."""

    def __init__(self, data_dir: Path, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data_dir.parent / f"{data_dir.name}.log"
        self._env = {
            **os.environ,
            "PIXELGATE_DATA_DIR": str(data_dir),
            "PIXELGATE_PORT": str(self.port),
            "PIXELGATE_MODELS": "starter",
            "PIXELGATE_PIPELINE_LEASE_S": "10",
            # Converted models are kept by fingerprint outside the clone: only the first start of all has to make them.
            **{f"PIXELGATE_{service}_CACHE_DIR": str(_CONVERTED) for service in ("EMBED", "CAPTION", "DETECT")},
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 300) -> Self:
        """Start everything, and wait until it is ready."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pixelgate_local"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.wait_ready(timeout_s)
        return self

    def wait_all_ready(self, timeout_s: float = 300) -> Self:
        """Wait until `/readyz` calls every part ready, also those that only add to what is known of pictures."""
        deadline = time.monotonic() + timeout_s
        unready: dict[str, Any] = {"everything": None}
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                parts = httpx.get(f"{self.url}/readyz", timeout=5).json()["parts"]
                unready = {name: part["detail"] for name, part in parts.items() if not part["ready"]}
                if not unready:
                    return self
            time.sleep(0.1)
        raise RuntimeError(f"not ready within {timeout_s:g} s: {unready}\n{self.console()}")

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Wait until `/readyz` says yes; RuntimeError with the launcher's own words when it does not come to that."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"Pixelgate ended:\n{self.console()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.1)
        raise RuntimeError(f"Pixelgate was not ready within {timeout_s:g} s:\n{self.console()}")

    def stop(self) -> None:
        """Stop everything as Ctrl-C does, and wait until no process is left."""
        if self._process is None or self._process.poll() is not None:
            self._process = None  # what it ended with has been said by `wait_ready`
            return
        family = self.family()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._process = None
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, f"left behind: {alive}"

    def family(self) -> list[psutil.Process]:
        """Return every process that descends from the launcher."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def process(self, service: str) -> psutil.Process:
        """Return the main process of `service` (one of SERVICES, or `postgres`)."""
        for process in self.family():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if service == "postgres":
                if command and Path(command[0]).name == "postgres" and "-D" in command:
                    return process
            elif SERVICES[service] in command:
                return process
        raise LookupError(f"no process of {service} runs:\n{self.console()}")

    def kill(self, service: str) -> int:
        """Kill the main process of `service` with SIGKILL, and return its process id."""
        process = self.process(service)
        process.kill()
        return process.pid

    def memory_mb(self) -> dict[str, float]:
        """Return the resident memory of each service's main process, in MiB."""
        return {service: self.process(service).memory_info().rss / 2**20 for service in SERVICES}

    def family_memory_mb(self) -> float:
        """Return the memory of the launcher's whole family, child processes and Postgres included, in MiB (PSS)."""
        total = 0
        for process in self.family():
            with suppress(psutil.Error):  # ended meanwhile
                total += process.memory_full_info().pss
        return total / 2**20

    def console(self) -> str:
        """Return the last lines that the launcher printed."""
        return self.output.read_text(errors="replace")[-4000:] if self.output.exists() else ""

    def inner(self, service: str) -> tuple[str, dict[str, str]]:
        """Return the inner address of a service, and the headers that it wants to see.

        The launcher makes a token for each start; who may read the process's environment may read it there.
        """
        variables = self.process(service).environ()
        port = variables[f"PIXELGATE_{service.upper()}_PORT"]
        return f"http://127.0.0.1:{port}", {SERVICE_TOKEN_HEADER: variables["PIXELGATE_SERVICE_TOKEN"]}

    def client(self, timeout_s: float = 120) -> httpx.Client:
        """Return an HTTP client for the public API."""
        return httpx.Client(base_url=self.url, timeout=timeout_s)


@contextmanager
def running(data_dir: Path, env: dict[str, str] | None = None) -> Iterator[System]:
    """Run a whole system in `data_dir` for the length of the block."""
    system = System(data_dir, env)
    try:
        yield system.start()
    finally:
        system.stop()


def upload(client: httpx.Client, files: Sequence[tuple[str, bytes]], **fields: Any) -> list[dict[str, Any]]:
    """Upload pictures, (name, bytes) pairs, in one request, and return the outcomes."""
    answer = client.post("/v1/images", files=[("files", file) for file in files], data=fields)
    assert answer.status_code in (200, 201, 422), answer.text
    outcomes: list[dict[str, Any]] = answer.json()["outcomes"]
    return outcomes


def stages(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """Return the progress of each stage by its name."""
    return {stage["stage"]: stage for stage in client.get("/v1/stages").raise_for_status().json()["stages"]}


def wait_analysed(client: httpx.Client, timeout_s: float = 280) -> dict[str, dict[str, Any]]:
    """Wait until no stage has anything left to do, and return the stages."""
    deadline = time.monotonic() + timeout_s
    now: dict[str, dict[str, Any]] = {}
    while time.monotonic() < deadline:
        try:
            now = stages(client)
        except httpx.HTTPError:
            now = {}
        if now and all(stage["pending"] + stage["running"] == 0 for stage in now.values()):
            return now
        time.sleep(0.2)
    raise AssertionError(f"still at work after {timeout_s:g} s: {now}")
