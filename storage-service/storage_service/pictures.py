"""What is done with a picture's bytes, in a child process: proof that it is one, its variants, EXIF and hashes.

How a file is proved to be a picture. Every pixel is decoded, once, from the file to the preview, in one stream that
never holds the whole picture (libvips, `access="sequential"`, `fail_on="error"`, which a cut-off file trips). Letting
the JPEG decoder skip work (shrink-on-load) would still read every compressed byte, but leave pixels uncomputed; on a
12-megapixel JPEG it saves 10 ms of 47, so the full proof is kept. What made the chain slow was something else: libvips'
conversion to sRGB goes through CIELAB in floats and costs 80 ms on the preview alone. Most pictures have no profile
or that of sRGB, so the conversion is left to `color_profiles`, which knows a profile that changes nothing.
The smaller variants are made from the larger ones. One thread per child: as many children as processors do
more than one child with as many threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

# Read by the libraries when they are loaded, in this import. Threads of their own would fight with those of the other
# children; and the process that forks the children has to have one thread only.
os.environ.setdefault("VIPS_CONCURRENCY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyvips
from PIL import Image
from pixelgate_common.color_profiles import to_srgb
from pixelgate_common.images import BrokenImage, DecodeLimits, ImageInfo, ImageTooLarge, decode, inspect

from storage_service.exif import JsonValue, captured_at, read_exif
from storage_service.hashes import PHASH_SIDE_PX, THUMBHASH_SIDE_PX, Pixels, perceptual_hash, thumbhash

PREVIEW_SIDE_PX, MEDIUM_SIDE_PX, SMALL_SIDE_PX = 1024, 300, 150
"""The square that each variant fits in; a smaller picture is not enlarged."""
_JPEG_QUALITY, _WEBP_QUALITY = 85, 85
_NO_MEMORY = re.compile("out of memory|insufficient memory", re.IGNORECASE)
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_TURNS: dict[int, Callable[[Any], Any]] = {
    2: lambda image: image.fliphor(),
    3: lambda image: image.rot180(),
    4: lambda image: image.flipver(),
    5: lambda image: image.rot90().fliphor(),
    6: lambda image: image.rot90(),
    7: lambda image: image.rot270().fliphor(),
    8: lambda image: image.rot270(),
}


@dataclass(frozen=True)
class Processed:
    """What a picture turned out to be; `width` and `height` as it is looked at, `variants` the files that were written.

    `has_alpha` says that some pixel is transparent; `phash` is signed, as Postgres keeps it.
    """

    format: str
    media_type: str
    width: int
    height: int
    has_alpha: bool
    exif: dict[str, JsonValue]
    captured_at: datetime | None
    phash: int
    thumbhash: bytes
    variants: dict[str, Path]


def process(path: Path, folder: Path, limits: DecodeLimits) -> Processed:
    """Prove that the file at `path` is a picture within `limits`, and write its variants into `folder`.

    Raises `NotAnImage`, `UnsupportedFormat`, `ImageTooLarge` or `BrokenImage`, and OSError when the disk is full.
    """
    info = inspect(path, limits)
    try:
        preview, block = _load(path, info, limits)
        preview = _opaque_if_it_is(preview)
    except pyvips.Error as error:
        if _NO_MEMORY.search(str(error)):
            raise ImageTooLarge("The picture takes more memory than a decoder may use.") from error
        raise BrokenImage(f"The {info.format} file is damaged or cut off. Send the complete file.") from error
    medium = _fit(preview, MEDIUM_SIDE_PX)
    small = _fit(medium, SMALL_SIDE_PX)
    variants = {"preview": preview, "medium": medium, "small": small}
    exif = read_exif(block) if block else {}
    width, height = info.upright_size
    return Processed(
        format=info.format.lower(),
        media_type=info.media_type,
        width=width,
        height=height,
        has_alpha=bool(preview.hasalpha()),
        exif=exif,
        captured_at=captured_at(exif),
        phash=perceptual_hash(_luma(preview)),
        thumbhash=thumbhash(_rgba(_fit(medium, THUMBHASH_SIDE_PX))),
        variants={name: _write(image, folder / name) for name, image in variants.items()},
    )


def warm_up() -> None:
    """Do once what the first picture would otherwise wait for: libvips makes its types and tables on first use."""
    image = pyvips.Image.black(64, 64, bands=3).copy(interpretation="srgb")
    pyvips.Image.jpegload_buffer(_encoded(image)).thumbnail_image(32).copy_memory()
    perceptual_hash(np.zeros((PHASH_SIDE_PX, PHASH_SIDE_PX), np.uint8))


def _load(path: Path, info: ImageInfo, limits: DecodeLimits) -> tuple[Any, bytes | None]:
    """Return the preview, upright and in sRGB, in memory, and the file's EXIF block."""
    loader = _LOADERS.get(info.format)
    if loader is None or info.mode == "CMYK":
        # What libvips lacks, what comes in too many kinds, and CMYK, which it would convert by a profile of its own:
        # rare enough that the exact reading matters more than the speed.
        picture = decode(path, limits, mode="RGBA" if info.has_alpha else "RGB", max_side_px=PREVIEW_SIDE_PX)
        return _from_pillow(picture), _exif_block(path, info)
    # The loader is named, so that no content can choose another one.
    image = loader(str(path), access="sequential", fail_on="error")
    if (image.width, image.height) != (info.width, info.height):
        raise BrokenImage(f"The {info.format} file says two different sizes of itself.")
    block = image.get("exif-data") if image.get_typeof("exif-data") else None
    profile = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
    preview = _fit(image, PREVIEW_SIDE_PX)
    if preview.format != "uchar":
        preview = preview.colourspace("srgb" if preview.bands >= 3 else "b-w").cast("uchar").copy_memory()
    if profile is not None:
        preview = _from_pillow(to_srgb(_to_pillow(preview), profile))
    if preview.bands < 3:
        preview = preview.colourspace("srgb").copy_memory()
    # All variants fit squares, so turning the small preview gives what turning the large picture would.
    turn = _TURNS.get(info.orientation)
    return (turn(preview).copy_memory() if turn else preview), block


