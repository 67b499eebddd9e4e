"""Which models are wanted, and what stands beside their weights. Nothing is downloaded here, nothing heavy imported.

Where files lie and what a name means is the same for all services: `pixelgate_common.inference.model_sets`. For
pictures and texts a configuration beside the weights (`open_clip_config.json`, `config.json`) says what they are, else
the library's own table for that name does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelgate_common.inference import model_sets
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.model_sets import STARTER

from embed_service.settings import Settings

__all__ = ["SLOTS", "STARTER", "ModelSource", "Slot", "find", "set_in_use", "wanted"]

Slot = Literal["clip", "resnet"]
SLOTS: tuple[Slot, ...] = ("clip", "resnet")

_CONFIG_FILES: dict[Slot, str] = {"clip": "open_clip_config.json", "resnet": "config.json"}


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


def set_in_use(settings: Settings) -> str:
    """Return which set the wanted models really are: `starter`, `standard`, `named`, `mixed`, or `none`."""
    found = (model_sets.resolve_all(slot, settings) for slot in SLOTS)
    return model_sets.set_in_use(sources[0] for sources in found if sources)


def wanted(settings: Settings) -> dict[Slot, list[ModelSource]]:
    """Return, for each slot, the models to load: the one to use first, then those kept for a model switch.

    A slot whose model is named `none` is left out.
    Raises `ModelMissing` when files are not there and `ModelProblem` when they cannot be used.
    """
    found = {slot: model_sets.resolve_all(slot, settings) for slot in SLOTS}
    return {slot: [_with_config(slot, source) for source in sources] for slot, sources in found.items() if sources}


def find(settings: Settings, slot: Slot, name: str) -> ModelSource:
    """Return the files of the model called `name`: `starter`, a name in the model folder, or a folder's path."""
    return _with_config(slot, model_sets.find(slot, name, settings))


def _with_config(slot: Slot, source: model_sets.ModelSource) -> ModelSource:
    return ModelSource(
        slot=slot,
        name=source.name,
        folder=source.folder,
        weights=source.weights,
        config=_config_in(source.folder, _CONFIG_FILES[slot]),
    )


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
