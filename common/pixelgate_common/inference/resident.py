"""Models in memory while they are wanted: loaded at first use or at the start, unloaded after a time without use.

The setting for that time (PIXELGATE_MODEL_IDLE_S) is 0 unless it is set: a model stays. That is the safe choice: what
is in memory answers at once and cannot fail to load at night, and what it takes was known at the start. Who has
little memory and many models sets a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import structlog

from pixelgate_common.errors import PixelgateError, Unavailable
from pixelgate_common.inference.errors import NotEnoughMemory
from pixelgate_common.inference.memory import Room, machine_room, release_memory

T = TypeVar("T")
State = Literal["loaded", "idle"]
_MB = 1_000_000
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Held(Generic[T]):
    model: T


class MemoryBudget:
    """What the models of one process may take together, checked before each load.

    The room is the smallest of: the limit that is set, less what the loaded models were counted with; and what the
    machine and its control groups have free. Idle models make way for one that is wanted, the longest unused first.
    """

    def __init__(self, limit_bytes: int | None = None, *, room: Callable[[], Room] = machine_room) -> None:
        """Keep to `limit_bytes` (None: only to what there is); `room` measures what is free now."""
        self._limit_bytes, self._room = limit_bytes, room
        self._residents: list[Resident[Any]] = []
        self._loading: dict[Resident[Any], int] = {}
        self._turn = asyncio.Lock()

    def add(self, resident: Resident[Any]) -> None:
        """Count `resident` from now on. Called by `Resident`."""
        self._residents.append(resident)

    def left(self) -> Room:
        """Return how much more may be loaded now."""
        measured = self._room()
        coming = sum(self._loading.values())
        rooms = [Room(measured.free_bytes - coming, measured.whose)]
        if self._limit_bytes is not None:
            taken = sum(resident.need_bytes for resident in self._residents if resident.state == "loaded")
            rooms.append(Room(self._limit_bytes - taken - coming, "PIXELGATE_MODEL_MEMORY_MB"))
        return min(rooms, key=lambda room: room.free_bytes)

    async def make_room(self, resident: Resident[Any]) -> None:
        """Set memory aside for `resident`, unloading idle ones where that is needed, or raise `NotEnoughMemory`."""
        async with self._turn:
            while not self._fits(resident):
                others = [other for other in self._residents if other is not resident]
                if releases := [other.releasing for other in others if other.releasing is not None]:
                    await asyncio.wait(releases)
                elif idle := [other for other in others if other.may_unload]:
                    await min(idle, key=lambda other: other.last_used).unload()
                else:
                    raise self._refusal(resident)
            self._loading[resident] = resident.need_bytes

    def make_room_at_start(self, resident: Resident[Any]) -> None:
        """Set memory aside before any event loop runs, when nothing is idle yet, or raise `NotEnoughMemory`."""
        if not self._fits(resident):
            raise self._refusal(resident)
        self._loading[resident] = resident.need_bytes

    def settle(self, resident: Resident[Any]) -> None:
        """Take note that the load of `resident` has ended, well or badly: from now on it is measured, not foreseen."""
        self._loading.pop(resident, None)

    def _fits(self, resident: Resident[Any]) -> bool:
        return resident.need_bytes <= self.left().free_bytes

    def _refusal(self, resident: Resident[Any]) -> NotEnoughMemory:
        left = self.left()
        return NotEnoughMemory(
            f"{resident.name} needs about {resident.need_bytes / _MB:,.0f} MB of memory; "
            f"{left.whose} has {max(0, left.free_bytes) / _MB:,.0f} MB left."
        )


class Resident(Generic[T]):
    """One model that is in memory while it is wanted. All calls but `current` belong to one event loop."""

    def __init__(
        self,
        name: str,
        load: Callable[[], T],
        *,
        need_bytes: int = 0,
        idle_s: float = 0.0,
        budget: MemoryBudget | None = None,
    ) -> None:
        """Hold what the blocking `load` returns, which takes about `need_bytes`.

        It is unloaded when nobody has used it for `idle_s` seconds; 0: only when another one needs its memory.
        """
        if idle_s < 0:
            raise ValueError("idle_s must not be negative")
        self.name, self.need_bytes, self.last_used = name, need_bytes, time.monotonic()
        self._load_blocking, self._idle_s, self._budget = load, idle_s, budget
        self._held: _Held[T] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._users, self._closed = 0, False
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._timer: asyncio.TimerHandle | None = None
        self.releasing: asyncio.Task[None] | None = None
        if budget is not None:
            budget.add(self)

    @property
    def state(self) -> State:
        """Whether the model is in memory now."""
        return "idle" if self._held is None else "loaded"

    @property
    def current(self) -> T:
        """The model itself, for threads that work for somebody who is inside `use`."""
        held = self._held
        if held is None:
            raise RuntimeError(f"{self.name} is not loaded; its users must be inside `use`")
        return held.model

    @property
    def may_unload(self) -> bool:
        """Whether it is in memory and nobody uses it."""
        return self._held is not None and self._users == 0 and self._loading is None

    def load_at_start(self) -> T:
        """Load before the event loop runs, blocking, so that a model that cannot be served ends the start.

        Raises `NotEnoughMemory`, and what `load` raises. The time without use begins with the first `use` or `watch`.
        """
        if self._held is None:
            if self._budget is not None:
                self._budget.make_room_at_start(self)
            try:
                self._held = _Held(self._load_blocking())
            finally:
                self._settle()
        return self._held.model

    def watch(self) -> None:
        """Begin to count the time without use of a model that was loaded before the event loop ran."""
        self._count_idle_time()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """Give the model, loading it first where it is not in memory; it stays while anybody is inside.

        Several who come while it loads wait for one load; one who leaves early does not end it. Raises
        `NotEnoughMemory` (503), `Unavailable` (503) after `close`, and what `load` raises, to all who wait; the next
        use tries again.
        """
        self._users += 1
        self._nobody.clear()
        self._stop_counting()
        try:
            yield await self._get()
        finally:
            self._users -= 1
            self.last_used = time.monotonic()
            if self._users == 0:
                self._nobody.set()
            self._count_idle_time()

    async def unload(self) -> None:
        """Let go of the model, unless somebody uses it, and give its memory back to the system."""
        if self.may_unload:
            self._release()
        if self.releasing is not None:
            await asyncio.shield(self.releasing)

    async def close(self) -> None:
        """Take no more users, wait for those there are, and unload."""
        self._closed = True
        self._stop_counting()
        await self._nobody.wait()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        self._stop_counting()
        await self.unload()

    async def _get(self) -> T:
        if self._closed:
            raise Unavailable(f"{self.name} is shutting down.")
        if self._held is None:
            if self._loading is None:
                self._loading = asyncio.get_running_loop().create_task(self._load(), name=f"load {self.name}")
                # When all who waited have gone, nobody else asks how it went; it was logged.
                self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            try:
                await asyncio.shield(self._loading)
            except PixelgateError as error:
                # One object raised in many tasks would collect all their tracebacks.
                raise copy(error) from error
        return self.current

    async def _load(self) -> None:
        try:
            if self.releasing is not None:
                await self.releasing
            if self._budget is not None:
                await self._budget.make_room(self)
            started = time.monotonic()
            self._held = _Held(await asyncio.to_thread(self._load_blocking))
            log.info("model_in_memory", model=self.name, took_s=round(time.monotonic() - started, 2))
        except Exception as error:
            log.warning("model_not_loaded", model=self.name, reason=str(error), exc_info=_unless_expected(error))
            raise
        finally:
            self._loading = None
            self._settle()
            self._count_idle_time()

    def _settle(self) -> None:
        if self._budget is not None:
            self._budget.settle(self)

    def _count_idle_time(self) -> None:
        self._stop_counting()
        if self._idle_s > 0 and self.may_unload and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._on_idle)

    def _stop_counting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_idle(self) -> None:
        if self.may_unload:
            log.info("model_unloaded", model=self.name, idle_s=self._idle_s)
            self._release()

    def _release(self) -> None:
        self._stop_counting()
        self._held = None
        self.releasing = asyncio.get_running_loop().create_task(self._give_back(), name=f"unload {self.name}")

    async def _give_back(self) -> None:
        try:
            await asyncio.to_thread(release_memory)
        finally:
            self.releasing = None


def _unless_expected(error: Exception) -> Exception | None:
    return None if isinstance(error, PixelgateError) else error
