"""What a stage does with pictures: one batched call to one compute service, and one finding for each picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pixelgate_common.contracts.color import Color, PaletteItem
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import StageModel
from pixelgate_common.errors import FingerprintMismatch, Unavailable

from gateway.clients.caption import CaptionClient
from gateway.clients.color import ColorClient
from gateway.clients.compute import ComputeClient
from gateway.clients.detect import DetectClient
from gateway.clients.embed import EmbedClient
from gateway.clients.inner import BadAnswer, Patience


@dataclass(frozen=True, slots=True)
class Finding:
    """What a stage found in one picture (a vector, or a result and maybe a file), or why it found nothing."""

    vector: str | None = None
    result: dict[str, Any] | None = None
    file: bytes | None = None
    problem: Problem | None = None


class Analyser(Protocol):
    """What a stage does with pictures, by asking one compute service."""

    async def model(self) -> StageModel:
        """Return the model that answers now. Raises `Unavailable` when there is none."""
        ...

    async def analyse(self, pictures: Sequence[bytes], fingerprint: str, timeout_s: float) -> list[Finding]:
        """Return one finding for each picture file, in order, all by the model `fingerprint`.

        Raises `PixelgateError` when the call as a whole failed; 409 when the service has another model by now.
        """
        ...


class Embedding:
    """Turns pictures into vectors of one slot."""

    def __init__(self, embed: EmbedClient, slot: str) -> None:
        """Ask `embed` for `slot`."""
        self._embed, self._slot = embed, slot

    async def model(self) -> StageModel:
        """Return the slot's model."""
        for model in (await self._embed.models()).models:
            if model.slot == self._slot:
                return StageModel(fingerprint=model.fingerprint, model=model.model, dim=model.dim)
        raise Unavailable(f"embed-service has no model for {self._slot}.")

    async def analyse(self, pictures: Sequence[bytes], fingerprint: str, timeout_s: float) -> list[Finding]:
        """Return one vector, or problem, for each picture file."""
        answer = await self._embed.images(
            pictures,
            slot=self._slot,
            fingerprint=fingerprint,
            priority="bulk",
            timeout_s=timeout_s,
            patience=_once(),
        )
        _check(self._embed.service, pictures, fingerprint, answer.fingerprint, answer.items)
        return [Finding(vector=item.vector, problem=item.problem) for item in answer.items]


class PaletteTaking:
    """Takes the colours of pictures, and of what their transparency leaves visible."""

    def __init__(self, color: ColorClient) -> None:
        """Ask `color`."""
        self._color = color

    async def model(self) -> StageModel:
        """Return the method."""
        return await _model_of(self._color, "palette")

    async def analyse(self, pictures: Sequence[bytes], fingerprint: str, timeout_s: float) -> list[Finding]:
        """Return {palette, foreground}, or a problem, for each picture file."""
        answer = await self._color.palettes(
            pictures, fingerprint=fingerprint, priority="bulk", timeout_s=timeout_s, patience=_once()
        )
        _check(self._color.service, pictures, fingerprint, answer.fingerprint, answer.items)
        return [
            Finding(problem=item.problem)
            if item.problem is not None
            else Finding(result={"palette": _plain(item.palette), "foreground": _plain(item.foreground)})
            for item in answer.items
        ]


class Detecting:
    """Finds the objects in pictures."""

    def __init__(self, detect: DetectClient) -> None:
        """Ask `detect`."""
        self._detect = detect

    async def model(self) -> StageModel:
        """Return the detector."""
        return await _model_of(self._detect, "objects")

    async def analyse(self, pictures: Sequence[bytes], fingerprint: str, timeout_s: float) -> list[Finding]:
        """Return {width, height, objects}, in the preview's pixels, or a problem, for each picture file."""
        answer = await self._detect.objects(
            pictures, fingerprint=fingerprint, priority="bulk", timeout_s=timeout_s, patience=_once()
        )
        _check(self._detect.service, pictures, fingerprint, answer.fingerprint, answer.items)
        return [
            Finding(problem=item.problem)
            if item.problem is not None
            else Finding(result=item.model_dump(mode="json", include={"width", "height", "objects"}))
            for item in answer.items
        ]


