"""ultralytics' architectures with random weights, from checkpoint to boxes, against predict() itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detect_fakes import convert_here, scenery, write_yolo
from detect_service import golden
from detect_service.detectors.protocol import MAX_OBJECTS, Detector, Question
from detect_service.served import Shelf
from detect_service.settings import Settings
from pixelgate_common.contracts.detect import Box
from pixelgate_common.inference import model_sets
from pixelgate_common.inference.errors import ModelChanged, ModelProblem, WrongAnswer

SIZES = [(640, 480), (300, 500), (200, 200), (1000, 90), (40, 30)]


def load(settings: Settings) -> tuple[Detector, Any]:
    sources = model_sets.resolve_all("objects", settings)
    convert_here(sources, settings)
    (served,) = Shelf(settings).begin().detectors
    return served.resident.current.model, served.about()


def predict(weights: Path, picture: Any, **options: Any) -> list[Box]:
    from ultralytics import YOLO

    model = YOLO(str(weights))
    pixels = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
    (result,) = model.predict(pixels, conf=0.25, verbose=False, save=False, device="cpu", **options)
    found = result.boxes
    return [
        Box(label=result.names[int(number)], score=float(score), box=(x1, y1, x2 - x1, y2 - y1))
        for (x1, y1, x2, y2), score, number in zip(
            found.xyxy.tolist(), found.conf.tolist(), found.cls.tolist(), strict=True
        )
    ]


def same(one: Box, other: Box) -> bool:
    return (
        one.label == other.label
        and abs(one.score - other.score) < 0.02
        and np.abs(np.array(one.box) - other.box).max() < 2
    )


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("yolo11n", {}),
        ("yolo11n", {"iou": 0.4, "agnostic_nms": True}),
        ("yolo26n", {}),
        ("yolo26n", {"nms": False}),
    ],
    ids=["yolo11n", "yolo11n one thing in a place", "yolo26n", "yolo26n without suppression"],
)
def test_boxes_are_those_of_predict(
    settings: Settings, tmp_path: Path, shared_cache: Path, architecture: str, options: dict[str, Any]
) -> None:
    weights = write_yolo(tmp_path / "own" / "model.pt", architecture)
    if options:
        (tmp_path / "own" / "config.json").write_text(json.dumps(options))
    settings = settings.model_copy(
        update={
            "objects_model": str(tmp_path / "own"),
            "cutout_model": "none",
            "precision": "fp32",
            "cache_dir_set": shared_cache,
        }
    )
    detector, about = load(settings)
    assert (about.backend, about.precision, about.state) == ("openvino", "fp32", "loaded")
    looked_at = 0
    for size in SIZES:
        picture = scenery(*size)
        theirs = predict(weights, picture, **options)
        (ours,) = detector.find([Question(detector.prepare(picture, size), 0.25)])
        assert [one.score for one in ours] == sorted((one.score for one in ours), reverse=True)
        # What is at the very threshold may fall on either side of it.
        for wanted, given in ((theirs, ours), (ours, theirs)):
            for one in wanted:
                if one.score > 0.26 and min(one.box[2:]) > 0.01 and len(theirs) < MAX_OBJECTS:
                    assert any(same(one, other) for other in given), (size, one)
        looked_at += len(theirs)
    assert looked_at > 20, "random weights must find something, or nothing is compared"


@pytest.fixture
def checkpoint(settings: Settings, shared_cache: Path) -> Settings:
    """A service whose objects model, one that really finds things, lies by name in the model folder."""
    starter = Settings.model_fields["starter_dir"].default / "objects"
    folder = settings.model_dir / "objects"
    folder.mkdir(parents=True)
    shutil.copy(starter / "model.pt", folder / "mine.pt")
    shutil.copy(starter / "config.json", folder / "mine.json")
    # As if it were not known here: then its answer is recorded when it is first loaded.
    return settings.model_copy(update={"objects_model": "mine", "cutout_model": "none", "cache_dir_set": shared_cache})


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "known_answers", dict)


def test_bf16_and_fp32_have_one_fingerprint_and_the_lock_remembers(checkpoint: Settings) -> None:
    _, first = load(checkpoint.model_copy(update={"precision": "fp32"}))
    entry = json.loads(checkpoint.lock_path.read_text())["detect"]["objects:mine"]
    assert entry["fingerprint"] == first.fingerprint
    assert entry["golden"]["objects"], "its answer to the golden question is recorded"
    _, second = load(checkpoint)
    assert second.fingerprint == first.fingerprint


def test_other_weights_under_a_known_name_are_refused(checkpoint: Settings) -> None:
    load(checkpoint)
    write_yolo(checkpoint.model_dir / "objects" / "mine.pt", "yolo11n", side_px=160, seed=1)
    with pytest.raises(ModelChanged, match="mine has other weights"):
        load(checkpoint)


def test_a_model_that_gives_another_answer_than_recorded_is_refused(checkpoint: Settings) -> None:
    load(checkpoint)
    content = json.loads(checkpoint.lock_path.read_text())
    content["detect"]["objects:mine"]["golden"]["objects"].insert(
        0, {"label": "unicorn", "score": 0.9, "box": [1, 1, 50, 50]}
    )
    checkpoint.lock_path.write_text(json.dumps(content))
    with pytest.raises(WrongAnswer, match="misses an object of the known picture, unicorn"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param({"imgsz": 100}, "multiple of 32", id="a size that does not fit"),
        pytest.param({"imgsz": "big"}, "says an imgsz", id="a size that is no number"),
        pytest.param({"nms": False}, "no head without suppression", id="a head that is not there"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    settings: Settings, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    weights = write_yolo(tmp_path / "own" / "model.pt", "yolo11n", side_px=64)
    (weights.parent / "config.json").write_text(json.dumps(config))
    settings = settings.model_copy(update={"objects_model": str(weights.parent), "cutout_model": "none"})
    with pytest.raises(ModelProblem, match=says):
        load(settings)
