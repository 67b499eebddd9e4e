"""What the tests have child processes do; a module of its own, so that a child can import it without pytest."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NoReturn

from pixelgate_common.images import NotAnImage


def add(one: int, other: int) -> int:
    return one + other


def process_id() -> int:
    return os.getpid()


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def crash() -> NoReturn:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def killed_once(note: Path) -> str:
    """Be killed from outside the first time, answer the second."""
    if not note.exists():
        note.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return "answered"


def killed_always() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def eat(megabytes: int) -> int:
    return len(bytearray(megabytes << 20))


def refuse() -> NoReturn:
    raise NotAnImage("no picture")


def stumble() -> NoReturn:
    raise KeyError("lost")


def threads_of_parent() -> int:
    return len(os.listdir(f"/proc/{os.getppid()}/task"))
