"""Threads for work with pixels, and whole pictures in memory no more at a time than were allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from PIL import Image
from pixelgate_common.images import ColorMode, DecodeLimits, decode, inspect

from detect_service.pixel_budget import PixelBudget

T = TypeVar("T")


class Workbench:
    """A pool of threads, and what may lie on it. `open`, `close` and all else belong to one event loop."""

    def __init__(self, threads: int, max_open_pixels: int, limits: DecodeLimits) -> None:
        """Work in `threads`; decode within `limits`, at most `max_open_pixels` of whole pictures together."""
        self.threads, self.limits = threads, limits
        self._budget = PixelBudget(max_open_pixels)
        self._pool: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Start to work."""
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="pixels")

    def close(self) -> None:
        """Let running work end, drop what waits, and stop."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, done in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @asynccontextmanager
    async def decoded(self, data: bytes, *, with_alpha: bool = False) -> AsyncIterator[Image.Image]:
        """Give the whole picture in `data`, upright, mode RGB (RGBA where it has transparency and `with_alpha`).

        Waits until its pixels fit. Raises `ImageRefused`.
        """
        info = await self.run(lambda: inspect(data, self.limits))
        async with self._budget.hold(info.width * info.height):
            mode: ColorMode = "RGBA" if with_alpha and info.has_alpha else "RGB"
            yield await self.run(lambda: decode(data, self.limits, mode=mode))
