"""Which models are in use: asked of embed-service, and believed for a few seconds."""

from __future__ import annotations

import asyncio
import time

from pixelgate_common.contracts.embed import EmbedModel, EmbedModels
from pixelgate_common.errors import InvalidRequest

from gateway.clients.embed import EmbedClient


class ModelDirectory:
    """The models that embed-service has loaded, asked for at most once in `ttl_s` seconds."""

    def __init__(self, embed: EmbedClient, ttl_s: float) -> None:
        """Ask `embed`."""
        self._embed, self._ttl_s = embed, ttl_s
        self._known: EmbedModels | None = None
        self._known_at = 0.0
        self._asking = asyncio.Lock()

    async def all(self) -> EmbedModels:
        """Return the models and their set."""
        async with self._asking:
            if self._known is None or time.monotonic() - self._known_at > self._ttl_s:
                self._known = await self._embed.models()
                self._known_at = time.monotonic()
            return self._known

    def forget(self) -> None:
        """Ask again next time, e.g. after embed-service said that it has another model."""
        self._known = None

    async def of_slot(self, slot: str, *, field: str) -> EmbedModel:
        """Return the slot's model; raises `InvalidRequest` about `field` when none is loaded."""
        known = await self.all()
        for model in known.models:
            if model.slot == slot:
                return model
        slots = ", ".join(model.slot for model in known.models)
        raise InvalidRequest(f"There is no model for {slot!r}; there are {slots}.", field=field)

    async def named(self, name: str, *, field: str) -> EmbedModel:
        """Return the model whose slot, name or fingerprint is `name`; raises `InvalidRequest` about `field`."""
        known = await self.all()
        for model in known.models:
            if name in (model.slot, model.fingerprint):
                return model
        for model in known.models:
            if name == model.model:
                return model
        names = ", ".join(f"{model.slot} ({model.model})" for model in known.models)
        raise InvalidRequest(f"There is no model {name!r}; there are {names}.", field=field)
