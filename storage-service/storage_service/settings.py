"""Every setting of storage-service."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pixelgate_common.contracts.storage import STAGES, StageName
from pixelgate_common.settings import DataDir, PictureLimits, Secret, ServiceSettings
from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from storage_service.limits import SearchLimits


class Settings(ServiceSettings, PictureLimits, SearchLimits):
    """What storage-service can be told; a store's server is used in place of the embedded one where it is named."""

    model_config = SettingsConfigDict(
        env_prefix="PIXELGATE_STORAGE_", frozen=True, populate_by_name=True, extra="ignore"
    )

    port: int = Field(8106, ge=0, le=65535)
    data_dir: DataDir = Field("data", validation_alias="PIXELGATE_DATA_DIR", validate_default=True)

    database_url: Secret = Field(validation_alias="DATABASE_URL", description="A libpq connection string or URL.")
    database_connections: int = Field(16, ge=4, le=200)
    statement_timeout_s: float = Field(60.0, ge=1, le=3600)
    migrate: Literal["all", "pre", "none"] = Field(
        "all", description="Which migrations a start applies; `pre` while processes of the last version still run."
    )

    qdrant_url: str | None = Field(None, validation_alias="QDRANT_URL")
    qdrant_api_key: Secret | None = Field(None, validation_alias="QDRANT_API_KEY")

    s3_endpoint: str | None = Field(None, validation_alias="S3_ENDPOINT", description="host:port, without a scheme.")
    s3_access_key: str | None = Field(None, validation_alias="S3_ACCESS_KEY")
    s3_secret_key: Secret | None = Field(None, validation_alias="S3_SECRET_KEY")
    s3_bucket: str = Field("pixelgate", validation_alias="S3_BUCKET", min_length=3, max_length=63)
    s3_region: str = Field("us-east-1", validation_alias="S3_REGION")
    s3_secure: bool = Field(True, validation_alias="S3_SECURE")

    stages: Annotated[tuple[StageName, ...], NoDecode] = Field(
        ("clip", "resnet", "palette", "objects", "caption"),
        description="The stages that look at every picture, separated by commas; cutout can be asked for without it.",
    )
    max_attempts: int = Field(5, ge=1, le=100, description="Attempts of one stage at one picture before it is parked.")
    retry_base_s: float = Field(2.0, gt=0, le=3600, description="Wait after the first failure; doubles with each one.")
    retry_max_s: float = Field(600.0, gt=0, le=86400)

    duplicates: Literal["on", "off"] = Field("on", description="Whether pictures are compared with each other.")
    similar_cosine: float = Field(
        0.95, gt=0, le=1, description="Cosine of two pictures' vectors from which they count as similar."
    )

    decoders: int = Field(
        default_factory=lambda: min(8, os.cpu_count() or 1), ge=1, le=64, description="Child processes that decode."
    )
    max_waiting: int = Field(64, ge=0, le=10_000, description="Arrivals that may wait for a decoder; more get 503.")
    max_cutout_mb: int = Field(32, ge=1, le=512, description="What the file of a cutout may have.")
    decode_timeout_s: float = Field(30.0, gt=0, le=600)
    decode_memory_mb: int = Field(1536, ge=128, le=65536, description="What one decoder may allocate at most.")

    @field_validator("stages", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("stages")
    @classmethod
    def _in_order(cls, value: tuple[StageName, ...]) -> tuple[StageName, ...]:
        return tuple(stage for stage in STAGES if stage in value)

    @model_validator(mode="after")
    def _s3_has_keys(self) -> Settings:
        if self.s3_endpoint is not None and (self.s3_access_key is None or self.s3_secret_key is None):
            raise ValueError("S3_ENDPOINT is set, so S3_ACCESS_KEY and S3_SECRET_KEY are needed too")
        return self

    @property
    def dsn(self) -> str:
        """The connection string in clear."""
        return self.database_url.get_secret_value()
