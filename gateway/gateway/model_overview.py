"""The models of all services in one answer; a service that is away is told as unreachable, and the others as ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import structlog
from pixelgate_common.contracts.embed import EmbedModels
from pixelgate_common.contracts.models import ServedModels
from pixelgate_common.contracts.storage import SPACES, GenerationInfo
from pixelgate_common.errors import PixelgateError
from pydantic import BaseModel

from gateway.clients.compute import ComputeClient
from gateway.clients.embed import EmbedClient
from gateway.clients.storage import StorageClient

log = structlog.get_logger(__name__)
_SLOTS = {
    "embed-service": SPACES,
    "caption-service": ("caption",),
    "detect-service": ("objects", "cutout"),
    "color-service": ("palette",),
}
"""What each service is there for, to be named when it cannot be asked."""

_PATIENCE_S = 5.0
_TOLD = {"slot", "model", "fingerprint", "dim", "inputs", "backend", "precision", "device"}
"""What of a model is told as its service says it."""
NO_SET = "none"
"""What a service without weights (color-service) calls its set."""


class Generation(BaseModel):
    """All vectors that one model made; the active one is searched."""

    fingerprint: str
    state: Literal["building", "active", "retired"]
    images: int


class SlotModel(BaseModel):
    """The model in use in one slot, and the generations of vectors that there are.

    `state`: `ready`; `idle`, loaded when next asked; `unreachable`, the service is away and all about it unknown.
    """

    slot: str
    service: str
    set: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    state: Literal["ready", "idle", "unreachable"]
    dim: int | None = None
    inputs: list[Literal["image", "text"]] = ["image"]
    backend: str | None = None
    precision: str | None = None
    device: str | None = None
    others: list[str] = []
    generations: list[Generation] = []


class ModelsInUse(BaseModel):
    """The model set, null where the services have different ones or none can be asked, and the model of every slot."""

    set: str | None
    slots: list[SlotModel]


async def overview(embed: EmbedClient, others: Sequence[ComputeClient], storage: StorageClient) -> ModelsInUse:
    """Ask all services side by side. Raises what storage-service refuses with: generations are its alone."""
    stored, asked = await asyncio.gather(
        storage.generations(), asyncio.gather(_slots_of(embed), *(_slots_of(client) for client in others))
    )
    slots = [slot for found in asked for slot in found]
    for slot in slots:
        slot.generations = [_generation(one) for one in stored.generations if one.space == slot.slot]
    sets = {slot.set for slot in slots if slot.set is not None}
    return ModelsInUse(set=sets.pop() if len(sets) == 1 else None, slots=slots)


async def _slots_of(client: EmbedClient | ComputeClient) -> list[SlotModel]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            known = await client.models()
    except (PixelgateError, TimeoutError) as error:
        log.info("models_not_known", service=client.service, reason=str(error))
        return [SlotModel(slot=slot, service=client.service, state="unreachable") for slot in _SLOTS[client.service]]
    slots: dict[str, SlotModel] = {}
    for found in _told(client.service, known):  # for each slot the one in use comes first
        if (first := slots.setdefault(found.slot, found)) is not found and found.model is not None:
            first.others.append(found.model)
    return list(slots.values())


def _told(service: str, known: EmbedModels | ServedModels) -> list[SlotModel]:
    return [
        SlotModel(
            service=service,
            set=None if known.set == NO_SET else known.set,
            state="idle" if model.state == "idle" else "ready",
            **model.model_dump(include=_TOLD),
        )
        for model in known.models
    ]


def _generation(one: GenerationInfo) -> Generation:
    return Generation(fingerprint=one.fingerprint, state=one.state, images=one.images)
