"""Scenes drawn by a program from a seed: a picture, and the truth about it.

A scene has one to five objects over a background. Everything about it follows from (split, index), at any size:
positions and strengths are drawn as parts of the picture's side, pixels only afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from starter_models.backgrounds import Background, choose_background, draw_background
from starter_models.captions import Facts, Thing, describe
from starter_models.font import ensure_font
from starter_models.glyphs import LEVELS, glyph
from starter_models.labels import BY_NAME, LABELS

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Longer side in pixels when none is asked for.
DEFAULT_SIZES = (256, 320)
#: An object may hide at most this part of another one.
MAX_HIDDEN = 0.35
_OBJECT_COUNTS = (1, 2, 2, 3, 3, 3, 4, 4, 5)
#: A crowd has more objects than a scene: only training sees it, because it shows more objects for the same work.
CROWD_COUNTS = (9, 14)
_CROWD_SIDES = (0.22, 0.40)
_SIDES = {1: (0.34, 0.62), 2: (0.30, 0.52), 3: (0.27, 0.44), 4: (0.25, 0.38), 5: (0.23, 0.34)}


@dataclass(frozen=True)
class SceneObject(Thing):
    """A thing with its visible pixels: ``mask`` is (height, width) uint8, 0–255, of the whole picture."""

    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        split: which of SPLITS it belongs to.
        index: its number within the split.
        picture: RGB, before JPEG compression.
        objects: what is in it, from back to front.
        background: colour and kind of what is behind.
        caption: a sentence that names every object and the background.
        jpeg_quality: the quality that ``jpeg`` encodes with.
    """

    split: Split
    index: int
    picture: Image.Image
    objects: tuple[SceneObject, ...]
    background: Background
    caption: str
    jpeg_quality: int

    @property
    def facts(self) -> Facts:
        """Return what is in the scene, as captions and queries need it."""
        return Facts(self.picture.width, self.picture.height, self.objects, self.background)

    def jpeg(self) -> bytes:
        """Encode the picture with the scene's own quality."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "JPEG", quality=self.jpeg_quality)
        return buffer.getvalue()

    def truth(self) -> dict[str, Any]:
        """Return the scene's truth as plain values, as one line of ``truth.jsonl`` without ``file``."""
        return {
            "split": self.split,
            "index": self.index,
            "width": self.picture.width,
            "height": self.picture.height,
            "background": {"colour": self.background.colour, "kind": self.background.kind},
            "objects": [{"label": item.label, "colour": item.colour, "box": list(item.box)} for item in self.objects],
            "caption": self.caption,
        }


def facts_of(truth: dict[str, Any]) -> Facts:
    """Read a scene's facts back from a line of ``truth.jsonl``."""
    return Facts(
        truth["width"],
        truth["height"],
        tuple(Thing(item["label"], item["colour"], tuple(item["box"])) for item in truth["objects"]),
        Background(**truth["background"]),
    )


def split_of(labels: Iterable[str]) -> Split:
    """Return the split to which a combination of labels belongs (with repeats, in any order): 80, 10 and 10 %."""
    digest = hashlib.blake2b(",".join(sorted(labels)).encode(), digest_size=4).digest()
    place = int.from_bytes(digest, "big") % 10
    return "test" if place == 0 else "validation" if place == 1 else "train"


