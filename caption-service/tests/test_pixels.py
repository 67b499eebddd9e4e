"""Our preprocessing against the library's, and configurations that say too little or too much."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from blip_folders import png, scenery
from caption_service.pixels import Preprocess, fit, prepare
from PIL import Image
from pixelgate_common.images import BrokenImage, DecodeLimits, ImageTooLarge, NotAnImage
from pixelgate_common.inference.errors import ModelProblem

GOOD: dict[str, Any] = {
    "size": {"height": 96, "width": 96},
    "resample": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
P96 = Preprocess.from_config(GOOD, "x")


@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(512, 384), (87, 600), (96, 96), (40, 30), (1, 50)], ids=str)
def test_pixels_are_those_of_the_librarys_own_preprocessing(size: tuple[int, int], resample: int) -> None:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    config = {**GOOD, "resample": resample}
    picture = scenery(*size)
    theirs = np.asarray(BlipImageProcessorPil(**config)(picture)["pixel_values"][0]).transpose(1, 2, 0)
    preprocess = Preprocess.from_config(config, "x")
    difference = np.abs(fit(picture, preprocess) - (theirs * preprocess.std + preprocess.mean) * 255)
    assert difference.max() < 0.01


def test_what_is_written_by_the_library_can_be_read(tmp_path: Any) -> None:
    import json

    from transformers import BlipImageProcessor

    BlipImageProcessor().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert Preprocess.from_config(written, "x").size_px == 384


@pytest.mark.parametrize(
    "config",
    [
        {**GOOD, "size": None},
        {**GOOD, "size": {"shortest_edge": 96}},
        {**GOOD, "size": {"height": 96, "width": 64}},
        {**GOOD, "size": 4},
        {**GOOD, "resample": None},
        {**GOOD, "resample": 1},
        {**GOOD, "image_mean": None},
        {**GOOD, "image_std": [0.2, 0.2]},
        {**GOOD, "image_std": [0.2, 0, 0.2]},
        {**GOOD, "rescale_factor": 1},
        {**GOOD, "do_normalize": False},
        {**GOOD, "do_center_crop": True},
        {**GOOD, "do_pad": True},
        {},
    ],
    ids=str,
)
def test_a_configuration_that_is_missing_something_or_unknown_names_its_file(config: dict[str, Any]) -> None:
    with pytest.raises(ModelProblem, match=r"folder/preprocessor_config\.json"):
        Preprocess.from_config(config, "folder/preprocessor_config.json")


def test_fields_of_the_published_files_are_known() -> None:
    published = {
        **GOOD,
        "do_normalize": True,
        "do_resize": True,
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "size": 384,
    }
    assert Preprocess.from_config(published, "x").size_px == 384
    assert Preprocess.from_json(P96.to_json()) == P96


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1"])
def test_every_kind_of_picture_becomes_pixels(mode: str) -> None:
    file = BytesIO()
    scenery(50, 40).convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    pixels = prepare(file.getvalue(), P96, DecodeLimits())
    assert pixels.shape == (96, 96, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (4000, 70)], ids=str)
def test_odd_shapes_become_pixels(size: tuple[int, int]) -> None:
    assert prepare(png(Image.new("RGB", size, (200, 30, 60))), P96, DecodeLimits()).shape == (96, 96, 3)


def test_what_is_no_picture_is_refused() -> None:
    whole = png(scenery(60, 60))
    with pytest.raises(NotAnImage):
        prepare(b"text", P96, DecodeLimits())
    with pytest.raises(BrokenImage):
        prepare(whole[: len(whole) // 2], P96, DecodeLimits())
    with pytest.raises(ImageTooLarge):
        prepare(whole, P96, DecodeLimits(max_pixels=100))
