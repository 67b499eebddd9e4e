"""What is the same picture and what only looks like it: drawn scenes with their copies, and cases made by hand."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
import pictures_made as made
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from pixelgate_common.images import BrokenImage
from starter_models.font import FontMissingError, find_font
from starter_models.scenes import draw_scene
from storage_service.sameness import Verdict, compare, compare_files, look

SCENES = 40


def stored(picture: Image.Image) -> bytes:
    """What the service keeps of a picture as `medium`."""
    small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    small.thumbnail((300, 300), Image.Resampling.LANCZOS)
    if small.mode == "RGBA":
        return made.encoded(small, "WEBP", quality=85)
    return made.encoded(small, quality=85)


def compared(one: Image.Image, other: Image.Image) -> Verdict:
    return compare(look(stored(one)), look(stored(other)))


def coded(picture: Image.Image, quality: int) -> Image.Image:
    return made.opened(made.encoded(picture, quality=quality))


def cropped(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = picture.size
    box = round(left * width), round(top * height), round(width - right * width), round(height - bottom * height)
    return picture.crop(box)


def resized(picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


def copy_of(picture: Image.Image, chance: random.Random) -> Image.Image:
    """The picture encoded at 40 to 90, resized by 0.4 to 1.5, cropped by up to 10 % at each edge, or all of it."""
    kind = chance.choice(["code", "resize", "crop", "all"])
    if kind in ("crop", "all"):
        picture = cropped(picture, *(chance.uniform(0, 0.1) for _ in range(4)))
    if kind in ("resize", "all"):
        picture = resized(picture, chance.uniform(0.4, 1.5))
    return coded(picture, chance.randint(40, 90))


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    try:
        find_font()
    except FontMissingError as error:  # pragma: no cover
        pytest.skip(f"NOT TESTED on drawn scenes: {error}")
    return [draw_scene("test", number).picture for number in range(SCENES)]


def test_copies_of_scenes_are_found_and_other_scenes_of_the_same_things_are_not(scenes: list[Image.Image]) -> None:
    chance = random.Random(1)
    found, mistaken, others = 0, [], 0
    for number, picture in enumerate(scenes):
        original = look(stored(coded(picture, 90)))
        found += compare(original, look(stored(copy_of(picture, chance)))).same
        labels = [thing.label for thing in draw_scene("test", number).objects]
        for turn in range(2):
            other = draw_scene("test", 10_000 + 10 * number + turn, labels=labels).picture
            others += 1
            if compare(original, look(stored(other))).same:
                mistaken.append(number)
        others += 1
        if compare(original, look(stored(ImageOps.mirror(picture)))).same:
            mistaken.append(number)
    assert found / SCENES >= 0.95
    assert mistaken == [], f"of {others}"


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "nothing": lambda p: p,
    "coded at 40": lambda p: coded(p, 40),
    "as PNG": lambda p: made.opened(made.encoded(p, "PNG")),
    "a third of the size": lambda p: resized(p, 0.34),
    "larger": lambda p: resized(p, 1.5),
    "cropped at one edge": lambda p: cropped(p, 0.1, 0, 0, 0),
    "cropped at all edges": lambda p: cropped(p, 0.1, 0.08, 0.05, 0.1),
    "cropped, smaller, coded": lambda p: coded(resized(cropped(p, 0, 0.1, 0.1, 0), 0.5), 50),
}
OTHERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda p: p.rotate(90, expand=True),
    "half of it": lambda p: p.crop((0, 0, p.width // 2, p.height)),
    "negative": ImageOps.invert,
    "grey": lambda p: ImageOps.grayscale(p).convert("RGB"),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
    "with something added": lambda p: with_box(p, (p.width // 2, p.height // 3, p.width // 2 + 60, p.height // 3 + 60)),
    "squeezed": lambda p: p.resize((p.width // 2, p.height)),
}


def with_box(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    changed = picture.copy()
    ImageDraw.Draw(changed).ellipse(box, fill=(250, 240, 20))
    return changed


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """Something with structure everywhere, as photographs have it."""
    random = np.random.default_rng(4)
    layers = np.zeros((360, 480, 3))
    for side in (6, 12, 24, 48):
        noise = Image.fromarray(random.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize((480, 360), Image.Resampling.BICUBIC), np.float64) / 4
    return with_box(Image.fromarray(layers.clip(0, 255).astype(np.uint8)), (40, 50, 140, 150))


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_whatever_was_done_to_it(photograph: Image.Image, change: str) -> None:
    changed = CHANGES[change](photograph)
    for one, other in ((photograph, changed), (changed, photograph)):
        verdict = compared(one, other)
        assert verdict.same, verdict
        assert 0.985 <= verdict.score <= 1


@pytest.mark.parametrize("change", OTHERS)
def test_another_picture_however_like_it(photograph: Image.Image, change: str) -> None:
    changed = OTHERS[change](photograph)
    assert not compared(photograph, changed).same
    assert not compared(changed, photograph).same


def plain(color: tuple[int, ...], size: tuple[int, int] = (300, 200)) -> Image.Image:
    return Image.new("RGBA" if len(color) == 4 else "RGB", size, color)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (plain((200, 30, 30)), plain((200, 30, 30), (150, 100)), True),
        (plain((200, 30, 30)), plain((200, 60, 30)), False),
        (plain((200, 30, 30)), plain((200, 30, 30), (200, 300)), False),
        (plain((200, 30, 30)), with_box(plain((200, 30, 30)), (100, 80, 140, 120)), False),
        (plain((0, 0, 0, 0)), plain((0, 0, 0, 0)), True),
        (plain((0, 0, 0), (1, 1)), plain((0, 0, 0), (1, 1)), True),
        (plain((0, 0, 0), (1, 1)), plain((255, 255, 255), (1, 1)), False),
        (plain((9, 9, 9), (3000, 20)), plain((9, 9, 9), (1500, 10)), True),
        (plain((9, 9, 9), (3000, 20)), plain((9, 9, 9), (20, 3000)), False),
    ],
    ids=["flat", "another red", "another shape", "a dot on it", "nothing to see", "one pixel", "another pixel",
         "a strip", "a strip upright"],
)  # fmt: skip
def test_pictures_without_structure(one: Image.Image, other: Image.Image, same: bool) -> None:
    assert compared(one, other).same == same


def test_files_that_cannot_be_read_are_nothing(photograph: Image.Image) -> None:
    good = stored(photograph)
    assert [verdict.same for verdict in compare_files(good, [good, b"broken", good[:200], good])] == [
        True, False, False, True,
    ]  # fmt: skip
    with pytest.raises(BrokenImage):
        look(io.BytesIO(b"none").getvalue())
