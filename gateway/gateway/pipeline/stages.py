"""The order of work on a picture: THE one place where it is written.

Every stage works on the stored preview and on nothing that another stage made, so none waits for another; a stage that
needs another's result says so here when it comes. To add a stage, write what calls its service and add a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import StageModel, StageName, Variant
from pixelgate_common.errors import FingerprintMismatch, Unavailable

from gateway.clients.embed import EmbedClient
from gateway.clients.inner import BadAnswer, Patience


@dataclass(frozen=True, slots=True)
class Finding:
    """What a stage found in one picture (a vector or a result), or why it found nothing."""

    vector: str | None = None
    result: dict[str, Any] | None = None
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
            # A call that broke is not repeated blindly: one of its pictures may be what broke it.
            patience=Patience(0),
        )
        if answer.fingerprint != fingerprint:
            raise FingerprintMismatch(f"embed-service answered with {answer.fingerprint}, not {fingerprint}.")
        if len(answer.items) != len(pictures):
            raise BadAnswer("embed-service answered with another number of vectors than was asked for.")
        return [Finding(vector=item.vector, problem=item.problem) for item in answer.items]


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table: a stage, what it looks at, and who does it."""

    name: StageName
    variant: Variant
    analyser: Analyser


def stages(embed: EmbedClient) -> tuple[Stage, ...]:
    """Return the table of stages."""
    return (
        Stage("clip", "preview", Embedding(embed, "clip")),
        Stage("resnet", "preview", Embedding(embed, "resnet")),
    )
