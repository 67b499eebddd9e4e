"""The settings that every service has; each service's own class adds its fields and its prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _refuse_placeholder(value: SecretStr | None) -> SecretStr | None:
    if value is not None and value.get_secret_value().strip().lower() in _PLACEHOLDERS:
        raise ValueError("this is a placeholder, not a secret: set one, e.g. with `openssl rand -hex 32`")
    return value


_PLACEHOLDERS = {"", "changeme", "change-me", "secret", "password", "token", "todo", "xxx", "minioadmin"}
Secret = Annotated[SecretStr, AfterValidator(_refuse_placeholder)]
"""A secret that may not be one of the usual placeholders."""


class ServiceSettings(BaseSettings):
    """What a service needs to listen, to log and to know its fellow services."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    service_token: Annotated[SecretStr | None, AfterValidator(_refuse_placeholder)] = Field(
        None, validation_alias="PIXELGATE_SERVICE_TOKEN", description="What inner calls must carry; unset: open."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", validation_alias="PIXELGATE_LOG_LEVEL")
    log_style: Literal["json", "text"] = Field("json", validation_alias="PIXELGATE_LOG_STYLE")


class PictureLimits(BaseSettings):
    """What a picture may be at most, the same in every service."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    max_upload_mb: int = Field(25, ge=1, le=1024, validation_alias="PIXELGATE_MAX_UPLOAD_MB")
    max_pixels: int = Field(50_000_000, ge=1, le=2_000_000_000, validation_alias="PIXELGATE_MAX_PIXELS")

    @property
    def max_upload_bytes(self) -> int:
        """The largest picture file, in bytes."""
        return self.max_upload_mb * 1024 * 1024


DataDir = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A folder of this machine, made absolute when the settings are read."""
