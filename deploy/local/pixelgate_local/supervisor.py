"""Keeps one process running: started, asked whether it lives, started again when it ends, stopped when told to.

All of this happens in the main thread's event loop: the kernel ends a child with the *thread* that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from pixelgate_local import logs, processes
from pixelgate_local.backoff import Backoff
from pixelgate_local.console import Console
from pixelgate_local.errors import LocalError
from pixelgate_local.postgres import LocalPostgres
from pixelgate_local.probe import Answer, ask
from pixelgate_local.settings import Settings

T = TypeVar("T")
_WATCH_S = 0.1
_STARTING_PROBE_S = 0.15


class Guard:
    """The process that ends what the services leave behind when the launcher is killed (see guard.py)."""

    def __init__(self, grace_s: float, lock: IO[str]) -> None:
        """Start it; it holds `lock` for as long as it lives, which is until the last service has ended."""
        script = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            processes.python_command(script, str(grace_s)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
            pass_fds=[lock.fileno()],
        )
        lock.close()

    def add(self, group: int) -> None:
        """Watch over the process group `group`."""
        self._say(f"+{group}\n")

    def drop(self, group: int) -> None:
        """Forget `group`: it has ended."""
        self._say(f"-{group}\n")

    def close(self) -> None:
        """End the guard."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed it; the kernel's death signals are left
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()


