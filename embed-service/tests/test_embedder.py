from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from embed_fakes import ColorRunner, fake_model, jpeg, kept
from embed_service.embedder import Embedder, Outcome
from embed_service.errors import UnknownSlot
from embed_service.loading import Model
from embed_service.settings import Settings
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest, Overloaded, Unavailable
from pixelgate_common.images import ImageTooLarge, NotAnImage
from pixelgate_common.inference.resident import Resident

RED, GREEN, BLUE = jpeg((250, 5, 5)), jpeg((5, 250, 5)), jpeg((5, 5, 250))


def strongest(outcome: Outcome) -> int:
    assert isinstance(outcome, np.ndarray)
    assert abs(float(np.linalg.norm(outcome)) - 1) < 1e-5
    return int(outcome.argmax())


class HeldRunner(ColorRunner):
    """Waits inside the first batch until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go, self.started = threading.Event(), threading.Event()
        self.seen: list[list[int]] = []

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        self.seen.append([int(one.reshape(-1, 3).mean(axis=0).argmax()) for one in batch])
        self.started.set()
        assert self.may_go.wait(30)
        return super().__call__(batch)


async def test_vectors_come_in_the_order_of_pictures_and_a_bad_one_spoils_nothing(settings: Settings) -> None:
    async with Embedder(kept({"clip": [fake_model(max_bytes=5000)]}), settings) as embedder:
        about, outcomes = await embedder.embed_images(
            [RED, b"no picture", GREEN, b"\xff\xd8\xff" + bytes(6000), BLUE], slot="clip", priority="bulk"
        )
        assert about.fingerprint == "clip-fake"
        assert [strongest(outcomes[index]) for index in (0, 2, 4)] == [0, 1, 2]
        assert isinstance(outcomes[1], NotAnImage)
        assert isinstance(outcomes[3], ImageTooLarge)


async def test_texts_of_all_lengths_are_answered_in_order(settings: Settings) -> None:
    async with Embedder(kept({"clip": [fake_model()]}), settings) as embedder:
        texts = ["a", "word " * 100, "four"]
        _, together = await embedder.embed_texts(texts, slot="clip", priority="bulk")
        for text, vector in zip(texts, together, strict=True):
            _, (alone,) = await embedder.embed_texts([text], slot="clip", priority="interactive")
            assert alone.shape == vector.shape == (3,)


async def test_a_slot_or_fingerprint_that_is_not_loaded_is_said(settings: Settings) -> None:
    models = {"clip": [fake_model()], "resnet": [fake_model("resnet", "resnet-fake", texts=False)]}
    async with Embedder(kept(models), settings) as embedder:
        with pytest.raises(UnknownSlot, match="no slot dino; there are clip, resnet"):
            await embedder.embed_images([RED], slot="dino", priority="bulk")
        with pytest.raises(FingerprintMismatch, match="has clip-fake, not clip-other"):
            await embedder.embed_images([RED], slot="clip", fingerprint="clip-other", priority="bulk")
        with pytest.raises(InvalidRequest, match="takes pictures only"):
            await embedder.embed_texts(["a"], slot="resnet", priority="bulk")


async def test_an_older_model_answers_while_it_is_kept(settings: Settings) -> None:
    async with Embedder(
        kept({"clip": [fake_model(fingerprint="new"), fake_model(fingerprint="old")]}), settings
    ) as embedder:
        assert [about.fingerprint for about in embedder.models()] == ["new", "old"]
        for wanted, answers in ((None, "new"), ("new", "new"), ("old", "old")):
            about, _ = await embedder.embed_images([RED], slot="clip", fingerprint=wanted, priority="bulk")
            assert about.fingerprint == answers


async def test_more_than_may_wait_is_refused_whole_and_at_once(settings: Settings) -> None:
    runner = HeldRunner()
    settings = settings.model_copy(update={"max_places": 3})
    settings = settings.model_copy(update={"max_batch": 2})
    async with Embedder(kept({"clip": [replace(fake_model(), image_runner=runner)]}), settings) as embedder:
        first = asyncio.create_task(embedder.embed_images([RED, GREEN], slot="clip", priority="bulk"))
        assert await asyncio.to_thread(runner.started.wait, 30)
        with pytest.raises(Overloaded):
            await embedder.embed_images([RED, GREEN], slot="clip", priority="interactive")
        runner.may_go.set()
        _, outcomes = await first
        assert len(outcomes) == 2


async def test_interactive_pictures_overtake_bulk_ones(settings: Settings) -> None:
    runner = HeldRunner()
    async with Embedder(kept({"clip": [replace(fake_model(), image_runner=runner)]}), settings) as embedder:
        first = asyncio.create_task(embedder.embed_images([RED], slot="clip", priority="bulk"))
        assert await asyncio.to_thread(runner.started.wait, 30)
        bulk = asyncio.create_task(embedder.embed_images([GREEN] * 6, slot="clip", priority="bulk"))
        await asyncio.sleep(0.2)
        interactive = asyncio.create_task(embedder.embed_images([BLUE], slot="clip", priority="interactive"))
        await asyncio.sleep(0.2)
        runner.may_go.set()
        await asyncio.gather(first, bulk, interactive)
    assert runner.seen[0] == [0]
    assert runner.seen[1] == [2]
    assert [color for batch in runner.seen[2:] for color in batch] == [1] * 6
    assert max(map(len, runner.seen[2:])) <= 2, "bulk batches are half as large, so that the next one waits less"


async def test_a_failing_batch_is_an_error_and_the_next_one_works(settings: Settings) -> None:
    runner = ColorRunner()
    async with Embedder(kept({"clip": [replace(fake_model(), image_runner=runner)]}), settings) as embedder:
        runner.error = ValueError("no")
        with pytest.raises(RuntimeError, match="clip pictures failed"):
            await embedder.embed_images([RED], slot="clip", priority="bulk")
        runner.error = None
        _, outcomes = await embedder.embed_images([RED], slot="clip", priority="bulk")
        assert strongest(outcomes[0]) == 0
        await embedder.check()


async def test_readiness_tells_of_a_batch_that_hangs_and_of_an_end(settings: Settings) -> None:
    runner = HeldRunner()
    embedder = Embedder(
        kept({"clip": [replace(fake_model(), image_runner=runner)]}),
        settings.model_copy(update={"stuck_after_s": 0.01}),
    )
    with pytest.raises(Unavailable, match="stopped"):
        await embedder.check()
    async with embedder:
        assert (await embedder.check())[0]["fingerprint"] == "clip-fake"
        hanging = asyncio.create_task(embedder.embed_images([RED], slot="clip", priority="bulk"))
        assert await asyncio.to_thread(runner.started.wait, 30)
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="clip pictures has been busy"):
            await embedder.check()
        runner.may_go.set()
        await hanging
    with pytest.raises(Unavailable, match="stopped"):
        await embedder.check()


async def test_an_idle_model_leaves_memory_and_comes_back_when_it_is_asked(settings: Settings) -> None:
    loads = 0

    def load() -> Model:
        nonlocal loads
        loads += 1
        return fake_model()

    resident = Resident("clip", load, idle_s=0.02)
    async with Embedder({"clip": [resident]}, settings) as embedder:
        async with asyncio.timeout(30):
            while embedder.models()[0].state == "loaded":
                await asyncio.sleep(0.005)
        assert (await embedder.check())[0]["state"] == "idle", "idle is ready"
        assert embedder.about("clip").fingerprint == "clip-fake"
        answers = await asyncio.gather(
            embedder.embed_images([RED, GREEN], slot="clip", priority="bulk"),
            embedder.embed_images([BLUE], slot="clip", priority="interactive"),
        )
        assert [strongest(outcome) for _, outcomes in answers for outcome in outcomes] == [0, 1, 2]
        _, (vector,) = await embedder.embed_texts(["a dog"], slot="clip", priority="interactive")
        assert vector.shape == (3,)
        assert loads >= 2
    assert resident.state == "idle"
