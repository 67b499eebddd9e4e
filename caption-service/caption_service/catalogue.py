"""Which captioning models are wanted, and what their folders say. Nothing is downloaded, and nothing heavy imported.

A model is a folder as transformers writes it: `config.json`, `preprocessor_config.json`, the tokenizer's files
(`vocab.txt` or `tokenizer.json`), and `model.safetensors` (preferred) or `pytorch_model.bin`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pixelgate_common.inference import model_sets
from pixelgate_common.inference.errors import ModelMissing, ModelProblem
from pixelgate_common.inference.known_models import Slot
from pixelgate_common.inference.model_sets import ModelChoice, ModelSource

SLOT: Slot = "caption"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """One model's files."""

    name: str
    folder: Path
    weights: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return `config.json`; `ModelProblem` when it is not that of a BLIP."""
        config = _read(self.folder / CONFIG)
        if config.get("model_type") != "blip" or not all(
            isinstance(config.get(part), dict) for part in ("text_config", "vision_config")
        ):
            raise ModelProblem(f"{self.folder / CONFIG} describes {config.get('model_type')!r}, not a BLIP.")
        return config

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        """Return `preprocessor_config.json`; nothing is assumed where it is missing."""
        return _read(self.folder / PREPROCESSOR)

    @classmethod
    def of(cls, source: ModelSource) -> Self:
        """Return what stands in the folder of `source`. Raises `ModelMissing` and `ModelProblem` naming the file."""
        if source.kind != "blip":
            raise ModelProblem(f"{source.name} is a model of kind {source.kind}; captions need a BLIP.")
        made = cls(name=source.name, folder=source.folder, weights=source.weights)
        _ = made.config, made.preprocessor
        return made

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> Self:
        """Return the source of these fields (of an order)."""
        return cls(name=fields["name"], folder=Path(fields["folder"]), weights=Path(fields["weights"]))


def wanted(settings: ModelChoice) -> list[CaptionSource]:
    """Return the models to serve, the one in use first, none when the slot is switched off.

    Raises `ModelMissing` when files are not there and `ModelProblem` when they cannot be used.
    """
    return [CaptionSource.of(source) for source in model_sets.resolve_all(SLOT, settings)]


def find(settings: ModelChoice, name: str) -> CaptionSource:
    """Return the model called `name`; raises as `wanted` does."""
    return CaptionSource.of(model_sets.find(SLOT, name, settings))


def model_set(settings: ModelChoice) -> str:
    """Return the name of the model set in use."""
    return model_sets.set_in_use(model_sets.resolve_all(SLOT, settings)[:1])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelMissing(f"{path} is missing; without it nobody knows how to use these weights.") from error
    except (OSError, ValueError) as error:
        raise ModelProblem(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelProblem(f"{path} is not a JSON object.")
    return content
