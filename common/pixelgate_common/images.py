"""The safe decode: the only way in which a user's bytes become pixels in Python.

The format is decided by content and must be on the list; the size is checked before any pixel is decoded; of a file
with several frames the first is taken; EXIF orientation is applied and colours become sRGB. Whatever Pillow can throw
is turned into one of four errors. No global setting of Pillow is changed, and two are relied on:
`LOAD_TRUNCATED_IMAGES` must stay False, and `MAX_TEXT_CHUNK` bounds compressed PNG texts and profiles (1 MiB each).

The common case (a baseline RGB JPEG, upright, with no or an sRGB profile) does nothing beyond Pillow's own decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

from PIL import (  # importing a plugin registers its format with Image.OPEN
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from pixelgate_common.color_profiles import lab_to_srgb, to_srgb
from pixelgate_common.errors import PixelgateError
from pixelgate_common.image_headers import check_parts, declared_size, exif_orientation, sniff

ColorMode = Literal["RGB", "RGBA"]

#: The formats that can be decoded here, with their media types. AVIF and WebP only where Pillow was built with them.
MEDIA_TYPES: dict[str, str] = {
    JpegImagePlugin.JpegImageFile.format: "image/jpeg",
    PngImagePlugin.PngImageFile.format: "image/png",
    GifImagePlugin.GifImageFile.format: "image/gif",
    BmpImagePlugin.BmpImageFile.format: "image/bmp",
    TiffImagePlugin.TiffImageFile.format: "image/tiff",
    **({WebPImagePlugin.WebPImageFile.format: "image/webp"} if WebPImagePlugin.SUPPORTED else {}),
    **({AvifImagePlugin.AvifImageFile.format: "image/avif"} if AvifImagePlugin.SUPPORTED else {}),
}
_WHITE = (255, 255, 255)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Images of other formats hold the whole file, or a decoder with its canvas, as long as they live.
_LETS_GO_OF_FILE = (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, BmpImagePlugin.BmpImageFile)
# A JPEG is decoded at 1/2, 1/4 or 1/8 as long as this many times the wanted size is left for the exact resize.
_DRAFT_RESERVE = 1.5
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT, _TIFF_ORIENTATION = 256, 257, 322, 323, 274


class ImageRefused(PixelgateError):
    """The base of the four ways in which bytes are not a picture that can be taken."""

    status: ClassVar[int] = 422
    code: ClassVar[str] = "image_refused"
    title: ClassVar[str] = "The picture cannot be taken"


class NotAnImage(ImageRefused):
    """The bytes are no picture, whatever their name says."""

    code: ClassVar[str] = "not_an_image"
    title: ClassVar[str] = "This is not a picture"


class UnsupportedFormat(ImageRefused):
    """The bytes are a picture or document of a kind that is not taken."""

    status: ClassVar[int] = 415
    code: ClassVar[str] = "unsupported_format"
    title: ClassVar[str] = "This kind of picture is not taken"


class ImageTooLarge(ImageRefused):
    """The picture has more bytes or pixels than allowed, or a colour profile beyond reason."""

    status: ClassVar[int] = 413
    code: ClassVar[str] = "image_too_large"
    title: ClassVar[str] = "The picture is too large"


class BrokenImage(ImageRefused):
    """The bytes begin like a picture but are damaged or cut off."""

    code: ClassVar[str] = "broken_image"
    title: ClassVar[str] = "The picture is damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """What is taken: at most `max_bytes` and `max_pixels` (of the first frame), of `formats` as Pillow names them."""

    max_bytes: int = 25 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_profile_bytes: int = 4 * 1024 * 1024
    formats: frozenset[str] = frozenset(MEDIA_TYPES)


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a picture's header says. `width` and `height` are as stored: `upright_size` has the orientation applied.

    `mode` is Pillow's (1, L, LA, P, RGB, RGBA, CMYK, I;16 …), `orientation` EXIF's 1 to 8 (upright is 1), `animated`
    says that there is more than one frame or page.
    """

    format: str
    media_type: str
    width: int
    height: int
    mode: str
    orientation: int
    animated: bool
    has_alpha: bool
    has_icc: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as a viewer shows them."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def inspect(data: bytes | Path | BinaryIO, limits: DecodeLimits = DEFAULT_LIMITS) -> ImageInfo:
    """Return what the header says, with no pixel decoded. Raises as `decode` does, except for damaged pixels."""
    with _opened(data, limits) as (image, form):
        width, height = _stored_size(image)
        return ImageInfo(
            format=form,
            media_type=MEDIA_TYPES[form],
            width=width,
            height=height,
            mode=image.mode,
            orientation=_orientation(image),
            animated=bool(getattr(image, "is_animated", False)),
            has_alpha=image.has_transparency_data,
            has_icc=bool(image.info.get("icc_profile")),
        )


