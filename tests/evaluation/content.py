"""What was said of each picture against what is in it: captions, objects, cutouts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starter_models.measures import (
    Detection,
    Located,
    caption_labels,
    label_agreement,
    mask_iou,
    mean_average_precision_50,
)
from starter_models.scenes import Scene

from tests.evaluation.figures import Figure
from tests.evaluation.library import Library


def captions(library: Library, aim: float | None = 0.90) -> Figure:
    """Measure whether each caption names the picture's objects, and how many there are of each, and no others."""
    ids = sorted(library.scenes)
    said = [caption_labels(library.records[image_id]["caption"] or "") for image_id in ids]
    agreed = label_agreement(said, [library.truth(image_id) for image_id in ids])
    note = f"precision {agreed.precision:.3f}, recall {agreed.recall:.3f}"
    return Figure("captions name the objects (F1)", agreed.f1, aim, len(ids), note)


def objects(library: Library, aim: float | None = 0.90) -> Figure:
    """Measure the records' objects, in the original's pixels, by mAP50."""
    ids = sorted(library.scenes)
    found = [detections(library.records[image_id]) for image_id in ids]
    truth = [[Located(thing.label, thing.box) for thing in library.scenes[image_id].objects] for image_id in ids]
    reached = mean_average_precision_50(found, truth)
    return Figure("objects and where they are (mAP50)", reached, aim, sum(map(len, truth)))


def detections(record: dict[str, Any]) -> list[Detection]:
    """Return a record's objects with corners in place of sizes."""
    return [
        Detection(found["label"], found["score"], (x, y, x + width, y + height))
        for found in record["objects"]
        for x, y, width, height in [found["box"]]
    ]


def cutouts(library: Library, ids: Sequence[int], aim: float | None = 0.93) -> Figure:
    """Measure the files of the stage `cutout` by their overlap with everything that was drawn over the background."""
    overlaps = [mask_iou(cutout_alpha(library, image_id), foreground(library.scenes[image_id])) for image_id in ids]
    note = f"worst {min(overlaps):.3f}, median {np.median(overlaps):.3f}"
    return Figure("cutouts (IoU)", float(np.mean(overlaps)), aim, len(overlaps), note)


def cutout_alpha(library: Library, image_id: int) -> NDArray[np.uint8]:
    """Return the stored cutout's alpha in the original's size, (height, width), 0–255."""
    answer = library.client.get(library.records[image_id]["links"]["cutout"]).raise_for_status()
    return alpha_of(answer.content, library.scenes[image_id].picture.size)


def alpha_of(png: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the alpha of a cutout file, resized to `size` (width, height) where it has another one."""
    cutout = Image.open(io.BytesIO(png))
    assert cutout.mode == "RGBA", cutout.mode
    alpha = cutout.getchannel("A")
    if alpha.size != size:
        alpha = alpha.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(alpha)


def foreground(scene: Scene) -> NDArray[np.uint8]:
    """Return the mask of everything that is in a scene, (height, width), 0–255."""
    masks: NDArray[np.uint8] = np.stack([thing.mask for thing in scene.objects])
    return np.asarray(masks.max(axis=0), dtype=np.uint8)
