import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starter_models.font import FontMissingError, find_font
from starter_models.glyphs import glyph
from starter_models.labels import BACKGROUND_COLOURS, BACKGROUND_KINDS, LABELS
from starter_models.scenes import (
    SPLITS,
    Scene,
    Split,
    box_of,
    draw_scene,
    facts_of,
    group_labels,
    split_of,
    write_scenes,
)


def test_the_same_index_draws_the_same_scene_byte_for_byte() -> None:
    first, second = draw_scene("test", 3), draw_scene("test", 3)

    assert first.jpeg() == second.jpeg()
    assert first.truth() == second.truth()


def test_neighbouring_indices_and_splits_draw_different_scenes() -> None:
    pictures = {draw_scene(split, index, 64).picture.tobytes() for split in SPLITS for index in range(10)}

    assert len(pictures) == 30


@pytest.mark.parametrize("size", [96, 320])
def test_size_changes_pixels_and_nothing_else(size: int) -> None:
    small, large = draw_scene("test", 5, 160), draw_scene("test", 5, size)

    assert max(large.picture.size) == size
    assert [item.label for item in small.objects] == [item.label for item in large.objects]
    assert small.background == large.background
    for one, other in zip(small.objects, large.objects, strict=True):
        scaled = np.array(one.box) * size / 160
        assert np.abs(scaled - other.box).max() < 0.04 * size


def test_default_size_is_that_of_a_small_photograph() -> None:
    for index in range(20):
        width, height = draw_scene("test", index).picture.size
        assert 256 <= max(width, height) <= 320
        assert 0.79 <= width / height <= 1.26


def test_boxes_are_the_bounds_of_the_visible_mask(test_scenes: list[Scene]) -> None:
    for scene in test_scenes:
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert item.mask.shape == (scene.picture.height, scene.picture.width)
            assert item.box == box_of(item.mask)
            outside = item.mask.copy()
            outside[top:bottom, left:right] = 0
            assert outside.max() < 128


def test_masks_of_different_objects_share_no_pixel(test_scenes: list[Scene]) -> None:
    for scene in test_scenes:
        total = sum(item.mask.astype(int) for item in scene.objects)
        assert np.max(total) <= 255


def test_most_of_each_object_can_be_seen(test_scenes: list[Scene]) -> None:
    for scene in test_scenes:
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert min(right - left, bottom - top) >= 5, (scene.index, item.label)


def test_an_object_changes_the_pixels_under_its_mask() -> None:
    for index in range(20):
        scene = draw_scene("test", index, 160)
        pixels = np.asarray(scene.picture, dtype=float)
        for item in scene.objects:
            inside = pixels[item.mask >= 250]
            # No glyph is a single flat colour, as a wrongly placed mask over a plain background would be.
            assert inside.std(axis=0).max() > 3, (index, item.label)


def test_splits_share_no_combination_of_objects(labels_of: Callable[[Split, int], tuple[str, ...]]) -> None:
    seen = {split: {labels_of(split, index) for index in range(150)} for split in SPLITS}

    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_the_split_of_a_combination_ignores_order_and_counts_repeats() -> None:
    assert split_of(["dog", "bus", "dog"]) == split_of(["bus", "dog", "dog"])
    splits = [split_of([first.name, second.name]) for first in LABELS for second in LABELS[:20]]
    assert 0.72 < splits.count("train") / len(splits) < 0.88
    assert set(splits) == set(SPLITS)


def test_every_label_and_background_turns_up() -> None:
    scenes = [draw_scene("train", index, 48) for index in range(400)]

    assert {item.label for scene in scenes for item in scene.objects} == {label.name for label in LABELS}
    assert {scene.background.colour for scene in scenes} == set(BACKGROUND_COLOURS)
    assert {scene.background.kind for scene in scenes} == set(BACKGROUND_KINDS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_the_font_draws_every_label_in_every_colour(label: object) -> None:
    from starter_models.labels import Label

    assert isinstance(label, Label)
    for colour in label.colours or (None,):
        pixels = np.asarray(glyph(label.name, colour)[0])
        assert max(pixels.shape[:2]) == 136
        assert (pixels[..., 3] > 128).mean() > 0.1


def test_asked_for_objects_are_drawn() -> None:
    labels = group_labels("test", 4)
    scenes = [draw_scene("test", index, 96, labels=labels) for index in range(3)]

    assert all(sorted(item.label for item in scene.objects) == sorted(labels) for scene in scenes)
    assert len({scene.picture.tobytes() for scene in scenes}) == 3


def test_asked_for_objects_must_belong_to_the_split() -> None:
    labels = group_labels("train", 0)

    with pytest.raises(ValueError, match="belongs to train"):
        draw_scene("test", 0, 96, labels=labels)


def test_unknown_split_and_tiny_size_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split"):
        draw_scene("holdout", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 32 pixels"):
        draw_scene("test", 0, (100, 20))


@pytest.mark.parametrize("processes", [1, 2])
def test_written_scenes_carry_their_truth(tmp_path: Path, processes: int) -> None:
    path = write_scenes(tmp_path / "out", "test", 6, start=40, size=128, processes=processes)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    assert [line["index"] for line in lines] == list(range(40, 46))
    for line in lines:
        data = (path.parent / line["file"]).read_bytes()
        picture = Image.open(io.BytesIO(data))
        scene = draw_scene("test", line["index"], 128)
        assert picture.format == "JPEG"
        assert picture.size == (line["width"], line["height"]) == scene.picture.size
        assert data == scene.jpeg()
        assert facts_of(line).background == scene.background
        assert [thing.box for thing in facts_of(line).things] == [item.box for item in scene.objects]
        assert line["caption"] == scene.caption
        assert line["query"]


def test_a_missing_font_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELGATE_EMOJI_FONT", str(tmp_path / "none.ttf"))
    with pytest.raises(FontMissingError, match=r"none\.ttf"):
        find_font()

    monkeypatch.delenv("PIXELGATE_EMOJI_FONT")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("starter_models.font.SYSTEM_PATHS", ())
    with pytest.raises(FontMissingError, match="fonts-noto-color-emoji"):
        find_font()


def test_a_font_in_the_cache_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIXELGATE_EMOJI_FONT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("starter_models.font.SYSTEM_PATHS", ())
    cached = tmp_path / ".cache" / "pixelgate" / "fonts" / "NotoColorEmoji.ttf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"font")

    assert find_font() == cached
