"""The models that Pixelgate knows by name: for each, where it comes from, which files it has and how they lie on disk.

A digest stands here only where its publisher, or the library that loads the file, states it: torchvision's file names
carry the first 8 hex digits of the SHA-256, and rembg 2.0.86 lists MD5 sums in `rembg/sessions/*.py`. All other files
are held to what they were when they were first pulled (`models.lock`). Licences are those that the publishers state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Slot = Literal["clip", "resnet", "caption", "objects", "cutout"]
SLOTS: tuple[Slot, ...] = get_args(Slot)
Kind = Literal["open_clip", "torchvision", "blip", "yolo", "detr", "matte"]
"""What loads it: open_clip; torchvision; transformers (BLIP, DETR family); ultralytics; an ONNX file in rembg's way."""
Hub = Literal["huggingface", "torchvision", "ultralytics", "rembg"]
DiskState = Literal["whole", "partly", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFile:
    """One file of a model: the first of `names` that its publisher has.

    `sha256_prefix` and `md5` are the publisher's; None: nobody states one.
    """

    names: tuple[str, ...]
    required: bool = True
    sha256_prefix: str | None = None
    md5: str | None = None

    def in_folder(self, folder: Path) -> Path | None:
        """Return where the file lies in `folder`, None when it does not."""
        return next((folder / name for name in self.names if (folder / name).is_file()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One model. `source` is the hub's repository or release; `folder` lies in the model folder.

    `licence` is that of the weights, None when the publisher states none that is known here.
    """

    slot: Slot
    name: str
    kind: Kind
    hub: Hub
    source: str
    folder: str
    files: tuple[WantedFile, ...]
    licence: str | None

    def state(self, model_dir: Path) -> DiskState:
        """Return whether the required files are on disk; a file that is being pulled does not count as there."""
        required = [file for file in self.files if file.required]
        here = sum(1 for file in required if file.in_folder(model_dir / self.folder))
        if here == len(required):
            return "whole"
        drafts = (model_dir / self.folder / f"{name}.part" for file in self.files for name in file.names)
        return "partly" if here or any(draft.exists() for draft in drafts) else "missing"

    def missing_files(self, model_dir: Path) -> list[str]:
        """Return the names of the required files that are not on disk."""
        folder = model_dir / self.folder
        return [" or ".join(file.names) for file in self.files if file.required and file.in_folder(folder) is None]

    def path(self, model_dir: Path) -> Path:
        """Return what a loader is given: the file of a model of one file, else the folder."""
        return model_dir / self.folder / self.files[0].names[0] if self.is_one_file else model_dir / self.folder

    @property
    def is_one_file(self) -> bool:
        """Whether the model is one file that lies beside others of its slot."""
        return self.folder == self.slot


_TRANSFORMERS_WEIGHTS = WantedFile(names=("model.safetensors", "pytorch_model.bin"))


def _clip(name: str, source: str) -> KnownModel:
    # The architecture and the preprocessing of these names stand in open_clip's own table; weights are all it needs.
    files = (
        WantedFile(
            names=(
                "open_clip_model.safetensors",
                "open_clip_pytorch_model.safetensors",
                "open_clip_pytorch_model.bin",
            )
        ),
    )
    return KnownModel(
        slot="clip",
        name=name,
        kind="open_clip",
        hub="huggingface",
        source=source,
        folder=f"clip/{name}",
        files=files,
        licence="MIT",
    )


def _blip(name: str) -> KnownModel:
    return KnownModel(
        slot="caption",
        name=name,
        kind="blip",
        hub="huggingface",
        source=f"Salesforce/{name}",
        folder=f"caption/{name}",
        files=(
            _TRANSFORMERS_WEIGHTS,
            WantedFile(names=("config.json",)),
            WantedFile(names=("preprocessor_config.json",)),
            WantedFile(names=("vocab.txt",)),
            WantedFile(names=("tokenizer_config.json",), required=False),
            WantedFile(names=("tokenizer.json",), required=False),
            WantedFile(names=("special_tokens_map.json",), required=False),
            WantedFile(names=("generation_config.json",), required=False),
        ),
        licence="BSD-3-Clause",
    )


def _detr(name: str, source: str) -> KnownModel:
    return KnownModel(
        slot="objects",
        name=name,
        kind="detr",
        hub="huggingface",
        source=source,
        folder=f"objects/{name}",
        files=(
            _TRANSFORMERS_WEIGHTS,
            WantedFile(names=("config.json",)),
            WantedFile(names=("preprocessor_config.json",)),
        ),
        licence="Apache-2.0",
    )


def _yolo(name: str) -> KnownModel:
    return KnownModel(
        slot="objects",
        name=name,
        kind="yolo",
        hub="ultralytics",
        source="v8.4.0",  # the release that ultralytics 8.4.190 takes its assets from
        folder="objects",
        files=(WantedFile(names=(f"{name}.pt",)),),
        licence="AGPL-3.0",
    )


def _matte(name: str, md5: str, licence: str | None) -> KnownModel:
    return KnownModel(
        slot="cutout",
        name=name,
        kind="matte",
        hub="rembg",
        source="v0.0.0",  # the release that rembg 2.0.86 takes its models from
        folder="cutout",
        files=(WantedFile(names=(f"{name}.onnx",), md5=md5),),
        licence=licence,
    )


KNOWN: tuple[KnownModel, ...] = (
    # The first of each slot is the standard one.
    _clip("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    _clip("ViT-B-16/laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    _clip("ViT-L-14/laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    KnownModel(
        slot="resnet",
        name="resnet34/IMAGENET1K_V1",
        kind="torchvision",
        hub="torchvision",
        source="models",
        folder="resnet/resnet34/IMAGENET1K_V1",
        files=(WantedFile(names=("resnet34-b627a593.pth",), sha256_prefix="b627a593"),),
        licence="BSD-3-Clause",
    ),
    _blip("blip-image-captioning-base"),
    _blip("blip-image-captioning-large"),
    _yolo("yolo26n"),
    _yolo("yolo26s"),
    _yolo("yolo26m"),
    _yolo("yolo26l"),
    _yolo("yolo26x"),
    _yolo("yolo11n"),
    _yolo("yolo11s"),
    _detr("rtdetr_r18vd", "PekingU/rtdetr_r18vd"),
    _detr("rtdetr_r50vd", "PekingU/rtdetr_r50vd"),
    _detr("detr-resnet-50", "facebook/detr-resnet-50"),
    _matte("u2net", "60024c5c889badc19c04ad937298a77b", "Apache-2.0"),
    _matte("u2netp", "8e83ca70e441ab06c318d82300c84806", "Apache-2.0"),
    _matte("isnet-general-use", "fc16ebd8b0c10d971d3513d564d01e29", "Apache-2.0"),
    _matte("silueta", "55e59e0d8062d2f5d013f4725ee84782", None),
    _matte("u2net_human_seg", "c09ddc2e0104f800e3e1bb4652583d1f", "Apache-2.0"),
    _matte("isnet-anime", "6f184e756bb3bd901c8849220a83e38e", None),
)

STANDARD: dict[Slot, KnownModel] = {slot: next(model for model in KNOWN if model.slot == slot) for slot in SLOTS}


def known(slot: Slot, name: str) -> KnownModel | None:
    """Return the model called `name` in `slot`, None when it is not known here."""
    return next((model for model in KNOWN if model.slot == slot and model.name == name), None)
