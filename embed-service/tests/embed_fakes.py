"""Small fakes, and models with random weights in the layouts of real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from embed_service.artifacts import Artifact, TextFacts
from embed_service.loading import Model, TextSide
from embed_service.pixels import Preprocess
from PIL import Image
from pixelgate_common.contracts.embed import EmbedModel
from pixelgate_common.images import DecodeLimits
from pixelgate_common.inference.resident import Resident
from pixelgate_common.vectors import encode_vector

SQUASH_8 = Preprocess(
    size_px=8, resize_px=8, resize_mode="squash", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def scenery(width: int, height: int) -> Image.Image:
    """A picture with structure of every size."""
    rng = np.random.default_rng(width * 10_000 + height)
    layers = [
        Image.fromarray(rng.integers(0, 256, (max(1, height // k), max(1, width // k), 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for k in (2, 8, 32)
    ]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG of one colour."""
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG", quality=95)
    return file.getvalue()


class ColorRunner:
    """Gives the mean colour as a unit vector: of pixels (size, size, 3), or of token ids repeated three times."""

    good_batch = 4

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.batches: list[int] = []
        self.error: Exception | None = None

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        self.batches.append(len(batch))
        if self.error is not None:
            raise self.error
        rows = [
            one.reshape(-1, 3).mean(axis=0) if one.ndim == 3 else np.array([len(one), one.sum(), 1.0]) for one in batch
        ]
        vectors = np.array(rows, dtype=np.float32) + 1e-3
        unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def fake_model(
    slot: str = "clip", fingerprint: str = "clip-fake", *, texts: bool = True, max_bytes: int = 10**6
) -> Model:
    """A model without weights: mean colours in place of meaning."""
    facts = TextFacts(context=16, light=True, clean="whitespace", trims=True, end_id=None)
    vector = encode_vector(np.array([1.0, 0.0, 0.0]))
    artifact = Artifact(
        folder=Path("nowhere"),
        fingerprint=fingerprint,
        dim=3,
        preprocess=SQUASH_8,
        text=facts,
        weights_sha256="0" * 64,
        image_vector=vector,
        text_vector=vector,
    )

    def tokenize(some: list[str]) -> npt.NDArray[np.int64]:
        ids = np.zeros((len(some), 16), dtype=np.int64)
        for row, text in zip(ids, some, strict=True):
            row[: min(15, len(text))] = 1
            row[min(15, len(text))] = 99
        return ids

    return Model(
        about=EmbedModel(
            slot=slot,
            model=f"{slot}/fake",
            fingerprint=fingerprint,
            dim=3,
            inputs=["image", "text"] if texts else ["image"],
            image_size_px=8,
            backend="openvino",
            precision="fp32",
            device="cpu",
        ),
        preprocess=SQUASH_8,
        limits=DecodeLimits(max_bytes=max_bytes, max_pixels=10**6),
        image_runner=ColorRunner(),
        text=TextSide(artifact=artifact, tokenize=tokenize, runner=ColorRunner()) if texts else None,
    )


def kept(models: Mapping[str, Sequence[Model]]) -> dict[str, list[Resident[Model]]]:
    """Models that are in memory already."""

    def resident(model: Model) -> Resident[Model]:
        return Resident(model.about.model, lambda: model)

    return {slot: [resident(model) for model in some] for slot, some in models.items()}


TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS: dict[str, Any] = {
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def write_tiny_clip(folder: Path, *, seed: int = 0, preprocess: dict[str, Any] | None = PREPROCESS) -> Path:
    """Write a tiny open_clip model with random weights as a local folder; None leaves its preprocessing out."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**TINY_CLIP)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    config = {"model_cfg": TINY_CLIP, **({} if preprocess is None else {"preprocess_cfg": preprocess})}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def write_narrow_resnet(folder: Path, *, width: int = 8, size: int = 64, **changes: Any) -> Path:
    """Write a narrow ResNet34 with random weights as the starter set has it; a change to None leaves a field out."""
    import torch
    from embed_service.towers import resnet34
    from safetensors.torch import save_file

    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(resnet34(width, 5).state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "resnet34",
        "width": width,
        "num_classes": 5,
        "image_size": size,
        **PREPROCESS,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder
