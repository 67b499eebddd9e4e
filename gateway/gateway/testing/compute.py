"""What the stand-ins of the compute services have in common: models, the checks before work, and a note of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fastapi import FastAPI, Request
from pixelgate_common.contracts.models import Priority, ServedModel, ServedModels
from pixelgate_common.errors import (
    FingerprintMismatch,
    InvalidRequest,
    Overloaded,
    PixelgateError,
    install_error_handlers,
)
from pixelgate_common.middleware import RequestContext


@dataclass
class FakeCompute:
    """The state of a stand-in; `app()` serves it. Public for tests to look at and to disturb."""

    version: str = "1"
    busy: bool = False
    broken: bool = False
    refuses: str | None = None
    set: str = "fake"
    state: Literal["loaded", "idle"] = "loaded"
    further: dict[str, list[str]] = field(default_factory=dict)
    calls: list[tuple[str, int, Priority]] = field(default_factory=list)
    last_query: dict[str, str] = field(default_factory=dict)
    last_fields: dict[str, str] = field(default_factory=dict)
    last_files: dict[str, list[bytes]] = field(default_factory=dict)

    slots: ClassVar[Sequence[str]] = ()

    def fingerprint(self, slot: str) -> str:
        """Return the fingerprint of a slot's model."""
        return f"fake-{slot}/{self.version}"

    def app(self) -> FastAPI:
        """Return the application."""
        app = FastAPI()
        install_error_handlers(app)
        app.add_middleware(RequestContext, service=type(self).__name__)

        @app.get("/readyz")
        async def readyz() -> dict[str, Any]:
            return {"ready": True, "parts": {}}

        @app.get("/v1/models")
        async def models() -> ServedModels:
            named = [(slot, name) for slot in self.slots for name in (f"fake {slot}", *self.further.get(slot, []))]
            served = [
                ServedModel(
                    slot=slot, model=name, fingerprint=self.fingerprint(slot), backend="numpy", state=self.state
                )
                for slot, name in named
            ]
            return ServedModels(set=self.set, models=served)

        self.add_routes(app)
        return app

    def add_routes(self, app: FastAPI) -> None:
        """Add what this service does."""
        raise NotImplementedError

    async def take(self, request: Request, slot: str, field_name: str = "images", most: int = 1) -> list[bytes]:
        """Return the pictures that were sent, having checked the request as the real service does, and note it."""
        if self.busy:
            raise Overloaded("The queue is full.", retry_after_s=3.0)
        if self.broken:
            raise PixelgateError("Something fell over.")
        if self.refuses:
            raise InvalidRequest("This is damaged.", field=self.refuses)
        self.last_query = dict(request.query_params)
        wanted = request.query_params.get("fingerprint")
        if wanted not in (None, self.fingerprint(slot)):
            raise FingerprintMismatch(f"This is {self.fingerprint(slot)}, not {wanted}.")
        async with request.form(max_files=200) as form:
            self.last_fields = {name: part for name, part in form.multi_items() if isinstance(part, str)}
            files: dict[str, list[bytes]] = {}
            for name, part in form.multi_items():
                if not isinstance(part, str):
                    files.setdefault(name, []).append(await part.read())
        self.last_files = files
        pictures = files.get(field_name, [])
        if not 1 <= len(pictures) <= most:
            raise InvalidRequest(f"1 to {most} files named {field_name} are needed.", field=field_name)
        priority: Any = request.query_params.get("priority", "interactive")
        self.calls.append((slot, len(pictures), priority))
        return pictures
