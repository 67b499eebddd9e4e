"""The launcher's small parts, each by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pixelgate_local import logs
from pixelgate_local.backoff import Backoff
from pixelgate_local.ports import url_of
from pixelgate_local.services import SERVICES


def test_backoff_doubles_to_its_limit_and_forgets_after_a_quiet_minute() -> None:
    backoff = Backoff(first_s=0.2, limit_s=30, quiet_s=60)
    assert [backoff.after(1) for _ in range(10)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert [backoff.after(60), backoff.after(59)] == [0.2, 0.4]


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        ("", ""),
        ("loading\nready\n", "ready"),
        ("Traceback\n  File x\nValueError: no model\nbye\n", "ValueError: no model"),
        ("FATAL:  no space left\nLOG:  shut down\n", "FATAL: no space left"),
        (json.dumps({"level": "info", "event": "serving"}) + "\n", "serving"),
        (
            json.dumps({"level": "error", "event": "start_failed", "exception": "Traceback\n  x\nOSError: full"})
            + "\n"
            + json.dumps({"level": "info", "event": "bye: no error"}),
            "start_failed: OSError: full",
        ),
        (json.dumps({"level": "error", "event": "cannot_start", "reason": "no weights"}), "cannot_start: no weights"),
        ("x" * 500, "x" * 199 + "…"),
    ],
    ids=["empty", "harmless", "traceback", "postgres", "json-info", "json-error", "json-reason", "long"],
)
def test_the_last_complaint_of_a_log(tmp_path: Path, log: str, complaint: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert logs.last_complaint(path) == complaint


def test_complaints_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("ValueError: old\n")
    start = logs.size_of(path)
    with path.open("a") as file:
        file.write("all is well\n")
    assert logs.last_complaint(path, start) == "all is well"


def test_a_log_that_outgrows_its_cap_is_cut_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("a") as writer:
        for number in range(1000):
            print(f"line {number}", file=writer, flush=True)
        logs.cap(path, 1000)
        print("after", file=writer, flush=True)
    assert path.read_text() == "after\n"
    former = path.with_name("log.1").read_text()
    assert len(former) == 1000
    assert former.endswith("line 999\n")


def test_a_log_below_its_cap_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("short\n")
    logs.cap(path, 1000)
    logs.cap(tmp_path / "missing", 1000)
    assert path.read_text() == "short\n"
    assert not path.with_name("log.1").exists()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8004"),
        ("0.0.0.0", "http://127.0.0.1:8004"),
        ("::", "http://[::1]:8004"),
        ("box.example", "http://box.example:8004"),
    ],
)
def test_the_address_is_one_that_can_be_opened_here(host: str, url: str) -> None:
    assert url_of(host, 8004) == url


def test_the_table_of_services_is_consistent() -> None:
    assert len({service.port for service in SERVICES}) == len(SERVICES)
    assert len({service.name for service in SERVICES}) == len(SERVICES)
    assert [service.name for service in SERVICES if service.public] == ["gateway"]
    assert [service.name for service in SERVICES if service.owns_stores] == ["storage"]
