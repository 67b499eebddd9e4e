"""Which model each slot uses, and where its files lie. Nothing is downloaded here, and nothing heavy is imported.

A slot's model is `starter` (bundled), a name of the model folder (`known_models.py` lists those that can be pulled;
any other folder or file put there by hand can be named too), or a path. Without a name the model set decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pixelgate_common.inference.errors import ModelMissing, ModelProblem
from pixelgate_common.inference.known_models import KNOWN, STANDARD, Kind, KnownModel, Slot, known

STARTER, NONE = "starter", "none"
SetName = Literal["starter", "standard", "named"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "model.pth",
    "model.pt",
    "model.onnx",
)
_SUFFIXES: dict[Slot, tuple[str, ...]] = {
    "clip": (".safetensors", ".bin", ".pt", ".pth"),
    "resnet": (".safetensors", ".bin", ".pt", ".pth"),
    "caption": (".safetensors", ".bin"),
    "objects": (".pt", ".safetensors", ".bin"),
    "cutout": (".onnx",),
}
_KINDS: dict[Slot, Kind] = {"clip": "open_clip", "resnet": "torchvision", "caption": "blip", "cutout": "matte"}


class ModelChoice(Protocol):
    """What is read from the settings; `settings.ModelSettings` has it."""

    @property
    def models(self) -> Literal["auto", "starter", "standard"]:
        """The model set that is asked for."""

    @property
    def model_dir(self) -> Path:
        """The folder of downloaded weights."""

    @property
    def starter_dir(self) -> Path:
        """The folder of the bundled weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """One model's files. `path` is what a loader is given: a folder, or the file of a model that is one file."""

    slot: Slot
    name: str
    set: SetName
    kind: Kind
    path: Path
    weights: Path

    @property
    def folder(self) -> Path:
        """The folder that the weights lie in."""
        return self.weights.parent

    @property
    def size_bytes(self) -> int:
        """The size of the weights' file."""
        return self.weights.stat().st_size


def resolve(slot: Slot, settings: ModelChoice) -> ModelSource:
    """Return the model that `slot` uses.

    Raises `ModelMissing` when its files are not there or the slot is switched off (`none`), and `ModelProblem` when
    they cannot be used; both say what to do.
    """
    sources = resolve_all(slot, settings)
    if not sources:
        raise ModelMissing(f"The slot {slot} is switched off ({_variable(slot)}=none).")
    return sources[0]


def resolve_all(slot: Slot, settings: ModelChoice) -> list[ModelSource]:
    """Return the models that `slot` serves, the one in use first; none when it is switched off. Raises as `resolve`."""
    given: str = getattr(settings, f"{slot}_model", None) or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names == [NONE]:
        return []
    return [find(slot, name, settings) for name in dict.fromkeys(names or [_of_the_set(slot, settings)])]


def find(slot: Slot, name: str, settings: ModelChoice) -> ModelSource:
    """Return the files of the model called `name`: `starter`, a name in the model folder, or a path.

    Raises `ModelMissing` and `ModelProblem`.
    """
    row = known(slot, name)
    if row is not None and row.state(settings.model_dir) == "partly":
        raise ModelMissing(
            f"The {slot} model {name} is only partly on this machine: "
            f"{', '.join(row.missing_files(settings.model_dir))} missing in {settings.model_dir / row.folder}. "
            f"{_what_to_do(slot, name, row)}"
        )
    place = _place(slot, name, settings)
    weights = place if place.is_file() else _weights_in(slot, place)
    if weights is None:
        raise ModelMissing(
            f"The {slot} model {name} is not on this machine: no weights in {place}. {_what_to_do(slot, name, row)}"
        )
    kind = row.kind if row is not None else _kind(slot, weights)
    return ModelSource(
        slot=slot,
        name=name,
        set=_set_of(slot, name),
        kind=kind,
        path=weights if kind in ("yolo", "matte") else weights.parent,
        weights=weights,
    )


def on_disk(slot: Slot, settings: ModelChoice) -> list[ModelSource]:
    """Return every model of `slot` that could be loaded now: the known ones that are whole, and the starter."""
    rows = [row.name for row in KNOWN if row.slot == slot and row.state(settings.model_dir) == "whole"]
    starter = [STARTER] if _weights_in(slot, settings.starter_dir / slot) is not None else []
    return [find(slot, name, settings) for name in rows + starter]


def set_in_use(sources: Iterable[ModelSource]) -> str:
    """Return the set that `sources` really are: `starter`, `standard`, `named`, or `mixed`; `none` without any."""
    sets = {source.set for source in sources}
    if not sets:
        return NONE
    return sets.pop() if len(sets) == 1 else "mixed"


def _of_the_set(slot: Slot, settings: ModelChoice) -> str:
    row = STANDARD[slot]
    if settings.models == "starter":
        return STARTER
    # Weights put there by hand count as much as pulled ones: what decides is whether they can be found again.
    whole = row.state(settings.model_dir) == "whole" or (
        slot in ("clip", "resnet") and _weights_in(slot, settings.model_dir / row.folder) is not None
    )
    return row.name if settings.models == "standard" or whole else STARTER


def _set_of(slot: Slot, name: str) -> SetName:
    if name == STARTER:
        return "starter"
    return "standard" if name == STANDARD[slot].name else "named"


def _place(slot: Slot, name: str, settings: ModelChoice) -> Path:
    if name == STARTER:
        return settings.starter_dir / slot
    if name.startswith(("/", "./", "../", "~")):
        return Path(name).expanduser().absolute()
    if not _NAME.fullmatch(name) or ".." in name:
        raise ModelProblem(f"{name!r} is neither a model's name nor a path.")
    row = known(slot, name)
    if row is not None:
        return row.path(settings.model_dir)
    folder = settings.model_dir / slot
    files = [folder / f"{name}{suffix}" for suffix in ("", *_SUFFIXES[slot])] if "/" not in name else []
    return next((file for file in files if file.is_file()), folder / name)


def _weights_in(slot: Slot, folder: Path) -> Path | None:
    """Return the one weights file of `folder`, None when there is none."""
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES[slot] and path.is_file())
    for name in _PREFERRED:
        if folder / name in found:
            return folder / name
    if len(found) > 1:
        raise ModelProblem(f"{folder} holds several weights ({', '.join(p.name for p in found)}); leave one of them.")
    return found[0] if found else None


def _kind(slot: Slot, weights: Path) -> Kind:
    return _KINDS.get(slot, "yolo" if weights.suffix == ".pt" else "detr")


def _what_to_do(slot: Slot, name: str, row: KnownModel | None) -> str:
    if name == STARTER:
        return "The bundled weights belong there; PIXELGATE_STARTER_DIR names another place."
    if row is None:
        return f"Put them there, or set {_variable(slot)}=starter; `pixelgate models list` shows what can be pulled."
    return f"`pixelgate models pull {name}` fetches it; {_variable(slot)}=starter does without."


def _variable(slot: Slot) -> str:
    return f"PIXELGATE_{slot.upper()}_MODEL"
