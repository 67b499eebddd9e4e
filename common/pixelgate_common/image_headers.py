"""What a picture file says before anything is decoded: its format by content, its size, how many parts it has.

Pillow walks a file's parts in Python and keeps what it finds, so a file made of millions of empty parts costs minutes
or gigabytes before its size is even known. Real pictures have tens of parts; the limits here are far above them.
"""

from __future__ import annotations

import struct

from PIL import JpegImagePlugin

_MAX_JPEG_SEGMENTS = 2_000  # a 16 MB colour profile takes 255
_MAX_JPEG_JUNK = 64 * 1024
_MAX_JPEG_SCANS = 128  # the longest scripts of encoders have 64, thumbnails included a few more
_MAX_PNG_CHUNKS = 100_000  # 25 MiB in IDAT chunks of 256 bytes
_MAX_PNG_ANCILLARY = 2_000
_SEQUENTIAL = (0xFFC0, 0xFFC1)  # baseline and extended, by Huffman codes; the number of channels is in byte 7
_NO_FRAME = (0xFFC4, 0xFFC8, 0xFFCC)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG_SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
)
_BMP_HEADER_SIZES = frozenset((12, 16, 40, 52, 56, 64, 108, 124))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))


def sniff(data: bytes) -> str | None:
    """Return the format's name by content: one that Pillow knows, another well-known one, or None for no picture."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 256), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if brands & _HEIF_BRANDS else None
    # "BM" alone begins many a text: the size of the second header must be a known one as well.
    if data[:2] == b"BM" and len(data) >= 18 and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!")) and b"<svg" in start):
        return "SVG"
    return None


def declared_size(form: str, data: bytes) -> tuple[int, int] | None:
    """Return width and height as the header says, for formats where Pillow would allocate the canvas to find out."""
    try:
        if form == "PNG" and data[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if form == "WEBP":
            return _webp_size(data)
    except struct.error:
        pass  # a header that is cut off: opening it will say so
    return None


def check_parts(form: str, data: bytes) -> None:
    """Raise ValueError when a JPEG or PNG file consists of more parts than any real picture does."""
    if form == "JPEG":
        _check_jpeg(data)
    elif form == "PNG":
        _check_png(data)


def exif_orientation(exif: object) -> int:
    """Return the orientation (1 to 8) in the first directory of an EXIF block; 1 where there is none or it is broken.

    Read by hand because it costs a few microseconds, raises nothing, and touches no other tag.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _webp_size(data: bytes) -> tuple[int, int] | None:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _check_jpeg(data: bytes) -> None:
    """Walk the segments as Pillow does, by its own table of which markers carry a length."""
    at, junk, interleaved = 2, 0, None
    for _ in range(_MAX_JPEG_SEGMENTS):
        found = data.find(b"\xff", at)
        if found < 0:
            return
        junk += found - at
        at = found + 1
        while junk <= _MAX_JPEG_JUNK and data[at : at + 1] == b"\xff":
            at, junk = at + 1, junk + 1
        if junk > _MAX_JPEG_JUNK:
            raise ValueError("too much between the segments")
        marker = 0xFF00 | data[at] if at < len(data) else 0
        at += 1
        if marker == 0xFFDA:
            # A sequential picture whose first scan has all channels ends with it: most do, and need no counting.
            # Inside compressed data 0xFF is always followed by 0 or a restart, so what is counted are scans.
            if data[at + 2 : at + 3] != interleaved and data.count(b"\xff\xda", at) > _MAX_JPEG_SCANS:
                raise ValueError("too many scans")
            return
        if marker in _SEQUENTIAL:
            interleaved = data[at + 7 : at + 8]
        elif 0xFFC0 <= marker <= 0xFFCF and marker not in _NO_FRAME:
            interleaved = None
        if marker != 0xFF00:
            if marker not in JpegImagePlugin.MARKER:
                return
            if JpegImagePlugin.MARKER[marker][2] is not None:
                at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise ValueError("too many segments")


def _check_png(data: bytes) -> None:
    at, ancillary = len(_PNG_SIGNATURE), 0
    for _ in range(_MAX_PNG_CHUNKS):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if len(name) < 4 or name == b"IEND":
            return
        if name not in (b"IDAT", b"fdAT", b"fcTL"):
            ancillary += 1
            if ancillary > _MAX_PNG_ANCILLARY:
                break
        at += 12 + length
    raise ValueError("too many chunks")
