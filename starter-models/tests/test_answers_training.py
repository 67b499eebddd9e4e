"""The training of the slots that answer about one picture: a few steps, and what comes out loads and answers."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from starter_models import train_caption, train_clip, train_cutout, train_objects
from starter_models.answers import Captions, Cutout, Objects
from starter_models.batches import view
from starter_models.captions import Facts, canonical
from starter_models.rendered import RenderedScenes, load_rendered
from starter_models.scenes import draw_scene
from starter_models.u2net import ResidualU, U2Net
from torch import nn


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def rendered(work: Path) -> RenderedScenes:
    return load_rendered("train", 24, folder=work)


def test_composed_pictures_keep_boxes_on_their_objects(rendered: RenderedScenes) -> None:
    cv2.setNumThreads(1)
    flat = np.zeros((4, 128, 128, 3), np.uint8)
    boxes = [np.array([[number, 0.25, 0.25, 0.75, 0.75]], np.float32) for number in range(4)]
    for number in range(4):
        flat[number, 32:96, 32:96] = 40 + 50 * number
    squares = train_objects.Boxed(flat, boxes)
    rng = np.random.default_rng(3)

    seen = 0
    for _ in range(60):
        canvas, found = train_objects.compose(squares, squares, 96, rng)
        for number, left, top, right, bottom in found:
            inside = canvas[round(top) + 2 : round(bottom) - 2, round(left) + 2 : round(right) - 2]
            assert np.abs(inside.astype(int) - (40 + 50 * number)).max() <= 2
            seen += 1
    assert seen > 60


def test_batches_are_as_ultralytics_takes_them(rendered: RenderedScenes) -> None:
    scenes = train_objects.Boxed.of(rendered)

    batch = train_objects.make_batch(scenes, scenes, 6, 96, np.random.default_rng(0))

    assert batch["img"].shape == (6, 3, 96, 96)
    assert len(batch["cls"]) == len(batch["bboxes"]) == len(batch["batch_idx"]) > 6
    assert 0 <= batch["bboxes"].min() < batch["bboxes"].max() <= 1
    assert batch["img"].max() <= 1


def test_objects_training_goes_on_and_writes_an_ultralytics_checkpoint(work: Path) -> None:
    common = ["--batch", "4", "--side", "64", "--scenes", "24", "--crowds", "6", "--validation", "50", "--threads", "1"]
    common += ["--work", str(work), "--out", str(work / "objects")]
    train_objects.main([*common, "--steps", "2"])
    train_objects.main([*common, "--steps", "1", "--resume"])

    assert torch.load(work / "objects-checkpoint.pt", weights_only=True)["step"] == 3
    assert (work / "objects" / "model.pt").stat().st_size < 6_000_000
    assert json.loads((work / "objects" / "config.json").read_text(encoding="utf-8"))["imgsz"] == 64
    assert isinstance(Objects(work / "objects").find(draw_scene("train", 0).picture), list)


def test_every_canonical_caption_is_made_of_known_words(facts: list[Facts]) -> None:
    tokenizer = train_caption.build_tokenizer()
    texts = [canonical(scene) for scene in facts]

    ids, mask = train_caption.encode(tokenizer, texts)

    assert tokenizer.unk_token_id not in ids
    assert ids.shape[1] <= train_caption.MAX_TOKENS
    assert set(ids[:, 0].tolist()) == {tokenizer.convert_tokens_to_ids("[DEC]")}
    decoded = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text.replace(" ,", ",") for text in decoded] == texts
    assert torch.equal(mask == 0, ids == tokenizer.pad_token_id)


def test_clips_first_layers_see_alike_in_blip(rendered: RenderedScenes) -> None:
    weights = load_file(train_clip.WEIGHTS / "open_clip_model.safetensors")
    pictures = train_caption.normalised(
        view(rendered, np.arange(8), train_caption.IMAGE_SIZE, torch.Generator().manual_seed(0), strength=0).pictures
    )
    trainee = train_caption.Trainee(train_caption.build_tokenizer())
    train_caption.start_from_clip(trainee, weights, pictures)
    tokenizer_size = weights["token_embedding.weight"].shape[0]
    visual = train_clip.Trainee(tokenizer_size).clip.visual
    visual.load_state_dict(
        {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    )
    visual.transformer.resblocks = visual.transformer.resblocks[: train_caption.VISION_LAYERS]
    visual.eval()

    with torch.no_grad():
        seen = trainee.blip.vision_model.eval()(pixel_values=pictures)[0][:, 1:]
        _, expected = visual(pictures)

    assert nn.functional.cosine_similarity(seen, expected, dim=-1).mean() > 0.9


def test_caption_training_goes_on_and_writes_a_folder_for_transformers(work: Path) -> None:
    common = ["--batch", "4", "--scenes", "24", "--crowds", "6", "--validation", "12", "--threads", "1"]
    common += ["--work", str(work), "--out", str(work / "caption")]
    train_caption.main([*common, "--steps", "2"])
    before = load_file(work / "caption" / "model.safetensors")
    train_caption.main([*common, "--steps", "1", "--resume"])
    after = load_file(work / "caption" / "model.safetensors")

    name = "vision_model.embeddings.patch_embedding.weight"
    assert not torch.equal(before[name], after[name])
    assert torch.load(work / "caption-checkpoint.pt", weights_only=True)["step"] == 3
    assert len(Captions(work / "caption").tell([draw_scene("train", 0).picture] * 2)) == 2


def test_u_blocks_and_the_network_keep_any_size() -> None:
    for height, flat in ((7, False), (4, True)):
        block = ResidualU(height, 3, 4, 8, flat=flat)
        assert block(torch.zeros(2, 3, 70, 51)).shape == (2, 8, 70, 51)
    maps = U2Net()(torch.zeros(2, 3, 96, 80))
    assert [item.shape for item in maps] == [(2, 1, 96, 80)] * 7


def test_masks_follow_their_pictures(work: Path) -> None:
    scenes = train_cutout.load_masked("train", 16, folder=work)
    assert scenes.masks.max() == 255

    mask = torch.tensor(scenes.masks[:, :, :, None]).expand(-1, -1, -1, 3).numpy()
    same = train_cutout.MaskedScenes(mask, scenes.masks)
    pictures, masks = train_cutout.make_batch(same, np.arange(16), 96, torch.Generator().manual_seed(0))

    # Recolouring moves values by 15 % at most; a mirrored or shifted mask would differ by all of it at the edges.
    assert (pictures.mean(dim=1, keepdim=True) - masks).abs().max() < 0.2


def test_cutout_training_goes_on_and_writes_what_rembg_runs(work: Path) -> None:
    common = ["--batch", "2", "--side", "64", "--scenes", "16", "--validation", "8", "--threads", "1"]
    common += ["--work", str(work), "--out", str(work / "cutout")]
    train_cutout.main([*common, "--steps", "2"])
    train_cutout.main([*common, "--steps", "1", "--resume"])

    assert torch.load(work / "cutout-checkpoint.pt", weights_only=True)["step"] == 3
    session = onnxruntime.InferenceSession(work / "cutout" / "model.onnx", providers=["CPUExecutionProvider"])
    fused, *sides = session.run(None, {"input": np.zeros((3, 3, 64, 64), np.float32)})
    assert fused.shape == (3, 1, 64, 64)
    assert len(sides) == 6
    assert 0 <= fused.min() <= fused.max() <= 1
    assert Cutout(work / "cutout").mask(Image.new("RGB", (50, 40))).shape == (40, 50)
