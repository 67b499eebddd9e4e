"""Embedded colour profiles (ICC) to sRGB, with each profile judged once.

Building a transform costs milliseconds, so it is kept under the profile's digest. A profile that changes no colour by
more than rounding (most cameras embed sRGB itself, under many names) is recognised by trying it, and costs nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import cache
from io import BytesIO
from threading import Lock

import structlog
from PIL import Image, ImageChops, ImageCms

_CACHED_PROFILES = 64
_SAME_COLOR = 2  # of 255: what rounding in sRGB's own profiles amounts to
_COLOR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
log = structlog.get_logger(__name__)

_transforms: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()
_lock = Lock()


def to_srgb(picture: Image.Image, profile: object) -> Image.Image:
    """Return `picture` (L, LA, RGB, RGBA or CMYK) in sRGB; alpha is kept, CMYK becomes RGB, L may become RGB.

    `profile` is the file's ICC profile, None for none. One that is broken, or made for other channels than the picture
    has, is logged and left out, as browsers do.
    """
    if not isinstance(profile, bytes) or not profile:
        return picture.convert("RGB") if picture.mode == "CMYK" else picture
    bare_mode = picture.mode.removesuffix("A")
    transform = _transform(profile, bare_mode)
    if transform is None:
        return picture.convert("RGB") if picture.mode == "CMYK" else picture
    if picture.mode == bare_mode:
        return _apply(picture, transform)
    converted = _apply(picture.convert(bare_mode), transform)
    converted.putalpha(picture.getchannel("A"))
    return converted


def lab_to_srgb(picture: Image.Image) -> Image.Image:
    """Return a picture in CIELAB (D50, 8 bits per channel) as sRGB."""
    return _apply(picture, _lab_transform())


@cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of `profile` for pictures of `mode`, None where there is nothing to do or nothing usable."""
    key = hashlib.sha256(profile).digest(), mode
    with _lock:
        if key in _transforms:
            _transforms.move_to_end(key)
            return _transforms[key]
    transform = _build(profile, mode)
    with _lock:
        _transforms[key] = transform
        if len(_transforms) > _CACHED_PROFILES:
            _transforms.popitem(last=False)
    return transform


def _build(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != _COLOR_SPACES[mode]:
            log.warning("color_profile_ignored", reason=f"made for {space}, the picture is {mode}")
            return None
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
        return None if _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.warning("color_profile_ignored", reason=f"broken: {type(error).__name__}")
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Try the transform on greys (L) or on an even grid of colours (RGB)."""
    if mode == "L":
        probe = Image.frombytes("L", (256, 1), bytes(range(256)))
    elif mode == "RGB":
        steps = range(0, 256, 17)
        colors = bytes(value for red in steps for green in steps for blue in steps for value in (red, green, blue))
        probe = Image.frombytes("RGB", (256, 16), colors)
    else:
        return False
    difference = ImageChops.difference(_apply(probe, transform), probe.convert("RGB"))
    return max(difference.tobytes()) <= _SAME_COLOR


def _apply(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None
    return converted
