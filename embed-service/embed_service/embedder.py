"""Requests to vectors: admitted whole, prepared in a pool of threads, inferred in batches, one queue for each input.

Preparing, inferring and answering overlap: while a batch is being inferred, the pictures of the next are decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
from pixelgate_common.batching import BatchQueue, Places, Priority
from pixelgate_common.contracts.embed import EmbedModel
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest, Unavailable
from pixelgate_common.images import ImageRefused
from pixelgate_common.inference.resident import Resident

from embed_service import measures
from embed_service.errors import UnknownSlot
from embed_service.loading import Model, TextSide
from embed_service.pixels import Pixels
from embed_service.settings import Settings
from embed_service.tokens import TokenIds

FloatVector = npt.NDArray[np.float32]
Outcome = FloatVector | ImageRefused
"""A picture's unit vector, shape (dim,), or why it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    about: EmbedModel
    resident: Resident[Model]
    images: BatchQueue[Pixels, FloatVector]
    texts: BatchQueue[TokenIds, FloatVector] | None

    @property
    def queues(self) -> Iterable[BatchQueue[Pixels, FloatVector] | BatchQueue[TokenIds, FloatVector]]:
        return (self.images, self.texts) if self.texts is not None else (self.images,)

    def about_now(self) -> EmbedModel:
        return self.about.model_copy(update={"state": self.resident.state})


