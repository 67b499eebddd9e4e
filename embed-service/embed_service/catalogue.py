"""Which models are wanted, and where their files lie. Nothing is downloaded here, and nothing heavy is imported.

The model folder: `MODEL_DIR/clip/ARCHITECTURE/TAG/` and `MODEL_DIR/resnet/resnet34/TAG/` hold the weights
(`open_clip_model.safetensors`, `model.safetensors`, `*.bin`, `*.pt`, `*.pth`); a configuration beside them
(`open_clip_config.json`, `config.json`) says what they are, else the library's own table for that name does.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelgate_common.inference.errors import ModelMissing, ModelProblem

from embed_service.settings import Settings

Slot = Literal["clip", "resnet"]
SLOTS: tuple[Slot, ...] = ("clip", "resnet")
STARTER, NONE = "starter", "none"
STANDARD: dict[Slot, str] = {"clip": "ViT-B-32/laion2b_s34b_b79k", "resnet": "resnet34/IMAGENET1K_V1"}

_CONFIG_FILES: dict[Slot, str] = {"clip": "open_clip_config.json", "resnet": "config.json"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "model.pth",
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """One model's files. `config` is what stands beside the weights; None: the library knows the `name`."""

    slot: Slot
    name: str
    folder: Path
    weights: Path
    config: dict[str, Any] | None

    @property
    def architecture_and_tag(self) -> tuple[str, str]:
        """The two parts of a name that the library knows."""
        parts = self.name.split("/")
        if len(parts) != 2:
            raise ModelProblem(
                f"{self.name}: there is no {_CONFIG_FILES[self.slot]} in {self.folder}, "
                "and the name is not of the form ARCHITECTURE/TAG."
            )
        return parts[0], parts[1]


def model_set(settings: Settings) -> str:
    """Return the name of the model set in use, `starter` or `standard`."""
    if settings.models != "auto":
        return settings.models
    on_disk = all(_weights_in(_folder(settings, slot, name)) for slot, name in STANDARD.items())
    return "standard" if on_disk else STARTER


def wanted(settings: Settings) -> dict[Slot, list[ModelSource]]:
    """Return, for each slot, the models to load: the one to use first, then those kept for a model switch.

    A slot whose model is named `none` is left out.
    Raises `ModelMissing` when files are not there and `ModelProblem` when they cannot be used.
    """
    default = model_set(settings)
    given: dict[Slot, str | None] = {"clip": settings.clip_model, "resnet": settings.resnet_model}
    sources: dict[Slot, list[ModelSource]] = {}
    for slot in SLOTS:
        names = [name.strip() for name in (given[slot] or "").split(",") if name.strip()]
        if names == [NONE]:
            continue
        names = names or [STARTER if default == STARTER else STANDARD[slot]]
        sources[slot] = [find(settings, slot, name) for name in dict.fromkeys(names)]
    return sources


def find(settings: Settings, slot: Slot, name: str) -> ModelSource:
    """Return the files of the model called `name`: `starter`, a name in the model folder, or a folder's path."""
    folder = _folder(settings, slot, name)
    weights = _weights_in(folder)
    if weights is None:
        raise ModelMissing(
            f"The {slot} model {name} is not on this machine: no weights in {folder}. "
            "Put them there, or set PIXELGATE_MODELS=starter."
        )
    return ModelSource(
        slot=slot, name=name, folder=folder, weights=weights, config=_config_in(folder, _CONFIG_FILES[slot])
    )


def _folder(settings: Settings, slot: Slot, name: str) -> Path:
    if name == STARTER:
        return settings.starter_dir / slot
    if name.startswith(("/", "./", "../", "~")):
        return Path(name).expanduser().absolute()
    if not _NAME.fullmatch(name) or ".." in name:
        raise ModelProblem(f"{name!r} is neither a model's name nor a folder's path.")
    return settings.model_dir / slot / name


def _weights_in(folder: Path) -> Path | None:
    """Return the one weights file of `folder`, None when there is none."""
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    for name in _PREFERRED:
        if folder / name in found:
            return folder / name
    if len(found) > 1:
        raise ModelProblem(f"{folder} holds several weights ({', '.join(p.name for p in found)}); leave one of them.")
    return found[0] if found else None


def _config_in(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelProblem(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelProblem(f"{path} is not a JSON object.")
    return config
