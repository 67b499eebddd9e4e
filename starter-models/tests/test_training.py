import json
from pathlib import Path
from random import Random

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from starter_models import train_clip, train_resnet
from starter_models.batches import demands_vector, facts_matrix, fitting, shuffled, view
from starter_models.captions import Facts, describe_part
from starter_models.half_precision import MasterWeights, use_batched_attention
from starter_models.labels import LABEL_INDEX
from starter_models.narrow_resnet import build_resnet, features
from starter_models.rendered import RenderedScenes, load_rendered
from starter_models.train_resnet import mean_average_precision
from starter_models.vocabulary import CONTEXT_LENGTH, build_tokenizer
from torch import nn


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> RenderedScenes:
    return load_rendered("validation", 24, folder=tmp_path_factory.mktemp("rendered"))


def test_rendered_scenes_are_read_back_from_disk(tmp_path: Path) -> None:
    first = load_rendered("validation", 6, per_group=3, folder=tmp_path)
    written = (tmp_path / "validation-6-by-3" / "pictures.npy").stat().st_mtime_ns
    second = load_rendered("validation", 6, per_group=3, folder=tmp_path)

    assert (tmp_path / "validation-6-by-3" / "pictures.npy").stat().st_mtime_ns == written
    assert np.array_equal(first.pictures, second.pictures)
    labels = [sorted(thing.label for thing in scene.things) for scene in second.facts]
    assert labels[0] == labels[1] == labels[2] != labels[3]


def test_facts_and_demands_agree_with_captions(facts: list[Facts]) -> None:
    rng = Random(3)
    captions = [describe_part(scene, rng) for scene in facts]
    demands = torch.from_numpy(np.stack([demands_vector(caption) for caption in captions]))

    table = fitting(facts_matrix(facts), demands)

    assert table.tolist() == [[caption.fits(scene) for caption in captions] for scene in facts]


def test_label_shares_follow_the_picture(rendered: RenderedScenes) -> None:
    seen = view(rendered, np.arange(24), 112, torch.Generator().manual_seed(0), strength=0, patch=14)

    assert seen.pictures.shape == (24, 3, 112, 112)
    assert seen.patches is not None
    assert seen.patches.shape == (24, 64, 85)
    torch.testing.assert_close(seen.patches.sum(dim=2), torch.ones(24, 64))
    for place, scene in enumerate(rendered.facts):
        thing = scene.things[-1]
        x, y = thing.centre()
        cell = int(y / scene.height * 8) * 8 + int(x / scene.width * 8)
        around = [cell + step for step in (-9, -8, -7, -1, 0, 1, 7, 8, 9) if 0 <= cell + step < 64]
        assert seen.patches[place, around, LABEL_INDEX[thing.label] + 1].max() > 0.15


def test_views_differ_from_draw_to_draw_and_stay_pictures(rendered: RenderedScenes) -> None:
    generator = torch.Generator().manual_seed(0)
    first = view(rendered, np.arange(8), 112, generator, strength=1, flip=True).pictures
    second = view(rendered, np.arange(8), 112, generator, strength=1, flip=True).pictures

    assert (first - second).abs().mean() > 0.01
    assert first.min() >= 0
    assert first.max() <= 1


def test_an_epoch_takes_each_scene_once() -> None:
    batches = shuffled(12, 4, np.random.default_rng(0))
    epoch = np.concatenate([next(batches) for _ in range(3)])

    assert sorted(epoch.tolist()) == list(range(12))


def test_batched_attention_computes_what_pytorch_computes() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    tokens, mask = torch.randn(3, 7, 32), torch.full((7, 7), -torch.inf).triu(1)
    expected = [attention(tokens, tokens, tokens, attn_mask=which, need_weights=False)[0] for which in (None, mask)]

    use_batched_attention(attention)

    for which, value in zip((None, mask), expected, strict=True):
        torch.testing.assert_close(attention(tokens, tokens, tokens, attn_mask=which)[0], value, rtol=1e-4, atol=1e-5)


