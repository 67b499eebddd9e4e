"""The data folder is one launcher's at a time, whoever asks about it meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pixelgate_local.data_folder import check_space, free_mb, is_taken, read_run_file, taken, write_run_file
from pixelgate_local.errors import LocalError


def test_the_run_file_counts_only_while_its_launcher_lives(tmp_path: Path) -> None:
    assert read_run_file(tmp_path) is None
    with taken(tmp_path, "http://127.0.0.1:1"):
        assert read_run_file(tmp_path) is None  # not ready yet
        write_run_file(tmp_path, "http://127.0.0.1:1", {"embed": 2})
        told = read_run_file(tmp_path)
        assert told is not None
        assert (told.address, told.ports) == ("http://127.0.0.1:1", {"embed": 2})
        left = (tmp_path / "run" / "pixelgate.json").read_text()
    assert not is_taken(tmp_path)
    (tmp_path / "run" / "pixelgate.json").write_text(left)  # as a killed launcher leaves it
    assert read_run_file(tmp_path) is None
    with taken(tmp_path, "http://127.0.0.1:3"):
        assert read_run_file(tmp_path) is None  # the next launcher is not where the last one was


def test_who_asks_whether_it_is_taken_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_taken(tmp_path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(200):
            with taken(tmp_path, "http://127.0.0.1:1"):
                pass
    finally:
        done.set()
        asking.join()


def test_private_folders_are_closed_to_others(tmp_path: Path) -> None:
    with taken(tmp_path, "http://127.0.0.1:1"):
        for name in ("run", "tmp"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_space_is_compared_with_what_is_free(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(LocalError, match=r"Only .* MB are free"):
        check_space(tmp_path, free_mb(tmp_path) + 100_000)
