"""Pictures to cutouts: admitted whole, at most so many pixels open at a time, several networks by name.

Preparing, finding and writing overlap: while the network looks at some pictures, others are decoded and written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from PIL import Image
from pixelgate_common.batching import BatchQueue, Places, Priority
from pixelgate_common.contracts.detect import CutoutOptions
from pixelgate_common.contracts.models import ServedModel
from pixelgate_common.errors import FingerprintMismatch
from pixelgate_common.images import ImageRefused
from pixelgate_common.inference.errors import ModelMissing

from detect_service import measures
from detect_service.compositing import compose
from detect_service.errors import UnknownModel
from detect_service.loading import Served
from detect_service.matte import Map, MatteNetwork, NetworkInput, network_input, to_alpha
from detect_service.outcomes import check_queue, gather_all
from detect_service.settings import Settings
from detect_service.workbench import Workbench

SLOT = "cutout"
Outcome = bytes | ImageRefused
_Item = tuple[MatteNetwork, NetworkInput]


class CutoutMaker:
    """Serves the cutout networks, the default one first. All calls belong to one event loop."""

    def __init__(
        self,
        models: Sequence[Served[MatteNetwork]],
        workbench: Workbench,
        settings: Settings,
        *,
        look_up: Callable[[str], Served[MatteNetwork]],
    ) -> None:
        """Serve `models`; decode and write on `workbench`; within the limits of `settings`.

        `look_up` finds a model by name that came onto the disk since the start; blocking; raises `ModelMissing`.
        """
        self._models, self._workbench, self._stuck_after_s = list(models), workbench, settings.stuck_after_s
        self._look_up, self._looking_up = look_up, asyncio.Lock()
        self._queue: BatchQueue[_Item, Map] = BatchQueue(
            _find_all,
            settings.queue_limits(settings.max_cutout_places),
            name="cutouts",
            workers=settings.thread_count,
            observer=measures.QueueMetrics(SLOT),
        )
        # Bulk pictures are begun a few at a time, so that an interactive one is never behind a whole request.
        self._bulk_turns = asyncio.Semaphore(2 * workbench.threads)

    async def __aenter__(self) -> CutoutMaker:
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
        """Return what is served, the default one first."""
        return [model.about() for model in self._models]

    def check(self) -> None:
        """Raise `Unavailable` when the queue has stopped or a picture hangs."""
        check_queue(self._queue, self._stuck_after_s)

    async def find_model(self, name: str | None, fingerprint: str | None) -> Served[MatteNetwork]:
        """Return the model that would answer. Raises `UnknownModel` (404) and `FingerprintMismatch` (409)."""
        if not self._models:
            raise UnknownModel("The slot cutout is switched off (PIXELGATE_CUTOUT_MODEL=none).")
        chosen = self._models if name is None else [await self._named(name)]
        for model in chosen:
            if fingerprint in (None, model.fingerprint):
                return model
        served = ", ".join(model.fingerprint for model in chosen)
        raise FingerprintMismatch(f"cutouts are made by {served}, not by {fingerprint}.", field="fingerprint")

    async def cut(
        self,
        pictures: Sequence[bytes],
        options: CutoutOptions,
        *,
        fingerprint: str | None = None,
        priority: Priority,
    ) -> tuple[ServedModel, list[Outcome]]:
        """Return the model that answered, and for each picture file its cutout (a PNG) or why there is none.

        Raises `UnknownModel` (404), `FingerprintMismatch` (409), `Overloaded`, `Unavailable` and `NotEnoughMemory`
        (503).
        """
        model = await self.find_model(options.model, fingerprint)
        with self._queue.admit(len(pictures), priority) as places:
            async with model.resident.use() as loaded:
                outcomes = await gather_all(
                    [self._cut(loaded.model, picture, options, places, priority) for picture in pictures]
                )
                return model.about(), outcomes

    async def _named(self, name: str) -> Served[MatteNetwork]:
        if (known := self._known(name)) is not None:
            return known
        async with self._looking_up:
            if (known := self._known(name)) is not None:  # somebody else looked it up meanwhile
                return known
            try:
                model = await asyncio.to_thread(self._look_up, name)
            except ModelMissing as error:
                raise UnknownModel(error.detail, field="model") from error
            self._models.append(model)
            return model

    def _known(self, name: str) -> Served[MatteNetwork] | None:
        return next((model for model in self._models if model.name == name), None)

    async def _cut(
        self,
        network: MatteNetwork,
        data: bytes,
        options: CutoutOptions,
        places: Places[_Item, Map],
        priority: Priority,
    ) -> Outcome:
        try:
            if priority == "bulk":
                async with self._bulk_turns:
                    return await self._cut_one(network, data, options, places)
            return await self._cut_one(network, data, options, places)
        except ImageRefused as error:
            return error

    async def _cut_one(
        self, network: MatteNetwork, data: bytes, options: CutoutOptions, places: Places[_Item, Map]
    ) -> bytes:
        async with self._workbench.decoded(data, with_alpha=True) as picture:
            given = await self._workbench.run(partial(_prepare, picture, network))
            found = await places.run((network, given))
            return await self._workbench.run(partial(_finish, picture, found, network, options))


def _prepare(picture: Image.Image, network: MatteNetwork) -> NetworkInput:
    with measures.timed(measures.PREPARE_SECONDS, SLOT):
        return network_input(_on_white(picture), network.facts)


def _finish(picture: Image.Image, found: Map, network: MatteNetwork, options: CutoutOptions) -> bytes:
    with measures.timed(measures.FINISH_SECONDS, SLOT):
        return compose(picture, to_alpha(found, picture.size, network.facts), options)


def _on_white(picture: Image.Image) -> Image.Image:
    """Return what is seen of a picture: its colours where it is transparent are whatever was left there."""
    if picture.mode == "RGB":
        return picture
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _find_all(batch: list[_Item]) -> list[Map]:
    return [network.find(given) for network, given in batch]
