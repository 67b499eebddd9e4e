"""How much memory a process takes at its peak, counted from a moment of one's own (Linux)."""

from __future__ import annotations

import re
from pathlib import Path

_PROCESS = Path("/proc/self")


def start_peak_mb() -> float:
    """Forget the peak until now, and return what this process takes at the moment, in MB."""
    (_PROCESS / "clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """Return the most that this process has taken since it began, or since `start_peak_mb`, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text())
    if found is None:
        raise RuntimeError("the kernel does not say how much memory this process takes")
    return int(found[1]) / 1024
