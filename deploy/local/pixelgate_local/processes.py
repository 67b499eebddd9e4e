"""Starting children that end with the launcher, and asking /proc what a process number really is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_BEFORE_EXEC = Path(__file__).with_name("before_exec.py")


def tied_command(
    command: Sequence[str], death_signal: signal.Signals, inner_uid: int = 0, user: tuple[int, int] | None = None
) -> list[str]:
    """Return `command` so wrapped that it gets `death_signal` when the thread that starts it ends.

    The process keeps its number: the wrapper becomes the program by exec. With `inner_uid`, root is called so inside a
    user namespace of its own; with `user`, a (uid, gid), root becomes that user.
    """
    uid, gid = user or (0, 0)
    numbers = [os.getpid(), int(death_signal), inner_uid, uid, gid]
    return [*python_command(_BEFORE_EXEC, *map(str, numbers)), *command]


def python_command(script: Path, *arguments: str) -> list[str]:
    """Return the command of a small script that needs the standard library only: started bare, in 20 ms."""
    return [sys.executable, "-I", "-S", str(script), *arguments]


def spawn(
    command: Sequence[str],
    *,
    death_signal: signal.Signals,
    output: IO[bytes],
    env: Mapping[str, str],
    cwd: Path | None = None,
    inner_uid: int = 0,
    user: tuple[int, int] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` as the leader of its own process group, with both outputs to `output`; see `tied_command`.

    The calling thread must live as long as the child is wanted: call this from the main thread.
    """
    return subprocess.Popen(
        tied_command(command, death_signal, inner_uid, user),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        process_group=0,
    )


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs; one that has ended and only awaits its parent (a zombie) does not."""
    try:
        # The name in parentheses may hold anything, so the state is what follows the last one.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def exists(pid: int) -> bool:
    """Whether the number is taken, be it by a zombie: what `kill(pid, 0)` calls alive."""
    return Path(f"/proc/{pid}").exists()


def program_of(pid: int) -> str | None:
    """Return the file name of the program that process `pid` runs, or None when it is gone or not ours to ask."""
    try:
        path = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
    # An environment made anew under a running process leaves the old file's name with this ending.
    return Path(path.removesuffix(" (deleted)")).name


def arguments_of(pid: int) -> list[str]:
    """Return the command line of process `pid`, empty when it is gone."""
    try:
        return [os.fsdecode(part) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def works_in(pid: int, folder: Path) -> bool:
    """Whether `folder` is the working directory of process `pid`."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False


def all_pids() -> Iterator[int]:
    """Yield the numbers of all processes at this moment."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def ending(code: int) -> str:
    """Say in words how a process ended, from its return code (negative: the signal)."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
