"""Child processes that work on users' bytes: a picture that crashes, hangs or eats memory takes nothing else with it.

Each child has a pipe of its own: one that dies, at work or idle, breaks nobody else's. (Pools that share a pipe among
their children, concurrent.futures and Pebble, give up all work when one is killed at the wrong moment.)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import structlog
from pixelgate_common.errors import PixelgateError, Unavailable
from pixelgate_common.images import BrokenImage

T = TypeVar("T")
log = structlog.get_logger(__name__)
# Children come from a small server process without threads; a fork of this process would copy its locks in any state.
_processes = multiprocessing.get_context("forkserver")
# That server imports what the children need, once: a second of processor time that a new child then does not take.
_PRELOADED = ["storage_service.decoders", "storage_service.pictures"]
_START_TIMEOUT_S = 60.0
# How a child ends when somebody else ends it, the kernel's out-of-memory killer among them; everything else it did.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class _ChildDied(Exception):
    """The child ended before it answered."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class _Child:
    """One child process and its pipe."""

    def __init__(self, warm_up: Callable[[], None] | None, memory_bytes: int) -> None:
        self._pipe, theirs = _processes.Pipe()
        life, self._life = _processes.Pipe(duplex=False)
        self.process = _processes.Process(target=_serve, args=(theirs, life, warm_up, memory_bytes), daemon=True)
        self.process.start()
        theirs.close()
        life.close()

    def call(self, work: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> tuple[bool, Any]:
        """Return (True, result) or (False, error); TimeoutError, or `_ChildDied` when there is no answer."""
        try:
            self._pipe.send((work, args))
            if not self._pipe.poll(timeout_s):
                raise TimeoutError
            answer: tuple[bool, Any] = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(5)
            raise _ChildDied(self.process.exitcode) from error
        return answer

    def wait_until_warm(self) -> None:
        """Wait for the child's first sign of life."""
        try:
            if not self._pipe.poll(_START_TIMEOUT_S):
                raise _ChildDied(None)
            self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(5)
            raise _ChildDied(self.process.exitcode) from error

    def end(self) -> None:
        """Kill it; its work is lost."""
        self.process.kill()
        self.process.join(5)
        self._pipe.close()
        self._life.close()


class Decoders:
    """A fixed number of warm children; a call waits for a free one, in the order of arrival."""

    def __init__(
        self, count: int, *, timeout_s: float, memory_bytes: int, warm_up: Callable[[], None] | None = None
    ) -> None:
        """Prepare `count` children that may each take `memory_bytes` and `timeout_s` per call; `warm_up` runs first."""
        self.count, self._timeout_s, self._memory_bytes, self._warm_up = count, timeout_s, memory_bytes, warm_up
        _processes.set_forkserver_preload(_PRELOADED)
        # As many threads as children: a thread that runs always finds a child that is free.
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decoder")
        self._free: list[_Child | None] = []

    async def start(self) -> None:
        """Start the children and wait until they are warm."""
        loop = asyncio.get_running_loop()
        self._free = list(
            await asyncio.gather(*(loop.run_in_executor(self._threads, self._new) for _ in range(self.count)))
        )

    async def close(self) -> None:
        """End the children, after the calls under way."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        for child in self._free:
            if child is not None:
                child.end()
        self._free = []

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return `work(*args)`, run in a child; `work`, its arguments and what comes of it must be picklable.

        What it raises is raised here. BrokenImage when the child crashed or took too long; Unavailable when it was
        killed from outside, twice.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work, args)

    def process_ids(self) -> list[int]:
        """Return the ids of the children that are idle now."""
        return [child.process.pid for child in self._free if child is not None and child.process.pid is not None]

    def _run(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        child = self._free.pop()
        try:
            for attempt in (1, 2):
                # An idle child that was killed is found out here, and costs no attempt.
                if child is None or not child.process.is_alive():
                    child = self._replace(child)
                    if child is None:
                        raise Unavailable("No decoder can be started; the log says why.")
                try:
                    fine, answer = child.call(work, args, self._timeout_s)
                except TimeoutError as error:
                    child = self._replace(child)
                    raise BrokenImage(
                        f"The picture took longer than {self._timeout_s:g} s to decode"
                        " (PIXELGATE_STORAGE_DECODE_TIMEOUT_S)."
                    ) from error
                except _ChildDied as death:
                    log.warning("decoder_died", exit_code=death.exit_code, attempt=attempt)
                    child = self._replace(child)
                    if death.exit_code not in _FROM_OUTSIDE:
                        raise BrokenImage("The picture makes its decoder crash.") from death
                    continue
                if fine:
                    return answer  # type: ignore[no-any-return]
                raise answer
            raise Unavailable("The decoder of this picture was killed twice; try again later.")
        finally:
            self._free.append(child)

    def _new(self) -> _Child:
        child = _Child(self._warm_up, self._memory_bytes)
        child.wait_until_warm()
        return child

    def _replace(self, child: _Child | None) -> _Child | None:
        if child is not None:
            child.end()
        try:
            return self._new()
        except _ChildDied as death:
            log.error("decoder_does_not_start", exit_code=death.exit_code)
            return None


def _serve(pipe: Connection, life: Connection, warm_up: Callable[[], None] | None, memory_bytes: int) -> None:
    """Answer calls until the pipe closes: what a child does all its life."""
    # Ctrl-C reaches the whole group, and the parent ends its children in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    # What it allocates, not its address space: libraries reserve much of that and use little.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if warm_up is not None:
        warm_up()
    pipe.send((True, None))
    while True:
        try:
            work, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, work(*args)
        except (PixelgateError, OSError) as error:
            answer = False, error
        except MemoryError:
            answer = False, BrokenImage("The picture takes more memory than a decoder may use.")
        except Exception as error:
            # Not every error survives the way through a pipe, and none may take the child with it.
            answer = False, RuntimeError(f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return


def _end_with_parent(life: Connection) -> None:
    """End this process at once, whatever it does, when the parent is gone: nobody is left who would stop the clock."""
    life.poll(None)
    os._exit(1)
