"""An embed-service whose vectors are made of the input's own bytes, and which fails on request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from pixelgate_common.contracts.embed import Embedded, EmbeddedItem, EmbedModel, EmbedModels, EmbedTexts
from pixelgate_common.contracts.models import Priority
from pixelgate_common.errors import (
    FingerprintMismatch,
    InvalidRequest,
    Overloaded,
    PixelgateError,
    install_error_handlers,
)
from pixelgate_common.images import BrokenImage
from pixelgate_common.middleware import RequestContext
from pixelgate_common.vectors import FloatVector, encode_vector

DIM = 32
BROKEN = b"\xff\xd8\xffbroken"
"""A picture that this service cannot decode: a problem of its own."""
POISON = b"\xff\xd8\xffpoison"
"""A picture that makes a whole call fail with 500."""


def vector_of(what: bytes, slot: str) -> FloatVector:
    """Return the unit vector, shape (DIM,), that stands for these bytes."""
    seed = int.from_bytes(hashlib.sha256(slot.encode() + what).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


@dataclass
class FakeEmbed:
    """The state; `app()` serves it."""

    version: str = "1"
    slots: Sequence[str] = ("clip", "resnet")
    busy: bool = False
    calls: list[tuple[str, int, Priority]] = field(default_factory=list)
    request_ids: list[str | None] = field(default_factory=list)
    models_asked: int = 0
    last_inputs: Sequence[bytes] = ()

    def fingerprint(self, slot: str) -> str:
        """Return the fingerprint of a slot's model."""
        return f"fake-{slot}/{self.version}"

    def app(self) -> FastAPI:
        """Return the application."""
        app = FastAPI()
        install_error_handlers(app)
        app.add_middleware(RequestContext, service="fake-embed")

        @app.get("/readyz")
        async def readyz() -> dict[str, Any]:
            return {"ready": True, "parts": {}}

        @app.get("/v1/models")
        async def models() -> EmbedModels:
            self.models_asked += 1
            return EmbedModels(set="fake", models=[self._model(slot) for slot in self.slots])

        @app.post("/v1/embed/texts")
        async def texts(asked: EmbedTexts, request: Request) -> Embedded:
            self._check(asked.slot, asked.fingerprint, request)
            if asked.slot != "clip":
                raise InvalidRequest("This model knows no texts.", field="slot")
            self.calls.append(("texts", len(asked.texts), asked.priority))
            return self._embedded(asked.slot, [text.encode() for text in asked.texts])

        @app.post("/v1/embed/images")
        async def images(
            request: Request,
            slot: str,
            priority: Annotated[Priority, Query()] = "interactive",
            fingerprint: str | None = None,
        ) -> Embedded:
            self._check(slot, fingerprint, request)
            async with request.form() as form:
                pictures = [await part.read() for part in form.getlist("images") if not isinstance(part, str)]
            self.calls.append(("images", len(pictures), priority))
            if any(POISON in picture for picture in pictures):
                raise PixelgateError("Something fell over.")
            return self._embedded(slot, pictures)

        return app

    def _check(self, slot: str, fingerprint: str | None, request: Request) -> None:
        self.request_ids.append(request.headers.get("x-request-id"))
        if self.busy:
            raise Overloaded("The queue is full.", retry_after_s=3.0)
        if slot not in self.slots:
            raise InvalidRequest("There is no such slot.", field="slot")
        if fingerprint not in (None, self.fingerprint(slot)):
            raise FingerprintMismatch(f"This is {self.fingerprint(slot)}, not {fingerprint}.")

    def _model(self, slot: str) -> EmbedModel:
        return EmbedModel(
            slot=slot,
            model=f"fake {slot}",
            fingerprint=self.fingerprint(slot),
            dim=DIM,
            inputs=["image", "text"] if slot == "clip" else ["image"],
            image_size_px=64,
            backend="torch",
            precision="fp32",
            device="cpu",
        )

    def _embedded(self, slot: str, inputs: Sequence[bytes]) -> Embedded:
        self.last_inputs = inputs
        items = [
            EmbeddedItem(problem=BrokenImage("This picture is damaged.").to_problem())
            if what.startswith(BROKEN)
            else EmbeddedItem(vector=encode_vector(vector_of(what, slot)))
            for what in inputs
        ]
        fingerprint = self.fingerprint(slot)
        return Embedded(slot=slot, model=f"fake {slot}", fingerprint=fingerprint, dim=DIM, items=items)
