"""The client of detect-service: pictures in, objects and cutouts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pixelgate_common.contracts.detect import (
    FINGERPRINT_HEADER,
    MODEL_HEADER,
    Annotations,
    CutoutOptions,
    Detected,
)
from pixelgate_common.contracts.models import Priority
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.frames import decode_frames

from gateway.clients.compute import ComputeClient, as_files, as_params
from gateway.clients.inner import BadAnswer, Patience


@dataclass(frozen=True, slots=True)
class Cutouts:
    """The cutouts of one call, all made by one model: PNG files, or why there is none, in the order sent."""

    model: str
    fingerprint: str
    items: list[bytes | Problem]


class DetectClient(ComputeClient):
    """Asks detect-service."""

    service = "detect-service"

    async def objects(
        self,
        pictures: Sequence[bytes],
        *,
        min_score: float | None = None,
        fingerprint: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        patience: Patience | None = None,
    ) -> Detected:
        """Return one item for each picture file (1 to 32), in order; boxes are in the pixels of the file sent."""
        answer = await self._send(
            "POST",
            "/v1/objects",
            params=as_params(fingerprint, priority, min_score=min_score),
            files=as_files(pictures),
            patience=patience,
            read_timeout_s=timeout_s,
        )
        return self._read(answer, Detected)

    async def annotate(self, picture: bytes, annotations: Annotations) -> bytes:
        """Return the picture, as JPEG, with boxes and labels drawn on it."""
        answer = await self._send(
            "POST",
            "/v1/annotate",
            files=as_files([picture], "image"),
            data={"annotations": annotations.model_dump_json()},
        )
        return answer.content

    async def cutouts(
        self,
        pictures: Sequence[bytes],
        options: CutoutOptions | None = None,
        *,
        fingerprint: str | None = None,
        priority: Priority = "interactive",
        timeout_s: float | None = None,
        patience: Patience | None = None,
    ) -> Cutouts:
        """Return one PNG, or problem, for each picture file (1 to 8), in order."""
        wanted = {} if options is None else options.model_dump(exclude_unset=True)
        answer = await self._send(
            "POST",
            "/v1/cutouts",
            params=as_params(fingerprint, priority, **wanted),
            files=as_files(pictures),
            patience=patience,
            read_timeout_s=timeout_s,
        )
        try:
            items = [_item(name, data) for name, data in decode_frames(answer.content)]
            return Cutouts(answer.headers[MODEL_HEADER], answer.headers[FINGERPRINT_HEADER], items)
        except (KeyError, ValueError) as error:
            raise BadAnswer(f"{self.service} gave cutouts that cannot be read.") from error


def _item(name: str, data: bytes | None) -> bytes | Problem:
    if data is None or name not in ("png", "problem"):
        raise ValueError("a frame is neither a picture nor a problem")
    return data if name == "png" else Problem.model_validate_json(data)
