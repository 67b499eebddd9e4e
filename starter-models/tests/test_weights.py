"""The committed weights, through the loaders that services use, on scenes that training has not seen."""

import json

import numpy as np
import pytest
from PIL import Image
from starter_models.captions import Facts
from starter_models.evaluate import (
    GROUP_SIZE,
    WEIGHTS,
    Clip,
    Resnet,
    decoded_scenes,
    found_again,
    grouped_pictures,
    precision,
    recall,
)
from starter_models.queries import label_queries, scene_queries
from starter_models.train_resnet import mean_average_precision


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Image.Image], list[Facts]]:
    return decoded_scenes(200, first=30_000)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(WEIGHTS / "clip")


@pytest.fixture(scope="module")
def resnet() -> Resnet:
    return Resnet(WEIGHTS / "resnet")


def test_a_sentence_finds_its_scene(clip: Clip, drawn: tuple[list[Image.Image], list[Facts]]) -> None:
    pictures, facts = drawn
    queries = scene_queries(facts)
    scores = clip.texts([query.text for query in queries]) @ clip.pictures(pictures).T

    assert recall(scores, queries) >= 0.95


def test_a_label_finds_scenes_that_contain_it(clip: Clip, drawn: tuple[list[Image.Image], list[Facts]]) -> None:
    pictures, facts = drawn
    queries = label_queries(facts, min_answers=5)
    scores = clip.texts([query.text for query in queries]) @ clip.pictures(pictures).T

    assert len(queries) >= 40
    assert precision(scores, queries, top=5) >= 0.95


def test_an_altered_picture_finds_its_original(
    clip: Clip, resnet: Resnet, drawn: tuple[list[Image.Image], list[Facts]]
) -> None:
    pictures, _ = drawn
    found = [found_again(model.pictures, model.pictures(pictures), pictures, 100) for model in (clip, resnet)]

    assert max(found) >= 0.95, found


def test_scenes_with_the_same_objects_are_near(resnet: Resnet) -> None:
    vectors = resnet.pictures(grouped_pictures(30))
    groups = np.arange(len(vectors)) // GROUP_SIZE

    assert mean_average_precision(vectors @ vectors.T, groups) >= 0.85


def test_weights_stay_small() -> None:
    sizes = {slot: sum(path.stat().st_size for path in (WEIGHTS / slot).iterdir()) for slot in ("clip", "resnet")}

    assert sizes["clip"] <= 15_000_000
    assert sizes["resnet"] <= 8_000_000


def test_reported_figures_belong_to_these_weights() -> None:
    report = json.loads((WEIGHTS / "figures.json").read_text(encoding="utf-8"))
    sizes = {slot: sum(path.stat().st_size for path in (WEIGHTS / slot).iterdir()) for slot in ("clip", "resnet")}

    assert report["bytes"] == sizes
    assert all(figure["value"] >= figure["target"] for figure in report["figures"] if figure["target"] is not None)
