"""The settings that all services with models share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pixelgate_common.settings import DataDir

_REPOSITORY = Path(__file__).resolve().parents[3]
_MIB = 1024 * 1024


class ModelSettings(BaseSettings):
    """Which models are served, where they lie, and what they may take. A service's own class inherits from this."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=())

    models: Literal["auto", "starter", "standard"] = Field(
        "auto",
        validation_alias="PIXELGATE_MODELS",
        description="auto: for each slot the standard model if it is whole on disk, else the starter one.",
    )
    clip_model: str | None = Field(
        None,
        validation_alias="PIXELGATE_CLIP_MODEL",
        description="`starter`, `none`, a name, or a path; more after commas stay served beside the first.",
    )
    resnet_model: str | None = Field(None, validation_alias="PIXELGATE_RESNET_MODEL")
    caption_model: str | None = Field(None, validation_alias="PIXELGATE_CAPTION_MODEL")
    objects_model: str | None = Field(None, validation_alias="PIXELGATE_OBJECTS_MODEL")
    cutout_model: str | None = Field(None, validation_alias="PIXELGATE_CUTOUT_MODEL")
    data_dir: DataDir = Field(Path("data"), validation_alias="PIXELGATE_DATA_DIR", validate_default=True)
    model_dir_set: DataDir | None = Field(
        None, validation_alias="PIXELGATE_MODEL_DIR", description="Downloaded weights; default DATA_DIR/models."
    )
    starter_dir: DataDir = Field(
        _REPOSITORY / "starter-models" / "weights", validation_alias="PIXELGATE_STARTER_DIR", validate_default=True
    )
    model_idle_s: float = Field(
        0.0,
        ge=0,
        le=30 * 24 * 3600,
        validation_alias="PIXELGATE_MODEL_IDLE_S",
        description="A model that nobody asked for so long leaves memory; 0: it stays.",
    )
    model_memory_mb: int | None = Field(
        None,
        ge=1,
        validation_alias="PIXELGATE_MODEL_MEMORY_MB",
        description="What the models of one service may take together; unset: what the machine or container has.",
    )

    @property
    def model_dir(self) -> Path:
        """The folder of downloaded weights."""
        return self.model_dir_set or self.data_dir / "models"

    @property
    def lock_path(self) -> Path:
        """The file that remembers what each model was."""
        return self.model_dir / "models.lock"

    @property
    def model_memory_bytes(self) -> int | None:
        """What the models of one service may take together, in bytes; None: no limit but the machine's."""
        return None if self.model_memory_mb is None else self.model_memory_mb * _MIB
