"""As whom Postgres runs: it refuses root, and root is what containers and fresh machines offer."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from pixelgate_local.binaries import Binaries
from pixelgate_local.errors import LocalError
from pixelgate_local.processes import tied_command

COPIES = Path("/var/lib/pixelgate")
"""Where the programs are copied to when the system user cannot reach them."""


@dataclass(frozen=True)
class RunAs:
    """How to start Postgres's programs so that they do not see root; both unset: as the present user."""

    inner_uid: int = 0
    user: tuple[int, int] | None = None


def choose_run_as(binaries: Binaries) -> RunAs:
    """Return how this process starts Postgres: as itself, else in a user namespace, else as a system user.

    Raises:
        LocalError: root may not make namespaces here, and no system user serves.
    """
    if os.geteuid() != 0:
        return RunAs()
    inner = RunAs(inner_uid=_named_uid())
    return inner if namespaces_allowed(binaries, inner) else system_user()


def namespaces_allowed(binaries: Binaries, run_as: RunAs) -> bool:
    """Whether root can start `binaries` inside a user namespace here; some containers forbid it."""
    command = tied_command([str(binaries.folder / "postgres"), "--version"], signal.SIGKILL, run_as.inner_uid)
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30).returncode == 0


def system_user() -> RunAs:
    """Return the system user `postgres` or `pixelgate`, made when there is neither.

    Raises:
        LocalError: neither exists and none can be made.
    """
    for attempt in ("look", "make"):
        for name in ("postgres", "pixelgate"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return RunAs(user=(entry.pw_uid, entry.pw_gid))
        if attempt == "look" and (useradd := shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")):
            subprocess.run([useradd, "--system", "--no-create-home", "pixelgate"], capture_output=True, timeout=30)
    raise LocalError(
        "Postgres does not run as root, and here root may make neither a user namespace nor a system user: "
        "start Pixelgate as another user, or set DATABASE_URL to use a server."
    )


def reachable_binaries(binaries: Binaries, run_as: RunAs) -> Binaries:
    """Return `binaries`, or a copy of them in `COPIES` when the system user of `run_as` cannot reach them.

    Raises:
        LocalError: not even the copy can be started by that user.
    """
    if run_as.user is None or can_start(binaries, run_as):
        return binaries
    installation = binaries.folder.parent
    # The wheel's programs find their libraries in a folder beside their package, so this much of the tree is kept.
    libraries = [installation.parents[1] / f"{installation.parent.name}.libs"]
    copy = COPIES / f"postgres-{binaries.version}"
    copied = replace(binaries, folder=copy / installation.parent.name / installation.name / "bin")
    if not can_start(copied, run_as):
        unfinished = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        for source in (installation, *filter(Path.is_dir, libraries)):
            shutil.copytree(source, unfinished / source.relative_to(installation.parents[1]), symlinks=True)
        for folder in (COPIES, unfinished, unfinished / installation.parent.name):
            folder.chmod(0o755)
        shutil.rmtree(copy, ignore_errors=True)
        unfinished.rename(copy)
    if not can_start(copied, run_as):
        raise LocalError(f"The Postgres copied to {copy} cannot be started: set DATABASE_URL to use a server.")
    return copied


def give_to(folder: Path, run_as: RunAs) -> None:
    """Make `folder` the system user's, if `run_as` has one, and see that it can be reached.

    Raises:
        LocalError: a folder above it is closed to that user. It is not opened: that is for its owner to decide.
    """
    if run_as.user is None:
        return
    os.chown(folder, *run_as.user)
    check = subprocess.run(
        ["test", "-w", str(folder)], user=run_as.user[0], group=run_as.user[1], extra_groups=[], timeout=10
    )
    if check.returncode != 0:
        raise LocalError(
            f"Postgres does not run as root here, and the system user it runs as cannot reach {folder}: set "
            "PIXELGATE_DATA_DIR to a folder whose parents everybody may enter, or DATABASE_URL to use a server."
        )


def can_start(binaries: Binaries, run_as: RunAs) -> bool:
    """Whether the system user of `run_as` can start these programs."""
    assert run_as.user is not None
    try:
        answer = subprocess.run(
            [binaries.folder / "initdb", "--version"],  # it needs every library that postgres needs
            capture_output=True,
            user=run_as.user[0],
            group=run_as.user[1],
            extra_groups=[],
            timeout=30,
        )
    except OSError:
        return False
    return answer.returncode == 0


def _named_uid() -> int:
    """Return a user id other than root's that has a name: initdb looks the name up. 1000 by preference."""
    named = {entry.pw_uid for entry in pwd.getpwall()} - {0}
    return 1000 if 1000 in named or not named else min(named)
