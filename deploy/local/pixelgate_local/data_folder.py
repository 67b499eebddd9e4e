"""The one folder that holds everything: taken by one launcher at a time, laid out, and watched for free space."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pixelgate_local import logs
from pixelgate_local.errors import LocalError

FOLDERS = {"run": 0o700, "objects": 0o755, "vectors": 0o755, "models": 0o755, "logs": 0o755, "tmp": 0o700}
MIB = 1024 * 1024
_LOCK_ATTEMPTS = 20
"""More than one, because whoever asks `is_taken` holds the lock for a moment."""


@dataclass(frozen=True)
class RunFile:
    """What a running system says of itself in `run/pixelgate.json`, for `make demo` and for people."""

    address: str
    pid: int
    started_at: float
    ports: dict[str, int]


@contextmanager
def taken(data_dir: Path, address: str) -> Iterator[None]:
    """Lay out `data_dir` and hold it for this process, which will be found at `address`.

    Raises:
        LocalError: the folder cannot be made or written, or another launcher holds it.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        for name, mode in FOLDERS.items():
            (data_dir / name).mkdir(mode=mode, exist_ok=True)
        lock = (data_dir / "run" / "pixelgate.lock").open("a+")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LocalError(f"The disk of {data_dir} is full: free some space, or set PIXELGATE_DATA_DIR.") from error
        raise LocalError(
            f"The data folder {data_dir} cannot be used ({error.strerror}: {error.filename}): set PIXELGATE_DATA_DIR "
            "to one that can be written."
        ) from error
    with lock:
        for _ in range(_LOCK_ATTEMPTS):
            if lock_now(lock):
                break
            time.sleep(0.01)
        else:
            lock.seek(0)
            raise LocalError(
                f"Pixelgate already runs on {data_dir} ({lock.read().strip() or 'starting'}): use that one, stop it, "
                "or set another PIXELGATE_DATA_DIR."
            )
        _run_path(data_dir).unlink(missing_ok=True)  # of a killed launcher
        lock.truncate(0)
        lock.write(f"{address}, process {os.getpid()}\n")
        with contextlib.suppress(OSError):  # a full disk is refused next, in better words
            lock.flush()
        try:
            yield
        finally:
            _run_path(data_dir).unlink(missing_ok=True)


def lock_now(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock `file` for as long as it stays open; False when somebody else has it locked."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_taken(data_dir: Path) -> bool:
    """Whether a launcher holds `data_dir` at the moment."""
    try:
        with (data_dir / "run" / "pixelgate.lock").open("r") as lock:
            return not lock_now(lock, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def write_run_file(data_dir: Path, address: str, ports: dict[str, int]) -> None:
    """Say where the running system is; the file appears whole, and goes when `taken` ends."""
    unfinished = _run_path(data_dir).with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(RunFile(address, os.getpid(), time.time(), ports)), indent=2) + "\n")
    unfinished.replace(_run_path(data_dir))


def read_run_file(data_dir: Path) -> RunFile | None:
    """Return where the system on `data_dir` runs, or None when none does: the file of a killed one does not count."""
    if not is_taken(data_dir):
        return None
    try:
        return RunFile(**json.loads(_run_path(data_dir).read_text()))
    except FileNotFoundError:
        return None  # it is starting, and not ready yet


def clear_tmp(data_dir: Path) -> None:
    """Empty `tmp`, where an upload that was cut off leaves its part."""
    for path in (data_dir / "tmp").iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def free_mb(data_dir: Path) -> int:
    """Return the space that is free for this user, in MiB."""
    return shutil.disk_usage(data_dir).free // MIB


def check_space(data_dir: Path, min_free_mb: int) -> None:
    """See that a start makes sense.

    Raises:
        LocalError: less than `min_free_mb` is free; the line says how much, and what to do.
    """
    if (free := free_mb(data_dir)) < min_free_mb:
        raise LocalError(
            f"Only {free} MB are free on the disk of {data_dir}, and Pixelgate wants {min_free_mb} MB: free some "
            "space, or set PIXELGATE_DATA_DIR (PIXELGATE_MIN_FREE_MB changes the limit)."
        )


def log_path(data_dir: Path, name: str) -> Path:
    """Return the log file of the process `name`."""
    return data_dir / "logs" / f"{name}.log"


def rotate_logs(data_dir: Path, names: Sequence[str]) -> None:
    """Begin new logs, keeping the former ones."""
    for name in names:
        logs.rotate(log_path(data_dir, name))


def _run_path(data_dir: Path) -> Path:
    return data_dir / "run" / "pixelgate.json"
