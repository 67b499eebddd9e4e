"""Ends what a killed launcher's services leave running: the last resort behind the kernel's death signal.

A script of the standard library only, started with `python -I -S`. It reads `+GROUP` and `-GROUP` (process groups that
came and went) from its standard input. When that ends, the launcher has ended: each group gets GRACE_S seconds to end
by itself (the kernel has told its leader to), then SIGKILL.

    guard.py GRACE_S
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time


def main() -> None:
    """Follow the launcher, and clear up after it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    deadline = time.monotonic() + float(sys.argv[1])
    # A number is dropped as soon as its group is gone, so that it cannot come to mean another one.
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if _is_there(group)}
        time.sleep(0.1)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