def draw_scene(
    split: Split,
    index: int,
    size: int | tuple[int, int] | None = None,
    *,
    labels: Sequence[str] | None = None,
    crowd: bool = False,
) -> Scene:
    """Draw scene number ``index`` of a split; the same arguments give the same bytes on the same library versions.

    Args:
        split: one of SPLITS; no two splits share a seed or a combination of objects.
        index: 0 or more.
        size: the longer side in pixels, or (width, height); None takes one of DEFAULT_SIZES' range from the seed.
        labels: one to five objects to draw, with repeats, instead of a chosen combination.
        crowd: draw as many objects as CROWD_COUNTS says; there is no caption then.

    Raises:
        FontMissingError: the emoji font is not on this machine.
        ValueError: an unknown split, labels that belong to another split, or a size under 32 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    asked = "" if labels is None else f" {','.join(labels)}"
    rng = _seeded(f"{'crowd' if crowd else 'scene'} {split} {index}{asked}")
    labels = _choose_labels(split, rng, crowd) if labels is None else list(labels)
    if split_of(labels) != split:
        raise ValueError(f"the combination {', '.join(labels)} belongs to {split_of(labels)}, not to {split}")
    background = choose_background(rng)
    width, height = _choose_size(size, rng)
    if min(width, height) < 32:
        raise ValueError(f"a scene needs at least 32 pixels a side, not {width} by {height}")

    picture = draw_background(background, width, height, Random(rng.getrandbits(64)))
    placed: list[tuple[str, str | None, NDArray[np.uint8]]] = []
    for label, colour, bitmap, at in _place(labels, width, height, Random(rng.getrandbits(64))):
        picture.paste(bitmap, at, bitmap)
        alpha = Image.new("L", (width, height))
        alpha.paste(bitmap.getchannel("A"), at)
        mask = np.asarray(alpha)
        clear = 255 - mask
        placed = [(name, paint, np.minimum(other, clear)) for name, paint, other in placed]
        placed.append((label, colour, mask))
    picture = _finish(picture, rng)
    if crowd:
        placed = [item for item in placed if (item[2] >= 128).sum() > 12]
    objects = tuple(SceneObject(name, paint, box_of(mask), mask) for name, paint, mask in placed)
    facts = Facts(width, height, objects, background)
    caption = describe(facts, Random(rng.getrandbits(64)), background=True).text if not crowd else ""
    return Scene(split, index, picture, objects, background, caption, rng.randint(55, 95))


def group_labels(split: Split, group: int) -> list[str]:
    """Return the labels of group number ``group`` of a split, for scenes that share all their objects."""
    return _choose_labels(split, _seeded(f"group {split} {group}"))


def _seeded(what: str) -> Random:
    digest = hashlib.blake2b(f"pixelgate {what}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def box_of(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the pixels of 128 or more; right and bottom are exclusive."""
    solid = mask >= 128
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def write_scenes(
    folder: Path | str,
    split: Split,
    count: int,
    *,
    start: int = 0,
    size: int | tuple[int, int] | None = None,
    processes: int = 1,
) -> Path:
    """Write ``count`` scenes as JPEGs and their truth into ``folder``; return the path of ``truth.jsonl``.

    Each line of the truth has: file, split, index, width, height, background {colour, kind}, objects
    [{label, colour, box [left, top, right, bottom]}], caption, query (a sentence that means this scene).
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "truth.jsonl"
    write = partial(_write_scene, target, split, size)
    with path.open("w", encoding="utf-8") as lines:
        for truth in _mapped(write, range(start, start + count), processes):
            lines.write(json.dumps(truth, ensure_ascii=False) + "\n")
    return path


def _mapped(function: Any, indices: range, processes: int) -> Iterator[dict[str, Any]]:
    if processes <= 1:
        yield from map(function, indices)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(function, indices, chunksize=32)


def _write_scene(folder: Path, split: Split, size: int | tuple[int, int] | None, index: int) -> dict[str, Any]:
    from starter_models.queries import scene_query

    scene = draw_scene(split, index, size)
    name = f"{split}-{index:06d}.jpg"
    (folder / name).write_bytes(scene.jpeg())
    return {"file": name, **scene.truth(), "query": scene_query(scene.facts, index)}


def _choose_labels(split: Split, rng: Random, crowd: bool = False) -> list[str]:
    """Draw one to five labels, a third of the time with repeats, until the combination belongs to the split."""
    while True:
        count = rng.randint(*CROWD_COUNTS) if crowd else rng.choice(_OBJECT_COUNTS)
        labels = [label.name for label in rng.sample(LABELS, count)]
        if not crowd and count > 1 and rng.random() < 0.35:
            for place in range(1, rng.randint(2, count)):
                labels[place] = labels[0]
        if split_of(labels) == split:
            rng.shuffle(labels)
            return labels


def _choose_size(size: int | tuple[int, int] | None, rng: Random) -> tuple[int, int]:
    """Return (width, height); an aspect ratio between 4:5 and 5:4 is drawn when only the longer side is given."""
    longer = rng.randrange(DEFAULT_SIZES[0], DEFAULT_SIZES[1] + 1, 16)
    aspect = rng.choice((1.0, 1.0, 0.8, 0.8, 0.9, 1.25, 1.25, 1.11))
    if isinstance(size, tuple):
        return size
    longer = longer if size is None else size
    return (longer, round(longer / aspect)) if aspect >= 1 else (round(longer * aspect), longer)


def _place(
    labels: list[str], width: int, height: int, rng: Random
) -> Iterator[tuple[str, str | None, Image.Image, tuple[int, int]]]:
    """Yield each object's label, colour, bitmap and corner, so that none leaves the picture or hides under another."""
    low, high = _SIDES.get(len(labels), _CROWD_SIDES)
    taken: list[tuple[float, float, float, float]] = []
    for label in labels:
        colours = BY_NAME[label].colours
        colour = rng.choice(colours) if colours else None
        part = rng.uniform(low, high)
        angle = rng.gauss(0, 14) if rng.random() < 0.85 else rng.uniform(-45, 45)
        mirrored = rng.random() < 0.5
        brightness = rng.uniform(0.78, 1.18)
        for attempt in range(200 if len(labels) in _SIDES else 40):
            if attempt % 40 == 39:
                part *= 0.9
            reach_x, reach_y = _extent(label, colour, part, angle)
            side = min(width, height)
            half_x, half_y = reach_x * side / width / 2, reach_y * side / height / 2
            x = rng.uniform(min(half_x, 0.5), max(1 - half_x, 0.5))
            y = rng.uniform(min(half_y, 0.5), max(1 - half_y, 0.5))
            box = (x - half_x, y - half_y, x + half_x, y + half_y)
            if all(_overlap(box, other) <= (MAX_HIDDEN if len(labels) in _SIDES else 0.5) for other in taken):
                break
        taken.append(box)
        bitmap = _transformed(label, colour, part * side, angle, mirrored, brightness)
        yield label, colour, bitmap, (round(x * width - bitmap.width / 2), round(y * height - bitmap.height / 2))


