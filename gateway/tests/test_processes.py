"""The two processes as they are started: they come up alone, say what is missing, and stop at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from pixelgate_common.contracts.storage import STAGES

SERVICES = {"storage", "embed", "caption", "detect", "color"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(module: str, port_variable: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port, nobody = free_port(), free_port()
    env = {
        **os.environ,
        port_variable: str(port),
        **{f"PIXELGATE_{name.upper()}_URL": f"http://127.0.0.1:{nobody}" for name in SERVICES},
    }
    process = subprocess.Popen([sys.executable, "-m", module], env=env, stderr=subprocess.PIPE)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/healthz").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < deadline, "it did not come up"
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def not_ready(url: str) -> set[str]:
    answer = httpx.get(f"{url}/readyz", timeout=30)
    parts = {name for name, part in answer.json()["parts"].items() if not part["ready"]}
    assert (answer.status_code == 503) == bool(parts)
    return parts


@pytest.mark.parametrize(
    ("module", "port_variable", "missing"),
    [
        pytest.param(
            "gateway.main", "PIXELGATE_PORT", {"storage", "embed", "caption", "detect", "color"}, id="gateway"
        ),
        pytest.param("gateway.pipeline", "PIXELGATE_PIPELINE_PORT", set(STAGES), id="pipeline"),
    ],
)
def test_it_comes_up_alone_says_what_is_missing_and_stops(module: str, port_variable: str, missing: set[str]) -> None:
    with running(module, port_variable) as (process, url):
        deadline = time.monotonic() + 30
        while (unready := not_ready(url)) != missing and time.monotonic() < deadline:
            time.sleep(0.05)  # the pipeline's stages find out one after the other, when they first ask
        assert unready == missing
        assert "pixelgate_requests_total" in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)
        assert b"Traceback" not in printed
        assert printed.count(b"stage_waits") <= len(STAGES)
