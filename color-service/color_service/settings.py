"""The settings of color-service, prefix `PIXELGATE_COLOR_`."""

from __future__ import annotations

import os
from typing import Self

from pixelgate_common.batching import BatchLimits
from pixelgate_common.contracts.color import MAX_COLLAGE_IMAGES
from pixelgate_common.images import DecodeLimits
from pixelgate_common.settings import PictureLimits, ServiceSettings
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

_MIB = 1024 * 1024


class Settings(ServiceSettings, PictureLimits):
    """How much is taken at a time, and how large the pictures made here may be."""

    model_config = SettingsConfigDict(
        env_prefix="PIXELGATE_COLOR_", frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )

    port: int = Field(8104, ge=1, le=65535)
    threads: int = Field(0, ge=0, le=256, description="Threads that work on pictures; 0: one for each core.")

    max_blend_pixels: int = Field(
        8_000_000,
        ge=1,
        le=200_000_000,
        description="A larger image_1 is scaled down to this many; each takes 50 bytes of memory.",
    )
    max_collage_pixels: int = Field(
        25_000_000, ge=1024, le=200_000_000, description="A collage that would have more is refused."
    )

    max_places: int = Field(
        256, gt=MAX_COLLAGE_IMAGES, le=65536, description="Pictures and other jobs admitted and not yet answered."
    )
    bulk_patience_ms: float = Field(
        1000.0, ge=0, le=60_000, description="Bulk pictures that waited longer take turns with interactive ones."
    )
    max_request_mb: int = Field(80, ge=1, le=4096, description="The largest body of one request.")
    max_in_flight_mb: int = Field(256, ge=1, le=65536, description="All bodies together that are held in memory.")
    stuck_after_s: float = Field(60.0, gt=0, description="A job that runs longer makes the service unready.")

    @model_validator(mode="after")
    def _can_take_one_request(self) -> Self:
        if self.max_in_flight_mb < self.max_request_mb:
            raise ValueError("max_in_flight_mb must be at least max_request_mb")
        return self

    @property
    def thread_count(self) -> int:
        """Threads to use, taken from the cores this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def max_request_bytes(self) -> int:
        """The largest body of one request, in bytes."""
        return self.max_request_mb * _MIB

    @property
    def max_in_flight_bytes(self) -> int:
        """All bodies held in memory together, in bytes."""
        return self.max_in_flight_mb * _MIB

    @property
    def decode_limits(self) -> DecodeLimits:
        """What a picture may be at most."""
        return DecodeLimits(max_bytes=self.max_upload_bytes, max_pixels=self.max_pixels)

    @property
    def job_limits(self) -> BatchLimits:
        """The limits of the queue: one job at a time for each thread, so that interactive ones wait for one at most."""
        return BatchLimits(
            max_batch=1, max_bulk_batch=1, max_places=self.max_places, bulk_patience_s=self.bulk_patience_ms / 1000
        )