class Embedder:
    """Serves models, in memory or brought there when they are asked. All calls belong to one event loop."""

    def __init__(
        self,
        models: Mapping[str, Sequence[Resident[Model]]],
        settings: Settings,
    ) -> None:
        """Serve `models` by slot, the one in use first, within the limits of `settings`; all are loaded once."""
        self._served = {slot: [_serve(model, settings) for model in some] for slot, some in models.items()}
        self._threads, self._stuck_after_s = settings.thread_count, settings.stuck_after_s
        self._pool: ThreadPoolExecutor | None = None
        # Bulk pictures go to the pool a few at a time, so that an interactive one is never behind a whole request.
        self._bulk_turns = asyncio.Semaphore(self._threads)

    async def __aenter__(self) -> Embedder:
        """Start to work."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="prepare")
        for served in self._all():
            served.resident.watch()
            for queue in served.queues:
                queue.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let running batches end, fail what waits, and stop."""
        async with AsyncExitStack() as stack:
            if self._pool is not None:
                stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
            for served in self._all():
                stack.push_async_callback(served.resident.close)
            for queue in self._queues():
                stack.push_async_callback(queue.close)

    def models(self) -> list[EmbedModel]:
        """Return what is served, for each slot the one in use first."""
        return [served.about_now() for served in self._all()]

    async def check(self) -> list[dict[str, str]]:
        """Return what is served; raises `Unavailable` when a queue has stopped or a batch hangs."""
        for queue in self._queues():
            if not queue.is_open:
                raise Unavailable(f"{queue.name} has stopped.")
            if queue.busy_for_s > self._stuck_after_s:
                raise Unavailable(f"{queue.name} has been busy with one batch for {queue.busy_for_s:.0f} s.")
        return [
            about.model_dump(include={"slot", "model", "fingerprint", "precision", "state"}) for about in self.models()
        ]

    def about(self, slot: str, fingerprint: str | None = None) -> EmbedModel:
        """Return the model that would answer. Raises `UnknownSlot` (404) and `FingerprintMismatch` (409)."""
        return self._find(slot, fingerprint).about

    async def embed_images(
        self, pictures: Sequence[bytes], *, slot: str, fingerprint: str | None = None, priority: Priority
    ) -> tuple[EmbedModel, list[Outcome]]:
        """Return the model that answered, and for each picture file its vector or why it has none.

        Raises `UnknownSlot` (404), `FingerprintMismatch` (409), `Overloaded` and `Unavailable` (503).
        """
        served = self._find(slot, fingerprint)
        # Places first: what waits for a model to be loaded is bounded like what waits for a batch.
        with served.images.admit(len(pictures), priority) as places:
            async with served.resident.use() as model:
                outcomes = await asyncio.gather(
                    *(self._embed_image(model, picture, places, priority) for picture in pictures)
                )
        return served.about, list(outcomes)

    async def embed_texts(
        self, texts: Sequence[str], *, slot: str, fingerprint: str | None = None, priority: Priority
    ) -> tuple[EmbedModel, list[FloatVector]]:
        """Return the model that answered, and the texts' vectors. Raises as `embed_images` does.

        A slot whose model takes no texts is `InvalidRequest` (422).
        """
        served = self._find(slot, fingerprint)
        if served.texts is None:
            raise InvalidRequest(f"The model of slot {slot} takes pictures only.", field="slot")
        with served.texts.admit(len(texts), priority) as places:
            async with served.resident.use() as model:
                rows = await self._prepare_texts(_text_side(model), list(texts))
                vectors = await asyncio.gather(*(places.run(row) for row in rows))
        return served.about, list(vectors)

    async def _prepare_texts(self, side: TextSide, texts: list[str]) -> list[TokenIds]:
        started = perf_counter()
        # A few short texts take less time than waking a thread.
        if sum(map(len, texts)) <= 200:
            rows = side.prepare(texts)
        else:
            rows = await asyncio.get_running_loop().run_in_executor(self._pool, side.prepare, texts)
        measures.PREPARE_SECONDS.labels("text").observe(perf_counter() - started)
        return rows

    async def _embed_image(
        self, model: Model, picture: bytes, places: Places[Pixels, FloatVector], priority: Priority
    ) -> Outcome:
        try:
            if priority == "bulk":
                async with self._bulk_turns:
                    pixels = await self._prepare_image(model, picture)
            else:
                pixels = await self._prepare_image(model, picture)
        except ImageRefused as error:
            return error
        return await places.run(pixels)

    async def _prepare_image(self, model: Model, picture: bytes) -> Pixels:
        def prepare() -> Pixels:
            started = perf_counter()
            try:
                return model.prepare_image(picture)
            finally:
                measures.PREPARE_SECONDS.labels("image").observe(perf_counter() - started)

        return await asyncio.get_running_loop().run_in_executor(self._pool, prepare)

    def _find(self, slot: str, fingerprint: str | None) -> _Served:
        some = self._served.get(slot)
        if not some:
            raise UnknownSlot(f"There is no slot {slot}; there are {', '.join(self._served)}.", field="slot")
        if fingerprint is None:
            return some[0]
        for served in some:
            if served.about.fingerprint == fingerprint:
                return served
        there = ", ".join(served.about.fingerprint for served in some)
        raise FingerprintMismatch(f"Slot {slot} has {there}, not {fingerprint}.", field="fingerprint")

    def _all(self) -> list[_Served]:
        return [served for some in self._served.values() for served in some]

    def _queues(self) -> list[BatchQueue[Pixels, FloatVector] | BatchQueue[TokenIds, FloatVector]]:
        return [queue for served in self._all() for queue in served.queues]


def _serve(resident: Resident[Model], settings: Settings) -> _Served:
    model = resident.load_at_start()  # not kept here: what a reference holds cannot be unloaded

    def infer_images(batch: list[Pixels]) -> list[FloatVector]:
        return list(resident.current.infer_images(batch))

    def infer_texts(batch: list[TokenIds]) -> list[FloatVector]:
        return list(_text_side(resident.current).infer(batch))

    about, texts = model.about, None
    if model.text is not None:
        texts = BatchQueue(
            infer_texts,
            settings.batch_limits(model.text.runner.good_batch),
            name=f"{about.slot} texts",
            workers=model.text.runner.workers,
            observer=measures.QueueMetrics(about.slot, "text"),
        )
    images = BatchQueue(
        infer_images,
        settings.batch_limits(model.image_runner.good_batch),
        name=f"{about.slot} pictures",
        workers=model.image_runner.workers,
        observer=measures.QueueMetrics(about.slot, "image"),
    )
    return _Served(about=about, resident=resident, images=images, texts=texts)


def _text_side(model: Model) -> TextSide:
    assert model.text is not None, "a model keeps its inputs when it is loaded again"
    return model.text
