from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from pixelgate_common.inference.memory import machine_room, need_bytes, release_memory

GB = 1024**3


def machine(tmp_path: Path, membership: str, groups: dict[str, dict[str, str]]) -> tuple[Path, Path]:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    for folder, files in groups.items():
        (cgroups / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (cgroups / folder / name).write_text(text)
    return proc, cgroups


def v2(limit: str, used: int, reclaimable: int) -> dict[str, str]:
    return {"memory.max": limit, "memory.current": str(used), "memory.stat": f"anon 5\ninactive_file {reclaimable}\n"}


@pytest.mark.parametrize(
    ("membership", "groups", "free_gb"),
    [
        pytest.param("", {}, 8, id="no control groups"),
        pytest.param("0::/\n", {".": v2(str(4 * GB), 3 * GB, GB)}, 2, id="a container's root"),
        pytest.param("0::/\n", {".": v2("max", 3 * GB, 0)}, 8, id="no limit"),
        pytest.param("0::/a/b\n", {"a": v2(str(2 * GB), GB, 0), "a/b": v2("max", GB, 0)}, 1, id="a group above"),
        pytest.param("0::/../host/pod\n", {".": v2(str(3 * GB), 0, 0)}, 3, id="a path of the host"),
        pytest.param("0::/a\n", {"a": v2(str(64 * GB), 0, 0)}, 8, id="more than the machine has"),
        pytest.param(
            "5:cpu:/x\n3:memory:/x\n",
            {
                "memory/x": {
                    "memory.limit_in_bytes": str(6 * GB),
                    "memory.usage_in_bytes": str(5 * GB),
                    "memory.stat": f"total_inactive_file {4 * GB}\n",
                }
            },
            5,
            id="version 1",
        ),
    ],
)
def test_the_smallest_room_counts(
    tmp_path: Path, membership: str, groups: dict[str, dict[str, str]], free_gb: int
) -> None:
    room = machine_room(*machine(tmp_path, membership, groups))
    assert room.free_bytes == free_gb * GB
    assert room.whose == ("this machine" if free_gb == 8 else "this container or control group")


def test_this_machine_has_some_room() -> None:
    assert machine_room().free_bytes > 0


def test_the_need_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    assert need_bytes([tmp_path / "a", tmp_path / "a"], 3.0) == 6000


def test_what_was_frozen_is_collected_too_and_the_rest_frozen_again() -> None:
    class Node:
        own: object

    gone: list[bool] = []
    node = Node()
    node.own = node
    weakref.finalize(node, gone.append, True)
    gc.freeze()
    try:
        del node
        release_memory()
        assert gone == [True]
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
