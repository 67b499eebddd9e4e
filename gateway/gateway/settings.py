"""What the gateway can be told: where it listens, whom it asks, and every limit that it keeps."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pixelgate_common.addresses import parse_networks
from pixelgate_common.fetch import FetchLimits
from pixelgate_common.settings import PictureLimits, ServiceSettings
from pydantic import Field, HttpUrl, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

MB = 1024 * 1024
Seconds = Annotated[float, Field(gt=0, le=3600)]
Count = Annotated[int, Field(ge=1, le=100_000)]


class InnerUrls(ServiceSettings):
    """Where the inner services answer, and how long a call to them may take."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    storage_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8106"), validation_alias="PIXELGATE_STORAGE_URL")
    embed_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8101"), validation_alias="PIXELGATE_EMBED_URL")
    caption_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8102"), validation_alias="PIXELGATE_CAPTION_URL")
    detect_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8103"), validation_alias="PIXELGATE_DETECT_URL")
    color_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:8104"), validation_alias="PIXELGATE_COLOR_URL")
    connect_timeout_s: Seconds = Field(2.0, validation_alias="PIXELGATE_CONNECT_TIMEOUT_S")
    pool_timeout_s: Seconds = Field(5.0, validation_alias="PIXELGATE_POOL_TIMEOUT_S")


class GatewaySettings(InnerUrls, PictureLimits):
    """The gateway's settings; each is an environment variable `PIXELGATE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="PIXELGATE_", frozen=True, extra="ignore", populate_by_name=True)

    port: int = Field(8004, ge=1, le=65535)

    max_body_mb: int = Field(256, ge=1, le=16_384, description="The whole multipart body of POST /v1/images.")
    max_json_mb: int = Field(16, ge=1, le=1024, description="A JSON body, base64 pictures in it included.")
    max_files: int = Field(100, ge=1, le=1000, description="Pictures in one POST /v1/images.")
    max_terms: int = Field(16, ge=1, le=100, description="Terms in one search.")
    max_inputs: int = Field(256, ge=1, le=2048, description="Inputs in one POST /v1/embeddings.")
    spool_kb: int = Field(
        64, ge=1, le=1024, description="What of an uploaded file stays in memory; the rest is on disk."
    )

    uploads_running: Count = 32
    uploads_waiting: Count = 128
    interactive_running: Count = 16
    interactive_waiting: Count = 128
    analyses_running: Count = 8
    analyses_waiting: Count = 64
    reads_running: Count = 64
    reads_waiting: Count = 256
    admission_timeout_s: Seconds = Field(20.0, description="The longest wait for a turn; after it the answer is 503.")
    forward_concurrency: int = Field(8, ge=1, le=256, description="Pictures on their way to storage at one time.")
    forward_per_request: int = Field(4, ge=1, le=64, description="The same, of one request.")

    held_mb: int = Field(
        512, ge=8, le=65_536, description="Pictures in memory at one time, for analyses, blends and collages."
    )

    fetch_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Private networks (CIDR, separated by commas) that users' URLs may lead to."
    )
    fetch_concurrency: int = Field(8, ge=1, le=256)
    fetch_timeout_s: Seconds = 20.0

    upload_retry_s: float = Field(15.0, ge=0, le=600, description="How long an upload waits for storage to come back.")
    retry_s: float = Field(1.0, ge=0, le=60, description="How long any other repeatable inner call is tried again.")
    storage_timeout_s: Seconds = 30.0
    upload_timeout_s: Seconds = 120.0
    embed_timeout_s: Seconds = 30.0
    analyse_timeout_s: Seconds = Field(60.0, description="Captions, objects, cutouts, colours: a model may load first.")

    models_ttl_s: Seconds = Field(5.0, description="For how long embed-service's list of models is taken as current.")
    words_weight: float = Field(
        0.5, ge=0, le=100, description="The ranking by words against the ranking by vectors (1.0) when they are fused."
    )

    colors_weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="The ranking by colours against that by vectors (1.0) when they are fused.",
    )

    events_subscribers: int = Field(64, ge=1, le=10_000)
    events_poll_s: Seconds = 1.0
    events_heartbeat_s: Seconds = 15.0
    events_write_timeout_s: Seconds = Field(20.0, description="A reader that takes nothing for so long is dropped.")

    @field_validator("fetch_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part for part in re.split(r"[,\s]+", value) if part) if isinstance(value, str) else value

    @field_validator("fetch_allow")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(value)
        return value

    @property
    def fetch_limits(self) -> FetchLimits:
        """The limits of the guarded fetch."""
        return FetchLimits(
            max_bytes=self.max_upload_bytes,
            total_timeout_s=self.fetch_timeout_s,
            allow_networks=self.fetch_allow,
            max_concurrent=self.fetch_concurrency,
        )
