"""What the pipeline can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from gateway.settings import InnerUrls


class PipelineSettings(InnerUrls):
    """The pipeline's settings; each is an environment variable `PIXELGATE_PIPELINE_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="PIXELGATE_PIPELINE_", frozen=True, extra="ignore", populate_by_name=True
    )

    port: int = Field(8107, ge=1, le=65535, description="Of health and metrics; nothing else is served.")
    batch: int = Field(32, ge=1, le=64, description="Pictures in one call to a compute service.")
    workers: int = Field(2, ge=1, le=16, description="Batches of one stage under way: one computes, one is fetched.")
    lease_s: float = Field(
        30.0, ge=2, le=3600, description="After a kill -9 the work under way is taken up again when this has passed."
    )
    slow_lease_s: float = Field(
        60.0, ge=2, le=3600, description="The same for objects, captions and cutouts, whose calls take longer."
    )
    stand_back_s: float = Field(
        5.0,
        ge=0,
        le=600,
        description="A slow stage's longest wait before a call while quicker ones have much to do.",
    )
    idle_min_s: float = Field(0.25, gt=0, le=60, description="The pause after the first look that found no work.")
    idle_max_s: float = Field(1.0, gt=0, le=60, description="The pause when there has been no work for long.")
    backoff_min_s: float = Field(0.25, gt=0, le=60, description="The first pause when a service is away.")
    backoff_max_s: float = Field(5.0, gt=0, le=600, description="The longest pause when a service is away.")
    models_ttl_s: float = Field(10.0, gt=0, le=3600, description="How often the stages' models are asked for.")
    results_retry_s: float = Field(10.0, ge=0, le=600, description="How long results wait for storage to come back.")
    storage_timeout_s: float = Field(30.0, gt=0, le=3600)
    stop_grace_s: float = Field(5.0, ge=0, le=60, description="How long a stop waits for the batches under way.")
