from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from embed_fakes import SQUASH_8, jpeg, scenery
from embed_service.pixels import Preprocess, fit, prepare
from PIL import Image
from pixelgate_common.images import BrokenImage, DecodeLimits, ImageTooLarge, NotAnImage
from pixelgate_common.inference.errors import ModelProblem

GOOD: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(512, 384), (384, 512), (300, 300), (1000, 87), (50, 40), (225, 224), (1, 300), (641, 427)], ids=str
)
def test_pixels_are_those_of_open_clips_own_preprocessing(size: tuple[int, int], mode: str, interpolation: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = Preprocess.from_open_clip(
        {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "resize_mode": mode, "interpolation": interpolation}, 224, "x"
    )
    picture = scenery(*size)
    reference = image_transform_v2(
        PreprocessCfg(size=224, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=mode),
        is_train=False,
    )(picture)
    difference = np.abs(fit(picture, preprocess) - reference.numpy().transpose(1, 2, 0) * 255)
    assert difference.mean() < 0.2
    assert difference.max() < 3


def test_resnets_larger_resize_before_the_crop_is_torchvisions() -> None:
    import torchvision

    preset = torchvision.models.ResNet34_Weights.IMAGENET1K_V1.transforms()
    preprocess = Preprocess(
        size_px=224,
        resize_px=256,
        resize_mode="shortest",
        interpolation="bilinear",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    picture = scenery(500, 333)
    theirs = preset(picture).numpy().transpose(1, 2, 0) * preset.std + preset.mean
    assert np.abs(fit(picture, preprocess) - theirs * 255).max() < 3


def test_prepare_gives_integers_in_the_models_size() -> None:
    pixels = prepare(jpeg((200, 30, 60)), SQUASH_8, DecodeLimits())
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 30, 60)).max() <= 3


def test_an_original_and_its_preview_give_nearly_the_same_pixels() -> None:
    picture = scenery(750, 500).resize((3000, 2000), Image.Resampling.BICUBIC)
    original, preview = BytesIO(), BytesIO()
    picture.save(original, "JPEG", quality=95)
    picture.resize((1024, 683), Image.Resampling.LANCZOS).save(preview, "JPEG", quality=95)
    preprocess = Preprocess.from_open_clip(GOOD, 224, "x")
    a, b = (prepare(file.getvalue(), preprocess, DecodeLimits()).astype(int) for file in (original, preview))
    assert np.abs(a - b).mean() < 4, "two rounds of JPEG in place of one, and nothing else"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", NotAnImage, id="nothing"),
        pytest.param(b"hello", NotAnImage, id="text"),
        pytest.param(jpeg((1, 2, 3))[:300], BrokenImage, id="cut off"),
        pytest.param(jpeg((1, 2, 3), (200, 200)), ImageTooLarge, id="too many pixels"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        prepare(data, SQUASH_8, DecodeLimits(max_pixels=10_000))


@pytest.mark.parametrize(
    ("config", "size", "says"),
    [
        pytest.param({"std": [1, 1, 1]}, 224, "no mean", id="no mean"),
        pytest.param({"mean": [0, 0, 0]}, 224, "no std", id="no std"),
        pytest.param({**GOOD, "mean": [0, 0]}, 224, "no mean of three", id="two means"),
        pytest.param({**GOOD, "std": [1, 0, 1]}, 224, "above 0", id="a std of zero"),
        pytest.param({**GOOD, "resize_mode": "stretch"}, 224, "'stretch'", id="an unknown resize_mode"),
        pytest.param({**GOOD, "interpolation": "random"}, 224, "'random'", id="an unknown interpolation"),
        pytest.param({**GOOD, "mode": "L"}, 224, "'L'", id="an unknown colour mode"),
        pytest.param(GOOD, (224, 336), "not square", id="not square"),
    ],
)
def test_missing_or_unknown_preprocessing_is_an_error(config: dict[str, Any], size: Any, says: str) -> None:
    with pytest.raises(ModelProblem, match=says):
        Preprocess.from_open_clip(config, size, "some model")


def test_a_preprocess_survives_json() -> None:
    preprocess = Preprocess.from_open_clip({**GOOD, "fill_color": 7}, (32, 32), "x")
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
