"""What is done with pixels and boxes, against the libraries that it is done for."""

from __future__ import annotations

import asyncio
from io import BytesIO

import numpy as np
import pytest
from detect_fakes import IMAGENET, scenery
from detect_service.annotation import annotate, color_of
from detect_service.compositing import compose
from detect_service.letterbox import letterbox
from detect_service.matte import MatteFacts, to_alpha
from detect_service.pixel_budget import PixelBudget
from detect_service.suppression import suppress
from PIL import Image
from pixelgate_common.contracts.detect import Box, CutoutOptions

FACTS = MatteFacts(size_px=4, sigmoid=False, **IMAGENET)


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (300, 200), (641, 427), (1000, 87), (50, 40), (1, 1), (1, 300)], ids=str
)
def test_letterboxes_and_boxes_back_are_ultralytics_own(size: tuple[int, int]) -> None:
    import torch
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.ops import scale_boxes

    pixels = np.asarray(scenery(*size))
    ours, place = letterbox(pixels, size, 320, 32)
    theirs = LetterBox((320, 320), auto=True, stride=32)(image=pixels)
    assert np.array_equal(ours, theirs)
    boxes = np.array([[-5, -5, 400, 400], [3.5, 7.25, 31, 31], [100, 90, 200, 110]], dtype=np.float32)
    back = scale_boxes(ours.shape[:2], torch.from_numpy(boxes.copy()), pixels.shape)
    assert np.abs(place.boxes_back(boxes) - np.asarray(back)).max() < 1e-2


@pytest.mark.parametrize("count", [0, 1, 400])
def test_suppression_is_torchvisions(count: int) -> None:
    import torch
    import torchvision

    rng = np.random.default_rng(count)
    corner, side = rng.uniform(0, 80, (count, 2)), rng.uniform(5, 40, (count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.1, 0.9, count)).astype(np.float32)
    labels = rng.integers(0, 3, count)
    ours = suppress(boxes, scores, labels, max_iou=0.5, most=300)
    theirs = torchvision.ops.batched_nms(*(torch.from_numpy(part) for part in (boxes, scores, labels)), 0.5)
    assert ours.tolist() == theirs.tolist()[:300]
    assert suppress(boxes, scores, labels, max_iou=0.5, most=7).tolist() == theirs.tolist()[:7]


def test_a_map_becomes_an_alpha_from_its_smallest_to_its_largest_value() -> None:
    found = np.array([[0.2, 0.2], [0.2, 0.7]], dtype=np.float32)
    alpha = to_alpha(found, (2, 2), FACTS)
    assert alpha.tolist() == [[0, 0], [0, 255]]
    assert to_alpha(np.full((4, 4), 0.3, np.float32), (7, 5), FACTS).tolist() == [[0] * 7] * 5, "nothing was found"


def halves(mode: str = "RGB") -> tuple[Image.Image, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]:
    alpha = np.zeros((10, 20), dtype=np.uint8)
    alpha[2:6, 5:15] = 255
    alpha[6, 5:15] = 100
    return Image.new("RGB", (20, 10), (200, 100, 50)).convert(mode), alpha


def opened(png: bytes) -> Image.Image:
    return Image.open(BytesIO(png))


def test_a_cutout_keeps_its_colours_along_soft_edges() -> None:
    picture, alpha = halves()
    cut = opened(compose(picture, alpha, CutoutOptions.model_validate({})))
    assert cut.getpixel((8, 6)) == (200, 100, 50, 100), "rembg would have darkened it to (78, 39, 20)"
    assert cut.getpixel((0, 0)) == (0, 0, 0, 0)


def test_trim_cuts_away_what_cannot_be_seen_and_only_that() -> None:
    picture, alpha = halves()
    alpha[0, 0] = 3
    trim = CutoutOptions.model_validate({"trim": True})
    assert opened(compose(picture, alpha, trim)).size == (10, 5)
    assert opened(compose(picture, np.zeros_like(alpha), trim)).size == (20, 10), "nothing found: as it is"
    both = CutoutOptions.model_validate({"trim": True, "mask_only": True})
    assert opened(compose(picture, alpha, both)).getpixel((0, 4)) == 100


def test_a_background_is_mixed_in_by_the_alpha() -> None:
    picture, alpha = halves("RGBA")
    laid = opened(compose(picture, alpha, CutoutOptions.model_validate({"background": "#0000FF"})))
    assert laid.mode == "RGB"
    assert laid.getpixel((8, 3)) == (200, 100, 50)
    assert laid.getpixel((8, 6)) == (78, 39, 175)
    assert laid.getpixel((0, 0)) == (0, 0, 255)


def box(label: str, score: float = 0.5, at: tuple[float, float, float, float] = (10, 10, 50, 40)) -> Box:
    return Box(label=label, score=score, box=at)


def test_labels_have_colours_of_their_own_that_stay() -> None:
    assert color_of("dog") == color_of("dog")
    colors = {color_of(label) for label in ("dog", "cat", "bus", "person", "tree", "東京", "a", "b")}
    assert len(colors) == 8


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (128, 128, 128), color_of("dog")], ids=str)
@pytest.mark.parametrize("size", [(100, 80), (1600, 1200)], ids=str)
def test_a_frame_shows_on_any_background(background: tuple[int, int, int], size: tuple[int, int]) -> None:
    jpeg = annotate(Image.new("RGB", size, background), [box("dog")], (100, 80))
    drawn = np.asarray(Image.open(BytesIO(jpeg)).convert("RGB")).astype(int)
    x, y = round(0.6 * size[0]), round(0.5 * size[1])
    around = drawn[y, x - size[0] // 20 : x + size[0] // 20]
    assert np.abs(around - background).max() > 80


@pytest.mark.parametrize("label", ["", "東京 ß 🦊", "a\nb\x00\x1b[0m", "x" * 5000, "\u202egod"], ids=ascii)
@pytest.mark.parametrize("size", [(1, 1), (30, 900), (640, 480)], ids=str)
def test_any_label_on_any_size_is_drawn(label: str, size: tuple[int, int]) -> None:
    everywhere = [(-50, -50, 500, 500), (0, 0, 0, 0), (99, 79, 1, 1), (float("inf"), 0, 1, 1), (1e9, 1e9, 1e9, 1e9)]
    jpeg = annotate(Image.new("RGB", size), [box(label, at=at) for at in everywhere], (100, 80))  # type: ignore[arg-type]
    assert Image.open(BytesIO(jpeg)).size == size


async def test_pixels_are_let_in_in_turn_and_a_large_picture_goes_alone() -> None:
    budget, inside, most = PixelBudget(100), [0], [0]

    async def work(pixels: int) -> None:
        async with budget.hold(pixels):
            inside[0] += pixels
            most[0] = max(most[0], inside[0])
            await asyncio.sleep(0.001)
            inside[0] -= pixels

    await asyncio.gather(*(work(pixels) for pixels in [40, 40, 40, 500, 100, 1] * 5))
    assert most[0] == 500, "the one that is larger than all, alone"
    given_up = [asyncio.ensure_future(work(60)) for _ in range(10)]
    await asyncio.sleep(0)
    for task in given_up[::2]:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    async with asyncio.timeout(1), budget.hold(100):
        pass