_LOADERS: dict[str, Callable[..., Any]] = {
    "JPEG": pyvips.Image.jpegload,
    "PNG": pyvips.Image.pngload,
    "WEBP": pyvips.Image.webpload,
}


def _fit(image: Any, side_px: int) -> Any:
    """Return `image` in memory, shrunk to fit the square, never enlarged; alpha is weighed as it must be."""
    return image.thumbnail_image(side_px, height=side_px, size="down", no_rotate=True).copy_memory()


def _opaque_if_it_is(image: Any) -> Any:
    """Drop an alpha channel that says nothing, so that the variants can be JPEG."""
    if image.hasalpha() and image[image.bands - 1].min() == 255:
        return image.extract_band(0, n=image.bands - 1).copy_memory()
    return image


def _luma(image: Any) -> Pixels:
    if image.hasalpha():
        image = image.flatten(background=[255, 255, 255])
    small = image.thumbnail_image(PHASH_SIDE_PX, height=PHASH_SIDE_PX, size="force", no_rotate=True)
    return _pixels(small.colourspace("b-w"))[..., 0]


def _rgba(image: Any) -> Pixels:
    return _pixels(image if image.hasalpha() else image.bandjoin(255))


def _pixels(image: Any) -> Pixels:
    data = np.frombuffer(image.write_to_memory(), np.uint8)
    return data.reshape(image.height, image.width, image.bands)


def _to_pillow(image: Any) -> Image.Image:
    return Image.frombytes(_MODES[image.bands], (image.width, image.height), image.write_to_memory())


def _from_pillow(picture: Image.Image) -> Any:
    bands = len(picture.getbands())
    image = pyvips.Image.new_from_memory(picture.tobytes(), picture.width, picture.height, bands, "uchar")
    return image.copy(interpretation="srgb" if bands >= 3 else "b-w").copy_memory()


def _exif_block(path: Path, info: ImageInfo) -> bytes | None:
    if info.format == "TIFF":
        return path.read_bytes()  # a TIFF file is the structure that an EXIF block has
    loader = pyvips.Image.heifload if info.format == "AVIF" and _has_avif() else _LOADERS.get(info.format)
    if loader is not None:
        image = loader(str(path))  # reads the header only
        return image.get("exif-data") if image.get_typeof("exif-data") else None
    return None


@cache
def _has_avif() -> bool:
    return bool(pyvips.type_find("VipsOperation", "heifload"))


def _encoded(image: Any) -> bytes:
    """Return the file of a variant: WebP where pixels are transparent, else JPEG; nothing but pixels in either."""
    if image.hasalpha():
        # Effort 2 of 6: half the time of the default for 3 % more bytes.
        data = image.webpsave_buffer(Q=_WEBP_QUALITY, effort=2, keep="none")
    else:
        data = image.jpegsave_buffer(Q=_JPEG_QUALITY, keep="none")
    return bytes(data)


def _write(image: Any, path: Path) -> Path:
    # Python writes the file: libvips would report a full disk as one more text.
    path.write_bytes(_encoded(image))
    return path
