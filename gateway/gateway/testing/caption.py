"""A caption-service that says of a picture how large it is and what colour it has in the middle."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pixelgate_common.contracts.caption import MAX_IMAGES, Captioned, CaptionedItem
from pixelgate_common.errors import PixelgateError
from pixelgate_common.images import decode

from gateway.testing.compute import FakeCompute


def caption_of(data: bytes) -> str:
    """Return the sentence about a picture file; raises as `decode` does."""
    picture = decode(data)
    red, green, blue = picture.resize((1, 1)).tobytes()
    return f"a picture of {picture.width} by {picture.height} in #{red:02x}{green:02x}{blue:02x}"


class FakeCaption(FakeCompute):
    """The stand-in; `app()` serves it."""

    slots = ("caption",)

    def add_routes(self, app: FastAPI) -> None:
        """Add `POST /v1/captions`."""

        @app.post("/v1/captions")
        async def captions(request: Request) -> Captioned:
            pictures = await self.take(request, "caption", most=MAX_IMAGES)
            items = [self._item(data) for data in pictures]
            return Captioned(model="fake caption", fingerprint=self.fingerprint("caption"), items=items)

    def _item(self, data: bytes) -> CaptionedItem:
        try:
            words = caption_of(data).split()
        except PixelgateError as error:
            return CaptionedItem(problem=error.to_problem())
        return CaptionedItem(caption=" ".join(words[: int(self.last_query.get("max_words", "30"))]))
