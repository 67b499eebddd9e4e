"""The client of color-service: palettes, blends and collages."""

from __future__ import annotations

from collections.abc import Sequence

from pixelgate_common.contracts.color import BlendOptions, CollageOptions, Palettes
from pixelgate_common.contracts.models import Priority

from gateway.clients.compute import ComputeClient, as_fields, as_files, as_params
from gateway.clients.inner import Patience


class ColorClient(ComputeClient):
    """Asks color-service."""

    service = "color-service"

    async def palettes(
        self,
        pictures: Sequence[bytes],
        *,
        colors: int | None = None,
        fingerprint: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        patience: Patience | None = None,
    ) -> Palettes:
        """Return one item for each picture file (1 to 64), in order; a bad picture has its own problem."""
        answer = await self._send(
            "POST",
            "/v1/palettes",
            params=as_params(fingerprint, priority, colors=colors),
            files=as_files(pictures),
            patience=patience,
            read_timeout_s=timeout_s,
        )
        return self._read(answer, Palettes)

    async def blend(self, first: bytes, second: bytes, mask: bytes | None, options: BlendOptions) -> bytes:
        """Return the two pictures blended into one, as PNG."""
        files = as_files([first], "image_1") + as_files([second], "image_2")
        if mask is not None:
            files += as_files([mask], "mask")
        fields = as_fields(options.model_dump(exclude_unset=True))
        return (await self._send("POST", "/v1/blend", files=files, data=fields)).content

    async def collage(self, pictures: Sequence[bytes], options: CollageOptions) -> bytes:
        """Return the pictures (1 to 100) in a grid, as JPEG or PNG."""
        fields = as_fields(options.model_dump(exclude_unset=True))
        return (await self._send("POST", "/v1/collage", files=as_files(pictures), data=fields)).content
