"""What the clients of the compute services have in common: pictures go in as files, and models are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pixelgate_common.contracts.models import Priority, ServedModels

from gateway.clients.inner import InnerClient

Files = list[tuple[str, tuple[str, bytes, str]]]


class ComputeClient(InnerClient):
    """Asks a compute service; every call can be repeated, because nothing is kept there."""

    async def models(self) -> ServedModels:
        """Return the models that the service answers with; for each slot the one in use comes first."""
        return self._read(await self._send("GET", "/v1/models"), ServedModels)


def as_files(pictures: Iterable[bytes], field: str = "images") -> Files:
    """Return picture files as the parts of a form, all in one field."""
    return [(field, (str(at), data, "application/octet-stream")) for at, data in enumerate(pictures)]


def as_params(fingerprint: str | None, priority: Priority, **options: Any) -> dict[str, str]:
    """Return query parameters without those that are None; truth values are written as the services read them."""
    given = {"priority": priority, "fingerprint": fingerprint, **options}
    return {name: _as_text(value) for name, value in given.items() if value is not None}


def as_fields(options: dict[str, Any]) -> dict[str, str]:
    """Return form fields without those that are None."""
    return {name: _as_text(value) for name, value in options.items() if value is not None}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
