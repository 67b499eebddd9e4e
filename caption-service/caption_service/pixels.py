"""A picture file to the pixels that BLIP takes: decoded safely, made a square as `preprocessor_config.json` says.

Only integers leave this module: subtracting the mean and dividing by the deviation is the first step inside the
model, so a waiting picture takes 440 kB in place of 1.8 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.images import DecodeLimits, decode
from pixelgate_common.inference.errors import ModelProblem

Pixels = npt.NDArray[np.uint8]

# The longer side that previews have. A larger picture is first decoded to it, at a fraction of the cost, so that an
# upload of the original and its stored preview give the same caption.
_DECODE_SIDE_PX = 1024
_FILTERS = {2: Image.Resampling.BILINEAR, 3: Image.Resampling.BICUBIC}  # transformers' numbers are Pillow's
# By the definition of the file these are done unless it says otherwise; a model that wants otherwise is not BLIP.
_ALWAYS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_KNOWN = {*_ALWAYS, "size", "resample", "rescale_factor", "image_mean", "image_std"}
# What changes no pixel of a picture that is squashed to a square.
_IDLE = {
    *("image_processor_type", "processor_class", "feature_extractor_type", "default_to_square", "data_format"),
    *("input_data_format", "return_tensors", "device", "disable_grouping", "size_divisor"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How pixels become the input: both sides `size_px`; mean and deviation per channel of values in 0–1.

    `resample` is Pillow's number of the filter (2 bilinear, 3 bicubic).
    """

    size_px: int
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, for the fingerprint and the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], origin: str) -> Self:
        """Read a `preprocessor_config.json`; `origin` names it in errors.

        Size, filter, mean and deviation must be there. Anything unknown that is switched on is refused: a wrong guess
        gives wrong captions in silence.
        """
        unknown = sorted(k for k, v in config.items() if k not in _KNOWN | _IDLE and v not in (None, False))
        if unknown:
            raise ModelProblem(f"{origin} asks for {', '.join(unknown)}, which is not known here.")
        for name in _ALWAYS:
            if config.get(name, True) not in (True, None):
                raise ModelProblem(f"{origin}: without {name} there is no way known here to make its input.")
        factor = config.get("rescale_factor", 1 / 255)
        if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
            raise ModelProblem(f"{origin}: a rescale_factor other than 1/255 is not known.")
        if config.get("resample") not in _FILTERS:
            raise ModelProblem(f"{origin}: the resample filter {config.get('resample')!r} is missing or not known.")
        return cls(
            size_px=_side(config.get("size"), origin),
            resample=int(config["resample"]),
            mean=_three(config, "image_mean", origin),
            std=_three(config, "image_std", origin),
        )


def _side(size: Any, origin: str) -> int:
    if isinstance(size, Mapping) and set(size) == {"height", "width"} and size["height"] == size["width"]:
        size = size["height"]
    if not isinstance(size, int) or isinstance(size, bool) or not 8 <= size <= 2048:
        raise ModelProblem(f"{origin}: its size ({size!r}) is missing or no square of 8–2048 px; nothing is assumed.")
    return size


def _three(config: Mapping[str, Any], name: str, origin: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ModelProblem(f"{origin} says no {name} of three numbers; nothing is assumed here.")
    if name == "image_std" and min(values) <= 0:
        raise ModelProblem(f"{origin}: image_std must be above 0.")
    return (float(values[0]), float(values[1]), float(values[2]))


def prepare(data: bytes, preprocess: Preprocess, limits: DecodeLimits) -> Pixels:
    """Return the pixels of a picture file, shape (size, size, 3), RGB, 0–255. Raises as `images.decode` does."""
    return fit(decode(data, limits, max_side_px=max(_DECODE_SIDE_PX, 2 * preprocess.size_px)), preprocess)


def fit(picture: Image.Image, preprocess: Preprocess) -> Pixels:
    """Return `picture` (mode RGB) squashed to (size, size, 3), 0–255."""
    side = preprocess.size_px
    return np.asarray(picture.resize((side, side), _FILTERS[preprocess.resample]))