class Supervised(ABC):
    """One thing that is kept running."""

    def __init__(self, name: str, console: Console) -> None:
        self.name = name
        self.ready = asyncio.Event()
        """Set while it is ready for use."""
        self.waits_for = ""
        """What it said it waits for."""
        self.started_in_s: float | None = None
        """How long its first start took, from the launcher's start on."""
        self._console = console
        self._backoff = Backoff()
        self._born = time.monotonic()

    async def keep(self) -> None:
        """Run it for ever; it ends by being cancelled.

        Raises:
            LocalError: it cannot be started at all.
        """
        while True:
            began = time.monotonic()
            reason = await self._run()
            self.ready.clear()
            wait_s = self._backoff.after(time.monotonic() - began)
            self._console.line(f"{self.name} ended ({reason}); starting it again in {wait_s:.1f} s")
            await asyncio.sleep(wait_s)

    @abstractmethod
    async def _run(self) -> str:
        """Start it, watch it until it has ended, and return why it did."""

    @abstractmethod
    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop it for good, at once when `hurry` is set."""

    def _is_ready(self, began: float) -> None:
        self.waits_for = ""
        self.ready.set()
        if self.started_in_s is None:
            self.started_in_s = time.monotonic() - self._born
            self._console.line(f"{self.name} is ready ({self.started_in_s:.1f} s)")
        else:
            self._console.line(f"{self.name} is ready again ({time.monotonic() - began:.1f} s)")


class SupervisedService(Supervised):
    """A service that answers `/healthz` and `/readyz`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Callable[[], Mapping[str, str]],
        address: tuple[str, int],
        *,
        log_path: Path,
        cwd: Path,
        after: Supervised | None,
        settings: Settings,
        guard: Guard,
        console: Console,
        needed: bool = True,
    ) -> None:
        """`env` is asked for at each start; `after` is what must be ready before it.

        What is not `needed` may fail to start again and again: the others go on without it.
        """
        super().__init__(name, console)
        self._needed = needed
        self._command, self._env, self._address = command, env, address
        self._log_path, self._cwd, self._after = log_path, cwd, after
        self._settings, self._guard = settings, guard
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False
        self._attempts = 0

    async def _run(self) -> str:
        if self._after is not None:
            self.waits_for = self._after.name
            await self._after.ready.wait()
            self.waits_for = ""
        began = time.monotonic()
        log_start = logs.size_of(self._log_path)
        with self._log_path.open("ab") as log:
            process = processes.spawn(
                self._command, death_signal=signal.SIGTERM, output=log, env=self._env(), cwd=self._cwd
            )
        self._process = process
        self._guard.add(process.pid)
        ended = asyncio.create_task(_end_of(process))
        try:
            silence = await self._watch(ended, began)
        finally:
            ended.cancel()
        self._end_group(process)
        process.wait()
        self._process = None
        if silence:
            reason = f"no answer for {silence:.0f} s"
        else:
            # Whoever is killed from outside has not said why, and its last words were about something else.
            killed = process.returncode == -signal.SIGKILL
            complaint = "" if killed else logs.last_complaint(self._log_path, log_start)
            reason = processes.ending(process.returncode) + (f": {complaint}" if complaint else "")
        self._guard.drop(process.pid)
        self._attempts += 1
        if self._needed and not self._answered and self._attempts >= self._settings.start_attempts:
            raise LocalError(f"{self.name} does not start ({reason}); see {self._log_path}")
        return reason

    async def _watch(self, ended: asyncio.Task[None], began: float) -> float:
        """Ask the service until it has ended (0 is returned) or was silent for too long (for so many seconds)."""
        alive, silent_s = False, 0.0
        while not ended.done():
            asked = time.monotonic()
            answer = await self._ask("/readyz" if alive and not self.ready.is_set() else "/healthz")
            if answer.status is not None:
                if not alive:
                    alive = self._answered = True
                    continue  # it lives: ask at once whether it is ready
                if not self.ready.is_set():
                    self.waits_for = answer.waits_for
                    if answer.ok:
                        self._is_ready(began)
            await asyncio.wait({ended}, timeout=self._settings.probe_s if self.ready.is_set() else _STARTING_PROBE_S)
            # Counted in probes, not on the clock: a suspended machine wakes up with all its services alive.
            took_s = min(time.monotonic() - asked, 2 * self._settings.probe_s)
            silent_s = 0.0 if answer.status is not None else silent_s + took_s
            if silent_s >= (self._settings.silence_s if alive else self._settings.start_timeout_s):
                return silent_s
        return 0.0

    async def _ask(self, path: str) -> Answer:
        return await asyncio.to_thread(ask, *self._address, path, self._settings.probe_s)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End it by SIGTERM, and what is left of its group after the grace time by SIGKILL."""
        process = self._process
        if process is None:
            return
        process.terminate()
        if not await _ends_within(process, self._settings.grace_s, hurry):
            self._console.line(f"{self.name} did not end within {self._settings.grace_s:g} s: killed")
        self._end_group(process)
        process.wait()
        self._guard.drop(process.pid)

    @staticmethod
    def _end_group(process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of the group: children of a service that has ended would keep its port and memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class SupervisedPostgres(Supervised):
    """Our own Postgres."""

    def __init__(self, server: LocalPostgres, console: Console) -> None:
        super().__init__("postgres", console)
        self.server = server

    async def _run(self) -> str:
        began = time.monotonic()
        try:
            await _in_thread(self.server.prepare)
            self.server.spawn()
            await asyncio.to_thread(self.server.wait_ready)
        except LocalError as error:
            if self.started_in_s is None:
                raise
            return str(error)
        self._is_ready(began)
        while (code := self.server.exit_code) is None:
            await asyncio.sleep(_WATCH_S)
        return processes.ending(code)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop the server cleanly, which takes a checkpoint; hurry does not shorten it, as its data is the truth."""
        await asyncio.to_thread(self.server.stop)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread; a cancellation waits for it to end, so that it cannot go on behind our back."""
    future = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await future
        raise


async def _end_of(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        await asyncio.sleep(_WATCH_S)


async def _ends_within(process: subprocess.Popen[bytes], grace_s: float, hurry: asyncio.Event) -> bool:
    deadline = time.monotonic() + grace_s
    while process.poll() is None:
        if time.monotonic() >= deadline or hurry.is_set():
            return False
        await asyncio.sleep(0.02)
    return True
