"""Pictures to objects: admitted whole, prepared in threads, looked at one by one on as many threads as there are.

Preparing and finding overlap: while some pictures are looked at, the next are decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from pixelgate_common.batching import BatchQueue, Places, Priority
from pixelgate_common.contracts.detect import Box
from pixelgate_common.contracts.models import ServedModel
from pixelgate_common.errors import FingerprintMismatch
from pixelgate_common.images import ImageRefused, decode, inspect

from detect_service import measures
from detect_service.detectors.protocol import Detector, Prepared, Question
from detect_service.errors import UnknownModel
from detect_service.loading import Served
from detect_service.outcomes import check_queue, gather_all
from detect_service.settings import Settings
from detect_service.workbench import Workbench

SLOT = "objects"


@dataclass(frozen=True, slots=True)
class Found:
    """A picture's objects, and its size upright, in which their boxes are measured."""

    width: int
    height: int
    objects: list[Box]


Outcome = Found | ImageRefused
_Item = tuple[Detector, Question]


class ObjectFinder:
    """Serves the detectors, the one in use first. All calls belong to one event loop."""

    def __init__(self, models: Sequence[Served[Detector]], workbench: Workbench, settings: Settings) -> None:
        """Serve `models`; decode on `workbench`; within the limits of `settings`."""
        self._models, self._workbench, self._stuck_after_s = list(models), workbench, settings.stuck_after_s
        self._queue: BatchQueue[_Item, list[Box]] = BatchQueue(
            _find_all,
            settings.queue_limits(settings.max_places),
            name="objects",
            workers=settings.thread_count,
            observer=measures.QueueMetrics(SLOT),
        )
        # Bulk pictures are prepared a few at a time, so that an interactive one is never behind a whole request.
        self._bulk_turns = asyncio.Semaphore(workbench.threads)

    async def __aenter__(self) -> ObjectFinder:
        """Start to work."""
        self._queue.open()
        for model in self._models:
            model.resident.watch()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let running pictures end, fail what waits, and stop."""
        async with AsyncExitStack() as stack:
            for model in self._models:
                stack.push_async_callback(model.resident.close)
            stack.push_async_callback(self._queue.close)

    def models(self) -> list[ServedModel]:
        """Return what is served, the one in use first."""
        return [model.about() for model in self._models]

    def check(self) -> None:
        """Raise `Unavailable` when the queue has stopped or a picture hangs."""
        check_queue(self._queue, self._stuck_after_s)

    def find_model(self, fingerprint: str | None) -> Served[Detector]:
        """Return the model that would answer. Raises `UnknownModel` (404) and `FingerprintMismatch` (409)."""
        if not self._models:
            raise UnknownModel("The slot objects is switched off (PIXELGATE_OBJECTS_MODEL=none).")
        for model in self._models:
            if fingerprint in (None, model.fingerprint):
                return model
        served = ", ".join(model.fingerprint for model in self._models)
        raise FingerprintMismatch(f"objects are found by {served}, not by {fingerprint}.", field="fingerprint")

    async def find(
        self, pictures: Sequence[bytes], *, min_score: float, fingerprint: str | None = None, priority: Priority
    ) -> tuple[ServedModel, list[Outcome]]:
        """Return the model that answered, and for each picture file its objects or why there are none.

        Raises `UnknownModel` (404), `FingerprintMismatch` (409), `Overloaded`, `Unavailable` and `NotEnoughMemory`
        (503).
        """
        model = self.find_model(fingerprint)
        with self._queue.admit(len(pictures), priority) as places:
            async with model.resident.use() as loaded:
                outcomes = await gather_all(
                    [self._find(loaded.model, picture, min_score, places, priority) for picture in pictures]
                )
                return model.about(), outcomes

    async def _find(
        self, detector: Detector, picture: bytes, min_score: float, places: Places[_Item, list[Box]], priority: Priority
    ) -> Outcome:
        try:
            if priority == "bulk":
                async with self._bulk_turns:
                    size, prepared = await self._prepare(detector, picture)
            else:
                size, prepared = await self._prepare(detector, picture)
        except ImageRefused as error:
            return error
        return Found(*size, await places.run((detector, Question(prepared, min_score))))

    async def _prepare(self, detector: Detector, picture: bytes) -> tuple[tuple[int, int], Prepared]:
        limits = self._workbench.limits

        def prepare() -> tuple[tuple[int, int], Prepared]:
            with measures.timed(measures.PREPARE_SECONDS, SLOT):
                size = inspect(picture, limits).upright_size
                decoded = decode(picture, limits, max_side_px=detector.decode_side_px)
                return size, detector.prepare(decoded, size)

        return await self._workbench.run(prepare)


def _find_all(batch: list[_Item]) -> list[list[Box]]:
    return [detector.find([question])[0] for detector, question in batch]