class Captioning:
    """Says in a sentence what pictures show."""

    def __init__(self, caption: CaptionClient) -> None:
        """Ask `caption`."""
        self._caption = caption

    async def model(self) -> StageModel:
        """Return the model that writes."""
        return await _model_of(self._caption, "caption")

    async def analyse(self, pictures: Sequence[bytes], fingerprint: str, timeout_s: float) -> list[Finding]:
        """Return {caption}, or a problem, for each picture file."""
        answer = await self._caption.captions(
            pictures, fingerprint=fingerprint, priority="bulk", timeout_s=timeout_s, patience=_once()
        )
        _check(self._caption.service, pictures, fingerprint, answer.fingerprint, answer.items)
        return [
            Finding(problem=item.problem) if item.problem is not None else Finding(result={"caption": item.caption})
            for item in answer.items
        ]


class CuttingOut:
    """Cuts the foreground out of pictures, and takes its colours."""

    def __init__(self, detect: DetectClient, color: ColorClient) -> None:
        """Ask `detect` for the cutouts, and `color` for their palettes."""
        self._detect, self._color = detect, color

    async def model(self) -> StageModel:
        """Return the model that cuts; there is none without the colours, or its work would be thrown away."""
        model = await _model_of(self._detect, "cutout")
        await _model_of(self._color, "palette")
        return model

    async def analyse(self, pictures: Sequence[bytes], fingerprint: str, timeout_s: float) -> list[Finding]:
        """Return the cutout's PNG and {foreground}, or a problem, for each picture file."""
        until = time.monotonic() + timeout_s
        answer = await self._detect.cutouts(
            pictures, fingerprint=fingerprint, priority="bulk", timeout_s=timeout_s, patience=_once()
        )
        _check(self._detect.service, pictures, fingerprint, answer.fingerprint, answer.items)
        cut = [item for item in answer.items if isinstance(item, bytes)]
        if not cut:
            return [Finding(problem=item) for item in answer.items if isinstance(item, Problem)]
        palettes = await self._color.palettes(
            cut, priority="bulk", timeout_s=max(1.0, until - time.monotonic()), patience=_once()
        )
        _check(self._color.service, cut, None, palettes.fingerprint, palettes.items)
        colors = iter(palettes.items)
        return [
            Finding(problem=item) if isinstance(item, Problem) else _cutout(item, next(colors)) for item in answer.items
        ]


def _cutout(png: bytes, colors: PaletteItem) -> Finding:
    if colors.problem is not None:
        return Finding(problem=colors.problem)
    # Where nothing was cut away, the whole is the foreground.
    foreground = colors.palette if colors.foreground is None else colors.foreground
    return Finding(file=png, result={"foreground": _plain(foreground)})


def _plain(colors: Sequence[Color] | None) -> list[dict[str, Any]] | None:
    return None if colors is None else [color.model_dump(mode="json") for color in colors]


def _once() -> Patience:
    """A call that broke is not repeated blindly: one of its pictures may be what broke it."""
    return Patience(0)


async def _model_of(client: ComputeClient, slot: str) -> StageModel:
    for model in (await client.models()).models:
        if model.slot == slot:
            return StageModel(fingerprint=model.fingerprint, model=model.model)
    raise Unavailable(f"{client.service} has no model for {slot}.")


def _check(
    service: str, pictures: Sequence[bytes], wanted: str | None, fingerprint: str, items: Sequence[object]
) -> None:
    """Raise when the answer comes from another model than the wanted one, or has not one item for each picture."""
    if wanted is not None and fingerprint != wanted:
        raise FingerprintMismatch(f"{service} answered with {fingerprint}, not {wanted}.")
    if len(items) != len(pictures):
        raise BadAnswer(f"{service} answered with another number of items than was asked for.")