def _extent(label: str, colour: str | None, part: float, angle: float) -> tuple[float, float]:
    """Width and height of a turned object whose longer side is ``part``."""
    bitmap = glyph(label, colour)[0]
    across, down = bitmap.width * part / max(bitmap.size), bitmap.height * part / max(bitmap.size)
    cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    return across * cosine + down * sine, across * sine + down * cosine


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> float:
    """The part of the smaller of two boxes that they share."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    if across <= 0 or down <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return across * down / smaller


def _transformed(
    label: str, colour: str | None, side: float, angle: float, mirrored: bool, brightness: float
) -> Image.Image:
    """Scale, turn, mirror and brighten a glyph in one resampling."""
    levels = glyph(label, colour)
    fitting = [bitmap for bitmap, level in zip(levels, LEVELS, strict=True) if level >= side]
    source = fitting[-1] if fitting else levels[0]
    factor = side / max(source.size)
    reach_x, reach_y = _extent(label, colour, side, angle)
    width, height = max(3, math.ceil(reach_x) + 2), max(3, math.ceil(reach_y) + 2)
    cosine, sine = math.cos(math.radians(angle)) / factor, math.sin(math.radians(angle)) / factor
    flip = -1 if mirrored else 1
    # Pillow's affine maps output pixels to source pixels, around both centres.
    a, b, d, e = flip * cosine, flip * sine, -sine, cosine
    c = source.width / 2 - a * width / 2 - b * height / 2
    f = source.height / 2 - d * width / 2 - e * height / 2
    turned = source.transform((width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    red, green, blue, alpha = turned.split()
    colours = Image.merge("RGB", (red, green, blue)).point(_brightness_table(round(brightness * 64)))
    colours.putalpha(alpha)
    return colours


@cache
def _brightness_table(sixtyfourths: int) -> list[int]:
    return [min(255, round(value * sixtyfourths / 64)) for value in range(256)] * 3


def _finish(picture: Image.Image, rng: Random) -> Image.Image:
    """Vary the whole picture's brightness and contrast, and blur one in three."""
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.12))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.85, 1.1))
    blur = rng.uniform(0.4, 1.6) * max(picture.size) / 320
    if rng.random() < 0.33:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    return picture


def main() -> int:
    """Write scenes into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="index of the first scene")
    parser.add_argument("--size", type=int, help="longer side in pixels; without it, 256 to 320")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    ensure_font()
    started = time.monotonic()
    path = write_scenes(
        arguments.out,
        arguments.split,
        arguments.count,
        start=arguments.start,
        size=arguments.size,
        processes=arguments.processes,
    )
    print(f"{arguments.count} scenes in {time.monotonic() - started:.1f} s; truth in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
