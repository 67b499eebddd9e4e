"""The settings of detect-service, prefix `PIXELGATE_DETECT_`; models are named by settings that all services share."""

from __future__ import annotations

import os
from typing import Literal, Self

from pixelgate_common.batching import BatchLimits
from pixelgate_common.contracts.detect import MAX_CUTOUT_IMAGES, MAX_IMAGES
from pixelgate_common.images import DecodeLimits
from pixelgate_common.inference.openvino_runtime import Precision, best_precision
from pixelgate_common.inference.settings import ModelSettings
from pixelgate_common.settings import DataDir, PictureLimits, ServiceSettings
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

_MIB = 1024 * 1024


class Settings(ServiceSettings, PictureLimits, ModelSettings):
    """Which models are served, by what, and how much is taken at a time."""

    model_config = SettingsConfigDict(
        env_prefix="PIXELGATE_DETECT_", frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )

    port: int = Field(8103, ge=1, le=65535)
    cache_dir_set: DataDir | None = Field(
        None, validation_alias="PIXELGATE_DETECT_CACHE_DIR", description="Converted models; default MODEL_DIR/cache."
    )

    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the CPU has it.")
    threads: int = Field(0, ge=0, le=256, description="Threads for inference and for decoding; 0: one for each core.")

    max_places: int = Field(
        128, ge=MAX_IMAGES, le=65536, description="Pictures for objects admitted and not yet answered."
    )
    max_cutout_places: int = Field(
        32, ge=MAX_CUTOUT_IMAGES, le=65536, description="Pictures for cutouts admitted and not yet answered."
    )
    bulk_patience_ms: float = Field(1000.0, ge=0, le=60_000)
    max_request_mb: int = Field(64, ge=1, le=4096, description="The largest body of one request.")
    max_in_flight_mb: int = Field(512, ge=1, le=65536, description="All bodies and cutouts held in memory together.")
    max_open_megapixels: int = Field(
        64, ge=1, le=4096, description="Whole pictures in memory together while they are cut out or drawn on."
    )
    stuck_after_s: float = Field(120.0, gt=0, description="A picture that takes longer makes the service unready.")

    @model_validator(mode="after")
    def _can_take_one_request(self) -> Self:
        if self.max_in_flight_mb < self.max_request_mb:
            raise ValueError("max_in_flight_mb must be at least max_request_mb")
        return self

    @property
    def cache_dir(self) -> DataDir:
        """The folder of what is made from weights and can be made again."""
        return self.cache_dir_set or self.model_dir / "cache"

    @property
    def thread_count(self) -> int:
        """Threads to use, taken from the cores this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def first_precision(self) -> Precision:
        """The precision to try first; models that are not made for bf16 fall back to fp32."""
        return best_precision() if self.precision == "auto" else self.precision

    @property
    def max_request_bytes(self) -> int:
        """The largest body of one request, in bytes."""
        return self.max_request_mb * _MIB

    @property
    def max_in_flight_bytes(self) -> int:
        """All bodies and cutouts held in memory together, in bytes."""
        return self.max_in_flight_mb * _MIB

    @property
    def max_open_pixels(self) -> int:
        """All whole pictures in memory, in pixels."""
        return self.max_open_megapixels * 1_000_000

    @property
    def decode_limits(self) -> DecodeLimits:
        """What one picture may be at most."""
        return DecodeLimits(max_bytes=self.max_upload_bytes, max_pixels=self.max_pixels)

    def queue_limits(self, max_places: int) -> BatchLimits:
        """Return the limits of a queue: one picture at a time and worker, because batches gain nothing on a CPU."""
        return BatchLimits(
            max_batch=1, max_bulk_batch=1, max_places=max_places, bulk_patience_s=self.bulk_patience_ms / 1000
        )