def decode(
    data: bytes | Path | BinaryIO,
    limits: DecodeLimits = DEFAULT_LIMITS,
    *,
    mode: ColorMode = "RGB",
    max_side_px: int | None = None,
) -> Image.Image:
    """Return the first frame upright, in sRGB, 8 bits per channel, with an empty `info`.

    In mode RGB what is transparent is laid on white. With `max_side_px` the longer side is at most that (never
    enlarged), and a large JPEG is decoded at a fraction, which is several times cheaper. Raises `NotAnImage` (422),
    `UnsupportedFormat` (415), `ImageTooLarge` (413) and `BrokenImage` (422).
    """
    with _opened(data, limits) as (image, _):
        wanted, box = _fit(image.size, max_side_px), None
        if wanted and isinstance(image, JpegImagePlugin.JpegImageFile):
            draft = image.draft(None, (ceil(wanted[0] * _DRAFT_RESERVE), ceil(wanted[1] * _DRAFT_RESERVE)))
            box = draft[1] if draft else None
        sixteen_bit = any("16" in str(tile.args) for tile in image.tile)
        # Pillow turns a TIFF upright while loading it, and leaves every other format as it is stored.
        turn = None if isinstance(image, TiffImagePlugin.TiffImageFile) else _TRANSPOSE.get(_orientation(image))
        profile = image.info.get("icc_profile")
        image.load()
        picture = _to_8_bit(image, sixteen_bit)
        if wanted:
            picture = picture.resize(wanted, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        picture = _to_color_mode(to_srgb(picture, profile), mode)
        if turn is not None:
            picture = picture.transpose(turn)
        elif picture is image and type(image) not in _LETS_GO_OF_FILE:
            picture = image.copy()
        # A profile or orientation that is left here would be written again when the picture is saved.
        picture.info = {}
        return picture


@contextmanager
def _opened(data: bytes | Path | BinaryIO, limits: DecodeLimits) -> Iterator[tuple[ImageFile, str]]:
    """Yield the picture with only its header read and checked against `limits`; what is thrown becomes one of ours."""
    content = _read(data, limits)
    form = sniff(content)
    if form is None:
        raise NotAnImage("The file is empty." if not content else "The file is not a picture that is known here.")
    if form not in limits.formats or form not in MEDIA_TYPES:
        known = ", ".join(sorted(limits.formats & MEDIA_TYPES.keys()))
        raise UnsupportedFormat(f"{form} files are not taken. Convert it to one of: {known}.")
    try:
        size = declared_size(form, content)
        if size is not None:
            _check_size(size, limits)
        check_parts(form, content)
        # Not Image.open: it would try other formats, and judge sizes by a global that any library can change.
        opener, _ = Image.OPEN[form]
        with opener(BytesIO(content), "") as image:
            _check_size(_stored_size(image), limits)
            _check_size(image.size, limits)
            _check_extras(image, limits)
            yield image, form
    except PixelgateError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageTooLarge(
            f"The picture needs more memory than one of {limits.max_pixels} pixels may take (PIXELGATE_MAX_PIXELS)."
        ) from error
    except ValueError as error:
        if "MAX_TEXT" in str(error):  # Pillow's only sign of it
            raise ImageTooLarge(f"A text or colour profile in the {form} file unpacks to more than 1 MiB.") from error
        raise _broken(form) from error
    except Exception as error:  # Pillow throws whatever its parsers stumble over: OSError, SyntaxError, IndexError …
        raise _broken(form) from error


def _broken(form: str) -> BrokenImage:
    return BrokenImage(f"The {form} file is damaged or cut off. Send the complete file.")


def _read(data: bytes | Path | BinaryIO, limits: DecodeLimits) -> bytes:
    if isinstance(data, Path):
        with data.open("rb") as file:
            content = file.read(limits.max_bytes + 1)
    elif isinstance(data, bytes):
        content = data
    else:
        data.seek(0)
        content = data.read(limits.max_bytes + 1)
    if len(content) > limits.max_bytes:
        raise ImageTooLarge(f"The file has more than {limits.max_bytes} bytes (PIXELGATE_MAX_UPLOAD_MB).")
    return content


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"The picture has {width} × {height} pixels; at most {limits.max_pixels} are taken (PIXELGATE_MAX_PIXELS)."
        )


