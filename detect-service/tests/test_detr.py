"""The DETR family's architectures with random weights, from a folder to boxes, against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detect_fakes import convert_here, scenery, write_detr
from detect_service.detectors.detr import shortest_to
from detect_service.detectors.protocol import Question
from detect_service.served import Shelf
from detect_service.settings import Settings
from pixelgate_common.inference import model_sets
from pixelgate_common.inference.errors import ModelProblem


def with_folder(settings: Settings, folder: Path, cache: Path) -> Settings:
    return settings.model_copy(
        update={
            "objects_model": str(folder),
            "cutout_model": "none",
            "precision": "fp32",
            "cache_dir_set": cache,
        }
    )


@pytest.mark.parametrize("kind", ["rt_detr", "detr"])
def test_boxes_are_those_of_transformers(settings: Settings, tmp_path: Path, shared_cache: Path, kind: str) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    settings = with_folder(settings, write_detr(tmp_path / kind, kind), shared_cache)
    convert_here(model_sets.resolve_all("objects", settings), settings)
    (served,) = Shelf(settings).begin().detectors
    detector = served.resident.current.model
    processor = AutoImageProcessor.from_pretrained(tmp_path / kind)
    network = AutoModelForObjectDetection.from_pretrained(tmp_path / kind).eval()
    for size in ((320, 240), (90, 200), (30, 30)):
        picture = scenery(*size)
        (ours,) = detector.find([Question(detector.prepare(picture, size), 0.1)])
        with torch.no_grad():
            (theirs,) = processor.post_process_object_detection(
                network(**processor(images=picture, return_tensors="pt")), threshold=0.1, target_sizes=[size[::-1]]
            )
        wanted = theirs["boxes"].numpy().clip(0, [*size, *size])
        wanted[:, 2:] -= wanted[:, :2]
        order = np.argsort(-theirs["scores"].numpy(), kind="stable")
        order = [place for place in order if wanted[place, 2:].min() > 0]
        assert len(ours) == len(order) > 3
        scores = theirs["scores"].numpy()[order]
        assert np.abs(np.array([one.score for one in ours]) - scores).max() < 0.02
        for one in ours:
            near = [
                place
                for place in order
                if network.config.id2label[int(theirs["labels"][place])] == one.label
                and abs(float(theirs["scores"][place]) - one.score) < 0.02
                and np.abs(wanted[place] - one.box).max() < 2
            ]
            assert near, one


def test_a_size_that_is_not_known_is_refused(settings: Settings, tmp_path: Path, shared_cache: Path) -> None:
    folder = write_detr(tmp_path / "detr", "rt_detr")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, "do_rescale": False}))
    settings = with_folder(settings, folder, shared_cache)
    with pytest.raises(ModelProblem, match="not rescaled"):
        convert_here(model_sets.resolve_all("objects", settings), settings)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1333, 10), (12_000, 1), (800, 800), (1, 1)], ids=str)
def test_sizes_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    height, width = get_size_with_aspect_ratio(size[::-1], 800, 1333)
    assert shortest_to(size, 800, 1333) == (max(1, width), max(1, height))
