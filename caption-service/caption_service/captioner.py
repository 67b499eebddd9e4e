"""Requests to captions: admitted whole, prepared in a pool of threads, captioned in batches, one queue for each model.

While a batch is being captioned, the pictures of the next are decoded. A model that is not in memory is loaded while
its first request waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter

from pixelgate_common.batching import BatchQueue, Places, Priority
from pixelgate_common.contracts.caption import CaptionOptions
from pixelgate_common.contracts.models import ServedModel
from pixelgate_common.errors import FingerprintMismatch, NotFound, Unavailable
from pixelgate_common.images import ImageRefused

from caption_service import measures
from caption_service.errors import NoCaption
from caption_service.loading import Job, Model
from caption_service.pixels import Pixels
from caption_service.settings import Settings

Outcome = str | ImageRefused
"""A picture's caption, or why it has none."""


@dataclass(frozen=True, slots=True)
class _Served:
    model: Model
    queue: BatchQueue[Job, str]


class Captioner:
    """Serves models, the one in use first. `open` and all calls belong to one event loop."""

    def __init__(self, models: Sequence[Model], settings: Settings) -> None:
        """Serve `models` within the limits of `settings`."""
        self._served = [_serve(model, settings) for model in models]
        self._threads, self._stuck_after_s = settings.thread_count, settings.stuck_after_s
        self._pool: ThreadPoolExecutor | None = None
        # Bulk pictures go to the pool a few at a time, so that an interactive one is never behind a whole request.
        self._bulk_turns = asyncio.Semaphore(self._threads)

    async def __aenter__(self) -> Captioner:
        """Start to work."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="prepare")
        for served in self._served:
            served.queue.open()
            served.model.resident.watch()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let running batches end, fail what waits, and stop."""
        async with AsyncExitStack() as stack:
            if self._pool is not None:
                stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
            for served in self._served:
                stack.push_async_callback(served.model.resident.close)
            for served in self._served:  # closed first: those who wait inside `use` are let go
                stack.push_async_callback(served.queue.close)

    def models(self) -> list[ServedModel]:
        """Return what is served, the one in use first."""
        return [served.model.about() for served in self._served]

    async def check(self) -> list[dict[str, str]]:
        """Return what is served; raises `Unavailable` when a queue has stopped or a batch hangs."""
        for queue in (served.queue for served in self._served):
            if not queue.is_open:
                raise Unavailable(f"{queue.name} has stopped.")
            if queue.busy_for_s > self._stuck_after_s:
                raise Unavailable(f"{queue.name} has been busy with one batch for {queue.busy_for_s:.0f} s.")
        return [
            about.model_dump(include={"slot", "model", "fingerprint", "precision", "state"}) for about in self.models()
        ]

    def about(self, fingerprint: str | None = None) -> ServedModel:
        """Return the model that would answer. Raises `NotFound` (404) and `FingerprintMismatch` (409)."""
        return self._find(fingerprint).model.about()

    async def caption(
        self,
        pictures: Sequence[bytes],
        options: CaptionOptions,
        *,
        fingerprint: str | None = None,
        priority: Priority,
    ) -> tuple[ServedModel, list[Outcome]]:
        """Return the model that answered, and for each picture file its caption or why it has none.

        Raises `NotFound` (404), `FingerprintMismatch` (409), `Overloaded`, `NotEnoughMemory` and `Unavailable` (503).
        """
        served = self._find(fingerprint)
        with served.queue.admit(len(pictures), priority) as places:
            async with served.model.resident.use():
                outcomes = await asyncio.gather(
                    *(self._caption(served.model, picture, options, places, priority) for picture in pictures)
                )
                about = served.model.about()
        return about, list(outcomes)

    async def _caption(
        self, model: Model, picture: bytes, options: CaptionOptions, places: Places[Job, str], priority: Priority
    ) -> Outcome:
        try:
            if priority == "bulk":
                async with self._bulk_turns:
                    pixels = await self._prepare(model, picture)
            else:
                pixels = await self._prepare(model, picture)
        except ImageRefused as error:
            return error
        caption = await places.run(Job(pixels, options.min_words, options.max_words))
        measures.WORDS.observe(len(caption.split()))
        return caption or NoCaption("The model has nothing to say of this picture.")

    async def _prepare(self, model: Model, picture: bytes) -> Pixels:
        def prepare() -> Pixels:
            started = perf_counter()
            try:
                return model.prepare(picture)
            finally:
                measures.PREPARE_SECONDS.observe(perf_counter() - started)

        return await asyncio.get_running_loop().run_in_executor(self._pool, prepare)

    def _find(self, fingerprint: str | None) -> _Served:
        if not self._served:
            raise NotFound("No captioning model is served here.")
        if fingerprint is None:
            return self._served[0]
        for served in self._served:
            if served.model.fingerprint == fingerprint:
                return served
        names = ", ".join(served.model.fingerprint for served in self._served)
        raise FingerprintMismatch(f"Captions are made here by {names}, not by {fingerprint}.", field="fingerprint")


def _serve(model: Model, settings: Settings) -> _Served:
    resident = model.resident  # its users are inside `use` as long as a job of theirs waits or runs
    return _Served(
        model=model,
        queue=BatchQueue(
            lambda jobs: resident.current.caption(jobs),
            settings.batch_limits(model.good_batch),
            name=f"captions by {model.name}",
            observer=measures.QueueMetrics(model.name),
        ),
    )
