"""The settings of caption-service, prefix `PIXELGATE_CAPTION_`; what all services share names the models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pixelgate_common.batching import BatchLimits
from pixelgate_common.contracts.caption import MAX_IMAGES
from pixelgate_common.inference.settings import ModelSettings
from pixelgate_common.settings import DataDir, PictureLimits, ServiceSettings
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

_MIB = 1024 * 1024


class Settings(ServiceSettings, PictureLimits, ModelSettings):
    """Which models are served, by what, and how much is taken at a time."""

    model_config = SettingsConfigDict(
        env_prefix="PIXELGATE_CAPTION_", frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )

    port: int = Field(8102, ge=1, le=65535)
    cache_dir_set: DataDir | None = Field(
        None, validation_alias="PIXELGATE_CAPTION_CACHE_DIR", description="Converted models; default MODEL_DIR/cache."
    )

    backend: Literal["auto", "openvino", "torch"] = Field("auto", description="auto: torch on CUDA, else OpenVINO.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it.")
    threads: int = Field(0, ge=0, le=256, description="Threads for inference and for decoding; 0: one for each core.")

    max_batch: int | None = Field(None, ge=1, le=64, description="Unset: what is good for the backend (8 on a CPU).")
    max_bulk_batch: int | None = Field(
        None, ge=1, le=64, description="Smaller, so that an interactive request waits less; unset: half of max_batch."
    )
    max_places: int = Field(
        64, ge=MAX_IMAGES, le=65536, description="Pictures admitted and not yet answered; BLIP base does 2 to 4 in 1 s."
    )
    max_delay_ms: float = Field(10.0, ge=0, le=1000)
    bulk_patience_ms: float = Field(5000.0, ge=0, le=600_000)
    max_request_mb: int = Field(64, ge=1, le=4096, description="The largest body of one request.")
    max_in_flight_mb: int = Field(256, ge=1, le=65536, description="All bodies together that are held in memory.")
    stuck_after_s: float = Field(120.0, gt=0, description="A batch that runs longer makes the service unready.")

    @model_validator(mode="after")
    def _can_take_one_request(self) -> Self:
        if self.max_in_flight_mb < self.max_request_mb:
            raise ValueError("max_in_flight_mb must be at least max_request_mb")
        return self

    @property
    def cache_dir(self) -> Path:
        """The folder of what is made from weights and can be made again."""
        return self.cache_dir_set or self.model_dir / "cache"

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

    def batch_limits(self, good_batch: int) -> BatchLimits:
        """Return the limits of a queue in front of what works well with batches of `good_batch`."""
        max_batch = self.max_batch or good_batch
        return BatchLimits(
            max_batch=max_batch,
            max_bulk_batch=min(self.max_bulk_batch or max(1, max_batch // 2), max_batch),
            max_places=self.max_places,
            max_delay_s=self.max_delay_ms / 1000,
            bulk_patience_s=self.bulk_patience_ms / 1000,
        )
