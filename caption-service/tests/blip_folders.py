"""BLIP folders with random weights in the layout of the real ones, and what tests do with them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from caption_service.artifacts import Artifact, order_for
from caption_service.catalogue import wanted
from caption_service.settings import Settings
from PIL import Image

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SMALL: dict[str, Any] = {
    "text_config": {
        "hidden_size": 64,
        "encoder_hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 80,
        "initializer_range": 0.3,  # with the usual 0.02 so small a model says the same of every picture
    },
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "initializer_range": 0.1,
    },
}
#: Salesforce/blip-image-captioning-base: 247 million parameters.
BASE: dict[str, Any] = {"text_config": {"num_attention_heads": 12}, "vision_config": {"image_size": 384}}


def write_blip(
    folder: Path, sizes: dict[str, Any] = SMALL, *, words: int = 400, old_files: bool = False, seed: int = 5
) -> Path:
    """Write a BLIP whose tokens are `words` words and a few pieces, with random weights.

    `old_files`: as published in 2022: `vocab.txt` without the two tokens that begin sentences, `pytorch_model.bin`.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder.mkdir(parents=True)
    tokens = [*SPECIAL, ",", "and", "a", "##s", *(f"word{number}" for number in range(words))]
    config = transformers.BlipConfig(
        text_config={
            **sizes["text_config"],
            "vocab_size": len(tokens) + 2,
            "bos_token_id": len(tokens),
            "eos_token_id": 2,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        # The library's own range, 1e-10, would make a random model blind.
        vision_config={"initializer_range": 0.02, **sizes["vision_config"]},
    )
    torch.manual_seed(seed)
    model = transformers.BlipForConditionalGeneration(config)
    side = config.vision_config.image_size
    transformers.BlipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    if old_files:
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer = transformers.BertTokenizer(vocab=vocabulary, bos_token="[DEC]", extra_special_tokens=["[ENC]"])
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def convert_here(settings: Settings, *, half: bool) -> Artifact:
    """Convert the first model of `settings` in this process, which has the libraries in memory already."""
    from caption_service.conversion import convert

    order = order_for(wanted(settings)[0], settings.cache_dir, half=half)
    if Artifact.load(order.target) is None:
        with order.draft() as folder:
            convert(order, folder)
    artifact = Artifact.load(order.target)
    assert artifact is not None
    return artifact


def change(folder: Path, file: str, **values: Any) -> None:
    """Set fields of a JSON file; None takes a field away."""
    path = folder / file
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def scenery(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with structure of every size."""
    rng = np.random.default_rng(width * 10_000 + height + seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (max(1, height // k), max(1, width // k), 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for k in (2, 8, 32)
    ]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    """The picture as a file without loss."""
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
