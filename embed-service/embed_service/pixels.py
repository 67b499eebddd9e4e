"""A picture file to the pixels that a model takes: decoded safely, resized and cropped as the model's own config says.

Only integers leave this module: subtracting the mean and dividing by the deviation is the first step inside the
model, where it costs nothing, so a waiting picture takes 150 kB in place of 600.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.images import DecodeLimits, decode
from pixelgate_common.inference.errors import ModelProblem

Pixels = npt.NDArray[np.uint8]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MODES = ("shortest", "longest", "squash")
# The longer side that previews have. A larger picture is first decoded to it, at a fraction of the cost, so that an
# upload of the original and its stored preview give the same vector.
_DECODE_SIDE_PX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How pixels become a model's input: side `size_px`, square; mean and deviation per channel of values in 0–1.

    `shortest`: the shorter side becomes `resize_px`, then the middle is cut out. `longest`: the longer side becomes
    `size_px`, the rest is filled with `fill` (0–255). `squash`: both sides become `size_px`.
    """

    size_px: int
    resize_px: int
    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, for the fingerprint and the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return what `to_json` gave."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})

    @classmethod
    def from_open_clip(cls, config: dict[str, Any], size: int | tuple[int, int] | list[int], origin: str) -> Self:
        """Read an open_clip `preprocess_cfg` for a model of input `size`; `origin` names it in errors.

        `mean` and `std` must be there. `interpolation` and `resize_mode` may be absent, which by the definition of the
        file means `bicubic` and `shortest`. Anything unknown is refused: a wrong guess gives wrong vectors in silence
        (open_clip#1068).
        """
        side = size if isinstance(size, int) else size[0]
        if not isinstance(size, int) and size[0] != size[1]:
            raise ModelProblem(f"{origin}: inputs that are not square ({size[0]} × {size[1]}) are not supported.")
        mode, interpolation = config.get("resize_mode", "shortest"), config.get("interpolation", "bicubic")
        if mode not in _MODES:
            raise ModelProblem(f"{origin}: the resize_mode {mode!r} is not known.")
        if interpolation not in _FILTERS:
            raise ModelProblem(f"{origin}: the interpolation {interpolation!r} is not known.")
        if config.get("mode", "RGB") != "RGB":
            raise ModelProblem(f"{origin}: the colour mode {config['mode']!r} is not known.")
        return cls(
            size_px=side,
            resize_px=side,
            resize_mode=mode,
            interpolation=interpolation,
            mean=_three(config, "mean", origin),
            std=_three(config, "std", origin),
            fill=int(config.get("fill_color", 0)),
        )


def _three(config: dict[str, Any], name: str, origin: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ModelProblem(f"{origin}: its preprocessing says no {name} of three numbers; nothing is assumed here.")
    if name == "std" and min(values) <= 0:
        raise ModelProblem(f"{origin}: a std must be above 0.")
    return (float(values[0]), float(values[1]), float(values[2]))


def prepare(data: bytes, preprocess: Preprocess, limits: DecodeLimits) -> Pixels:
    """Return the pixels of a picture file, shape (size, size, 3), RGB, 0–255. Raises as `images.decode` does."""
    return fit(decode(data, limits, max_side_px=max(_DECODE_SIDE_PX, 4 * preprocess.size_px)), preprocess)


def fit(picture: Image.Image, preprocess: Preprocess) -> Pixels:
    """Return `picture` (mode RGB) resized and cropped: shape (size, size, 3), 0–255.

    Equal to torchvision's Resize, CenterCrop and open_clip's variants on PIL pictures up to rounding (1 of 255), with
    only those pixels computed that are kept.
    """
    size, resample = preprocess.size_px, _FILTERS[preprocess.interpolation]
    width, height = picture.size
    if preprocess.resize_mode == "squash":
        return np.asarray(picture.resize((size, size), resample))
    if preprocess.resize_mode == "longest":
        ratio = max(height / size, width / size)
        inner = picture.resize((max(1, round(width / ratio)), max(1, round(height / ratio))), resample)
        canvas = Image.new("RGB", (size, size), (preprocess.fill,) * 3)
        canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        return np.asarray(canvas)
    # torchvision: the longer side is cut down to a whole number, the crop's corner is rounded.
    short, long = min(width, height), max(width, height)
    longer_px = int(preprocess.resize_px * long / short)
    new_w, new_h = (longer_px, preprocess.resize_px) if width >= height else (preprocess.resize_px, longer_px)
    left, top = round((new_w - size) / 2), round((new_h - size) / 2)
    step_x, step_y = width / new_w, height / new_h
    box = (left * step_x, top * step_y, min(width, (left + size) * step_x), min(height, (top + size) * step_y))
    return np.asarray(picture.resize((size, size), resample, box=box))