def test_master_weights_keep_steps_too_small_for_bfloat16() -> None:
    layer = nn.Linear(4, 1, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    masters = MasterWeights(layer, rate=1e-3, decay=0.0)
    for _ in range(20):
        layer.weight.grad = torch.ones_like(layer.weight)
        masters.step(0.05)

    # One step of 0.001 is lost in bfloat16 near 1 (spacing 0.004 below it); twenty of them are not.
    torch.testing.assert_close(layer.weight.float(), torch.full((1, 4), 0.98), rtol=0, atol=0.003)


def test_contrast_counts_only_wrong_captions() -> None:
    logits = torch.tensor([[5.0, 5.0, -5.0]])
    own = torch.tensor([[0, 0]])

    blamed = train_clip.contrast(logits, torch.tensor([[True, False, False]]), own)
    spared = train_clip.contrast(logits, torch.tensor([[True, True, False]]), own)

    assert blamed.item() == pytest.approx(np.log(2), abs=1e-3)
    assert spared.item() < 1e-3


def test_mean_average_precision_of_a_known_ranking() -> None:
    group = np.array([0, 0, 0, 1, 1, 1])
    perfect = (group[:, None] == group[None, :]).astype(np.float32)
    assert mean_average_precision(perfect, group) == 1.0

    scores = np.zeros((3, 3), dtype=np.float32)
    scores[0, 2], scores[0, 1] = 2, 1
    scores[1, 0] = 1
    # Row 0 finds its partner second (1/2), row 1 first (1); row 2 has none to find.
    assert mean_average_precision(scores, np.array([0, 0, 2])) == pytest.approx((0.5 + 1.0) / 2)


def test_the_narrow_layout_is_torchvisions() -> None:
    from torchvision.models import resnet34

    original, full, narrow = resnet34().state_dict(), build_resnet(64, 1000).state_dict(), build_resnet(24, 84)

    assert {name: value.shape for name, value in full.items()} == {n: value.shape for n, value in original.items()}
    assert list(narrow.state_dict()) == list(original)
    assert features(narrow, torch.zeros(2, 3, 112, 112))[0].shape == (2, 192)


def test_any_text_becomes_tokens(facts: list[Facts]) -> None:
    tokenizer = build_tokenizer(facts)
    encoded = tokenizer(["a dog", "naïve 日本語 🐕", "word " * 200], max_length=CONTEXT_LENGTH, truncation=True)

    for ids in encoded["input_ids"]:
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == max(ids) == tokenizer.eos_token_id == len(tokenizer) - 1
        assert len(ids) <= CONTEXT_LENGTH
    assert tokenizer.decode(encoded["input_ids"][1], skip_special_tokens=True).strip() == "naïve 日本語 🐕"


def test_clip_training_goes_on_from_its_checkpoint_and_loads_in_open_clip(tmp_path: Path) -> None:
    common = [
        "--batch",
        "8",
        "--scenes",
        "24",
        "--validation",
        "12",
        "--crowds",
        "12",
        "--threads",
        "1",
        "--work",
        str(tmp_path),
    ]
    train_clip.main([*common, "--steps", "2", "--out", str(tmp_path / "clip")])
    before = load_file(tmp_path / "clip" / "open_clip_model.safetensors")
    train_clip.main([*common, "--steps", "3", "--resume", "--out", str(tmp_path / "clip")])
    after = load_file(tmp_path / "clip" / "open_clip_model.safetensors")

    assert not torch.equal(before["visual.conv1.weight"], after["visual.conv1.weight"])
    assert torch.load(tmp_path / "clip-checkpoint.pt", weights_only=True)["step"] == 3
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    torch.testing.assert_close(model.visual.conv1.weight, after["visual.conv1.weight"].float())
    assert prepare.transforms[0].size == (112, 112)


def test_resnet_training_writes_config_and_weights(tmp_path: Path) -> None:
    common = ["--batch", "8", "--scenes", "12", "--threads", "1", "--work", str(tmp_path)]
    train_resnet.main(
        [*common, "--grouped-scenes", "12", "--validation", "10", "--steps", "2", "--out", str(tmp_path / "resnet")]
    )
    config = json.loads((tmp_path / "resnet" / "config.json").read_text(encoding="utf-8"))
    network = build_resnet(config["width"], config["num_classes"])

    network.load_state_dict(load_file(tmp_path / "resnet" / "model.safetensors"))

    assert config["feature_dim"] == features(network.eval(), torch.zeros(1, 3, 112, 112))[0].shape[1]
