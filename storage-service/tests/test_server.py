"""The service as a process of its own: killed in the worst moment, asked over a real socket, stopped in order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pictures_made as made
import psycopg
import pytest

PATIENCE_S = 120.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(what: Callable[[], bool], name: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until, f"waited too long for {name}"
        time.sleep(0.05)


class Process:
    """One run of the service."""

    def __init__(self, dsn: str, data_dir: Path, **settings: str) -> None:
        port = free_port()
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PIXELGATE_", "S3_", "QDRANT_"))
        }
        self.log = data_dir.parent / f"service-{port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "storage_service.main"],
                env={
                    **kept,
                    "DATABASE_URL": dsn,
                    "PIXELGATE_DATA_DIR": str(data_dir),
                    "PIXELGATE_STORAGE_PORT": str(port),
                    "PIXELGATE_STORAGE_DECODERS": "1",
                    **settings,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
        wait_for(self._ready, "the service")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def end(self, how: signal.Signals) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture
def start(postgres_dsn: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start the service on this test's database and folder; every run is ended with the test."""
    runs: list[Process] = []

    def begin(**settings: str) -> Process:
        runs.append(Process(postgres_dsn, tmp_path / "data", **settings))
        return runs[-1]

    try:
        yield begin
    finally:
        for run in runs:
            run.end(signal.SIGKILL)


def objects_in(data_dir: Path) -> list[Path]:
    return [path for path in (data_dir / "objects").rglob("*") if path.is_file() and ".new" not in path.parts]


def arrivals_in(data_dir: Path) -> list[Path]:
    return list((data_dir / "tmp").glob("arrivals-*/*/original"))


def test_killed_between_objects_and_commit_leaves_no_half_picture(
    start: Callable[..., Process], postgres_dsn: str, tmp_path: Path
) -> None:
    data_dir, data = tmp_path / "data", made.jpeg()
    first = start()
    kept = first.client.post("/v1/images", content=made.jpeg(seed=7)).json()["image"]
    with psycopg.connect(postgres_dsn) as holder, httpx.Client(base_url=first.client.base_url) as client:
        # Whoever commits a picture needs the clock: without it the service stands exactly between the two.
        holder.execute("SELECT seq FROM clock FOR UPDATE")
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/images", content=data, timeout=0.2)
        wait_for(lambda: len(objects_in(data_dir)) == 8, "the objects")
        first.end(signal.SIGKILL)
    with psycopg.connect(postgres_dsn) as conn:
        assert conn.execute("SELECT count(*) FROM images").fetchone() == (1,)
    second = start()
    assert arrivals_in(data_dir) == []
    assert second.client.get(kept["links"]["original"]).content == made.jpeg(seed=7)
    response = second.client.post("/v1/images", content=data)
    assert response.status_code == 201
    record = response.json()["image"]
    assert second.client.get(record["links"]["original"]).content == data
    assert len(objects_in(data_dir)) == 8
    assert second.client.get("/v1/stats").json()["images"] == 2


def test_what_was_answered_survives_a_kill_and_what_was_begun_is_cleaned_up(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    first = start()
    records = [first.client.post("/v1/images", content=made.jpeg(seed=n)).json()["image"] for n in range(3)]
    # A body that never ends leaves its beginning behind.
    host, port = first.client.base_url.host, first.client.base_url.port
    with socket.create_connection((host, port or 80)) as half:
        half.sendall(b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(200_000))
        wait_for(lambda: len(arrivals_in(data_dir)) == 1, "the half body")
        first.end(signal.SIGKILL)
    assert len(arrivals_in(data_dir)) == 1
    second = start()
    assert arrivals_in(data_dir) == []
    for n, record in enumerate(records):
        assert second.client.get(record["links"]["original"]).content == made.jpeg(seed=n)
        assert second.client.get(f"/v1/images/{record['id']}").json() == record
    assert len(objects_in(data_dir)) == 12


def test_over_a_socket(start: Callable[..., Process]) -> None:
    service = start(PIXELGATE_MAX_UPLOAD_MB="2")

    # A client that sends 30 MB without looking still gets to read why it was refused.
    large = service.client.post("/v1/images", content=bytes(30 << 20))
    assert large.status_code == 413
    assert "PIXELGATE_MAX_UPLOAD_MB" in large.json()["detail"]

    def thirty_megabytes() -> Iterator[bytes]:
        for _ in range(480):
            yield bytes(65536)

    chunked = service.client.post("/v1/images", content=thirty_megabytes())
    assert chunked.status_code == 413

    record = service.client.post("/v1/images", content=made.jpeg()).json()["image"]
    head = service.client.head(record["links"]["preview"])
    assert int(head.headers["content-length"]) == len(service.client.get(record["links"]["preview"]).content)
    assert service.client.get("/healthz").status_code == 200
    assert service.end(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_inner_calls_need_the_token(start: Callable[..., Process]) -> None:
    service = start(PIXELGATE_SERVICE_TOKEN="a-token-for-this-test")
    assert service.client.get("/v1/stats").status_code == 401
    assert service.client.post("/v1/images", content=made.jpeg()).status_code == 401
    headers = {"X-Pixelgate-Service-Token": "a-token-for-this-test"}
    assert service.client.get("/v1/stats", headers=headers).status_code == 200


def test_a_database_that_is_away_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failure:
        Process("postgresql://nobody@127.0.0.1:9/none?connect_timeout=2", tmp_path / "data")
    assert "DATABASE_URL" in str(failure.value)