def _check_extras(image: ImageFile, limits: DecodeLimits) -> None:
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and len(profile) > limits.max_profile_bytes:
        raise ImageTooLarge(f"The picture's colour profile has more than {limits.max_profile_bytes} bytes.")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # libtiff allocates a whole tile, however small the picture is.
        tile = image.tag_v2.get(_TIFF_TILE_WIDTH, 1), image.tag_v2.get(_TIFF_TILE_HEIGHT, 1)
        _check_size((int(tile[0]), int(tile[1])), limits)


def _stored_size(image: ImageFile) -> tuple[int, int]:
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its `size` is upright already
        return int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
    return image.size


def _orientation(image: ImageFile) -> int:
    """Return the EXIF orientation; of a PNG only what stands before the pixels counts, as in browsers."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        value = image.tag_v2.get(_TIFF_ORIENTATION, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return exif_orientation(image.info.get("exif"))


def _fit(size: tuple[int, int], max_side_px: int | None) -> tuple[int, int] | None:
    """Return the size with the longer side at `max_side_px`, None if it already fits."""
    longer = max(size)
    if max_side_px is None or longer <= max_side_px:
        return None
    return max(1, round(size[0] * max_side_px / longer)), max(1, round(size[1] * max_side_px / longer))


def _to_8_bit(image: Image.Image, sixteen_bit: bool) -> Image.Image:
    """Return `image` in one of L, LA, RGB, RGBA, CMYK; of 16 bits the upper 8 are kept."""
    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I;16"):
        # convert("L") would clip at 255 instead of scaling.
        image = Image.frombytes("L", image.size, image.tobytes()[0 if mode.endswith("B") else 1 :: 2])
        mode = "L"
    elif mode in ("I", "F"):
        image, mode = _scaled(image), "L"
    if key is not None and mode in ("1", "L", "RGB"):
        image.info["transparency"] = _upper_8_bits(key) if sixteen_bit else key
        return image.convert("RGBA")
    if mode in ("L", "LA", "RGB", "RGBA"):
        return image
    if mode == "CMYK":
        # Pillow takes every CMYK JPEG as inverted; only those with Adobe's marker are.
        if isinstance(image, JpegImagePlugin.JpegImageFile) and "adobe" not in image.info:
            return ImageChops.invert(image)
        return image
    if mode == "LAB":
        return lab_to_srgb(image)
    return image.convert({"1": "L", "La": "LA"}.get(mode) or ("RGBA" if image.has_transparency_data else "RGB"))


def _upper_8_bits(key: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return key >> 8 if isinstance(key, int) else tuple(part >> 8 for part in key)


def _scaled(image: Image.Image) -> Image.Image:
    """Return 32-bit integers or floats as L: the smallest usual white (1, 255, 2¹⁶-1, 2³²-1) that fits becomes 255."""
    extrema = image.getextrema()
    largest = float(extrema[1]) if isinstance(extrema[1], (int, float)) else 255.0
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    white = next((white for white in whites if largest <= white), 4294967295.0)
    return image.convert("F").point(lambda value: value * (255 / white) + 0).convert("L")


def _to_color_mode(picture: Image.Image, mode: ColorMode) -> Image.Image:
    if picture.mode == mode:
        return picture
    if mode == "RGBA" or picture.mode not in ("RGBA", "LA"):
        return picture.convert(mode)
    picture = picture.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return picture.convert("RGB")
    white = Image.new("RGB", picture.size, _WHITE)
    white.paste(picture, mask=alpha)
    return white
