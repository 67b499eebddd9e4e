"""Runs in a child process before the program itself: ties it to its parent's life, and may rename root.

A script of the standard library only, started with `python -I -S`, because the work must happen after fork and before
exec, and Python code between those two is not safe in a process that has threads.

    before_exec.py PARENT_PID SIGNAL UID PROGRAM ARGUMENTS…

SIGNAL is sent by the kernel when the parent *thread* that started this process ends. UID 0 changes nothing; another
one is how root will be called inside a new user namespace: files made there still belong to root outside.
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
    parent, death_signal, inner_uid, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
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
        # After unshare: a change of credentials would clear it. exec keeps it.
        _checked(libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0), "prctl")
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGKILL)  # the parent ended before the line above could watch it
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error}\n")
        sys.exit(EXIT_CANNOT_PREPARE)


if __name__ == "__main__":
    main()
