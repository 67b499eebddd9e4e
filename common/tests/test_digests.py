from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pixelgate_common.digests import digest_of, file_digest


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2, {"c": 3, "d": 4}]}) == digest_of({"b": [2, {"d": 4, "c": 3}], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_file_is_read_again_only_when_size_or_time_differ(tmp_path: Path) -> None:
    file, memory = tmp_path / "weights", tmp_path / "cache" / "digests.json"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    first = file_digest(file, memory)
    assert first == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert file_digest(file, memory) == first, "same size and time: remembered"
    os.utime(file, ns=(2, 2))
    assert file_digest(file, memory) == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_memory_costs_time_and_nothing_else(tmp_path: Path) -> None:
    file, memory = tmp_path / "weights", tmp_path / "digests.json"
    file.write_bytes(b"one")
    for damage in ("{", "[]", '{"x": 1}', f'{{"{file}": 3}}'):
        memory.write_text(damage)
        assert file_digest(file, memory) == hashlib.sha256(b"one").hexdigest()


def test_a_memory_that_cannot_be_written_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "weights").write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert file_digest(tmp_path / "weights", tmp_path / "file" / "digests.json") == expected
