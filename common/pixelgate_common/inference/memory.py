"""How much memory there is, by the machine's and the container's own account, and how to give memory back."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LOAD_FACTOR = 2.5
"""How much memory loading takes for each byte of weights on disk.

Measured with OpenVINO 2026.4 (docs/adr/0008): 1.1 for a graph compiled once and 2.2 for one that also runs side by
side, peak and after, whether in fp32 or bf16; the rest is for activations. Weights that lie in half precision and are
computed in fp32 take twice that.
"""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that is free, in bytes, and who says so."""

    free_bytes: int
    whose: str


def need_bytes(files: Iterable[Path], factor: float = LOAD_FACTOR) -> int:
    """Return about how much memory a model of these files will take: their sizes times `factor`."""
    return int(sum(file.stat().st_size for file in files) * factor)


def machine_room(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Room:
    """Return the smallest room of the machine and of all control groups that this process is in.

    What the kernel can give back at once counts as free, in a group as on the machine: pages of files that nobody
    uses. Groups of version 2 and 1 are both understood; without any of them the machine's own figure stands.
    """
    rooms = [Room(_mem_available(proc / "meminfo"), "this machine"), *_group_rooms(proc / "self" / "cgroup", cgroups)]
    return min(rooms, key=lambda room: room.free_bytes)


def release_memory() -> None:
    """Give what is no longer used back to the system: collect cycles, then return free heap pages (glibc)."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()  # what was frozen at the start may be part of what has just been let go
    gc.collect()
    if frozen:
        gc.freeze()
    trim = getattr(_libc(), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _mem_available(path: Path) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{path} has no MemAvailable")


def _group_rooms(membership: Path, root: Path) -> Iterator[Room]:
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield from _rooms_upwards(root, group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _rooms_upwards(
                root / "memory", group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )


def _rooms_upwards(root: Path, group: str, limit: str, used: str, reclaimable: str) -> Iterator[Room]:
    # In a container the path may be that of the host, of which only the root is mounted here.
    parts = [part for part in group.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:depth])
        with suppress(OSError, ValueError):  # no such group here, or "max"
            limit_bytes = int((folder / limit).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            working_set = int((folder / used).read_text()) - int(stat.get(reclaimable, 0))
            yield Room(limit_bytes - working_set, "this container or control group")
