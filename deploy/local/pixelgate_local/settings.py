"""Every setting of the launcher; the services read their own from the same environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pixelgate_local.errors import LocalError

Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Settings(BaseSettings):
    """What a person can tell `make run`."""

    model_config = SettingsConfigDict(
        env_prefix="PIXELGATE_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", min_length=1, description="Where the gateway listens.")
    port: int = Field(8004, ge=1, le=65535)
    data_dir: Folder = Field(Path("data"), validate_default=True, description="Everything that this machine keeps.")
    models: str = Field("auto", min_length=1, description="The model set.")
    model_dir: Folder | None = Field(None, description="Downloaded weights; by default `models` in the data folder.")
    database_url: SecretStr | None = Field(
        None, validation_alias="DATABASE_URL", description="A Postgres server to use in place of our own."
    )

    min_free_mb: int = Field(1024, ge=0, description="A start on a disk with less free space than this is refused.")
    warn_free_mb: int = Field(200, ge=0, description="Below this, a running system warns.")
    disk_check_s: float = Field(10.0, gt=0, le=3600, description="How often free space and log sizes are looked at.")
    log_max_mb: int = Field(20, ge=1, le=10_000, description="A log is cut at this size; one older one is kept.")

    hints: bool = Field(True, description="Whether the launcher says what to try next; not when it serves a demo.")

    # Long: the first start of a service converts its models, and begins anew if it is restarted meanwhile.
    start_timeout_s: float = Field(1200.0, gt=0, description="A service that does not answer this long is restarted.")
    start_attempts: int = Field(5, ge=1, description="So often a service may end before it ever answered.")
    probe_s: float = Field(5.0, gt=0, le=60, description="How often a running service is asked whether it lives.")
    silence_s: float = Field(60.0, gt=0, description="A service that does not answer for this long is restarted.")
    grace_s: float = Field(15.0, gt=0, le=600, description="A service gets this long to end when told to.")

    @property
    def weights_dir(self) -> Path:
        """The folder of downloaded weights."""
        return self.model_dir or self.data_dir / "models"


def read_settings() -> Settings:
    """Return the settings of this environment.

    Raises:
        LocalError: one of them is not valid; the line names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "a setting"
        variable = name if name.isupper() else f"PIXELGATE_{name.upper()}"
        raise LocalError(f"{variable} is not valid: {first['msg']}") from error
