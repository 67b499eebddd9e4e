"""The client of caption-service: pictures in, sentences out."""

from __future__ import annotations

from collections.abc import Sequence

from pixelgate_common.contracts.caption import Captioned, CaptionOptions
from pixelgate_common.contracts.models import Priority

from gateway.clients.compute import ComputeClient, as_files, as_params
from gateway.clients.inner import Patience


class CaptionClient(ComputeClient):
    """Asks caption-service."""

    service = "caption-service"

    async def captions(
        self,
        pictures: Sequence[bytes],
        options: CaptionOptions | None = None,
        *,
        fingerprint: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        patience: Patience | None = None,
    ) -> Captioned:
        """Return one item for each picture file (1 to 32), in order; a bad picture has its own problem.

        `fingerprint` is the model that must answer: another one is 409.
        """
        wanted = {} if options is None else options.model_dump(exclude_unset=True)
        answer = await self._send(
            "POST",
            "/v1/captions",
            params=as_params(fingerprint, priority, **wanted),
            files=as_files(pictures),
            patience=patience,
            read_timeout_s=timeout_s,
        )
        return self._read(answer, Captioned)
