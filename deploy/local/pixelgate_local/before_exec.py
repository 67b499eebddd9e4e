"""Runs in a child process before the program itself: ties it to its parent's life, and may give up being root.

A script of the standard library only, started with `python -I -S`, because the work must happen after fork and before
exec, and Python code between those two is not safe in a process that has threads.

    before_exec.py PARENT_PID SIGNAL INNER_UID UID GID PROGRAM ARGUMENTS…

SIGNAL is sent by the kernel when the parent *thread* that started this process ends. INNER_UID, if not 0, is how root
will be called inside a new user namespace: files made there still belong to root outside. UID and GID, if not 0, are
whom root becomes; here, and not in the parent, because that user may be unable to reach this very Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
EXIT_CANNOT_PREPARE = 125


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main() -> None:
    """Prepare this process and become the program."""
    parent, death_signal, inner_uid, uid, gid = (int(word) for word in sys.argv[1:6])
    program = sys.argv[6:]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if inner_uid:
            _checked(libc.unshare(CLONE_NEWUSER), "unshare")
            # The kernel takes a gid_map from a process without privilege only when setgroups is given up.
            for name, value in (
                ("setgroups", "deny"),
                ("uid_map", f"{inner_uid} 0 1"),
                ("gid_map", f"{inner_uid} 0 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(value)
        if uid:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        # After these: a change of credentials would clear it. exec keeps it.
        _checked(libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0), "prctl")
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGKILL)  # the parent ended before the line above could watch it
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error}\n")
        sys.exit(EXIT_CANNOT_PREPARE)


if __name__ == "__main__":
    main()
