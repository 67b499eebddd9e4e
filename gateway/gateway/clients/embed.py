"""The client of embed-service: pictures and texts in, vectors out."""

from __future__ import annotations

from collections.abc import Sequence

from pixelgate_common.contracts.embed import Embedded, EmbedModels, EmbedTexts
from pixelgate_common.contracts.models import Priority

from gateway.clients.compute import as_files
from gateway.clients.inner import InnerClient, Patience


class EmbedClient(InnerClient):
    """Asks embed-service; every call can be repeated, because nothing is kept there."""

    service = "embed-service"

    async def models(self) -> EmbedModels:
        """Return the models that are loaded, and the set that they belong to."""
        return self._read(await self._send("GET", "/v1/models"), EmbedModels)

    async def texts(self, asked: EmbedTexts) -> Embedded:
        """Return one item for each text, in order."""
        answer = await self._send(
            "POST",
            "/v1/embed/texts",
            content=asked.model_dump_json(exclude_none=True),
            headers={"Content-Type": "application/json"},
        )
        return self._read(answer, Embedded)

    async def images(
        self,
        pictures: Sequence[bytes],
        *,
        slot: str,
        fingerprint: str | None,
        priority: Priority,
        timeout_s: float | None = None,
        patience: Patience | None = None,
    ) -> Embedded:
        """Return one item for each picture file (1 to 64), in order; a bad picture has its own problem.

        `fingerprint` is the model that must answer: another one is 409.
        """
        params = {"slot": slot, "priority": priority}
        if fingerprint is not None:
            params["fingerprint"] = fingerprint
        answer = await self._send(
            "POST",
            "/v1/embed/images",
            params=params,
            files=as_files(pictures),
            patience=patience,
            read_timeout_s=timeout_s,
        )
        return self._read(answer, Embedded)
