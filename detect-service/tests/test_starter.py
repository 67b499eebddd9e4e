"""The starter weights, measured on drawn scenes, and the golden answers that are recorded for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detect_fakes import convert_here
from detect_service import golden
from detect_service.detectors.protocol import Question
from detect_service.matte import network_input, to_alpha
from detect_service.served import Models, Shelf
from detect_service.settings import Settings
from pixelgate_common.inference import model_sets

SCENES = 20


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[tuple[Settings, Models]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PIXELGATE_STARTER_DIR", raising=False)
        settings = Settings(
            data_dir=tmp_path_factory.mktemp("data"), models="starter", threads=2, cache_dir_set=shared_cache
        )
        sources = [model_sets.resolve("objects", settings), model_sets.resolve("cutout", settings)]
        convert_here(sources, settings)
        yield settings, Shelf(settings).begin()


def test_the_starter_models_give_the_answers_recorded_for_them(starter: tuple[Settings, Models]) -> None:
    settings, models = starter
    fingerprints = {models.detectors[0].fingerprint, models.mattes[0].fingerprint}
    assert fingerprints == set(golden.known_answers()), (
        "the weights have changed: run `python -m detect_service.record_golden`"
    )
    assert not settings.lock_path.exists(), "what is recorded here needs no record there"
    assert models.set == "starter"


def test_they_find_and_cut_out_what_is_drawn(starter: tuple[Settings, Models]) -> None:
    from starter_models.measures import Detection, Located, mask_iou, mean_average_precision_50
    from starter_models.scenes import draw_scene

    _, models = starter
    detector, network = models.detectors[0].resident.current.model, models.mattes[0].resident.current.model
    predictions, truths, overlaps = [], [], []
    for number in range(SCENES):
        scene = draw_scene("test", 5000 + number)
        picture = scene.picture
        (found,) = detector.find([Question(detector.prepare(picture, picture.size), 0.05)])
        predictions.append([Detection(one.label, one.score, _corners(one.box)) for one in found])
        truths.append([Located(thing.label, tuple(float(edge) for edge in thing.box)) for thing in scene.objects])
        whole = np.max([thing.mask for thing in scene.objects], axis=0)
        alpha = to_alpha(network.find(network_input(picture, network.facts)), picture.size, network.facts)
        overlaps.append(mask_iou(alpha, whole))
    average = mean_average_precision_50(predictions, truths)
    print(json.dumps({"mAP50": round(average, 3), "IoU": round(float(np.mean(overlaps)), 3), "scenes": SCENES}))
    # Below the aims that `make evaluate` measures on many scenes: these are few.
    assert average > 0.8
    assert float(np.mean(overlaps)) > 0.8


def _corners(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]
