"""Train the caption slot: a small BLIP that names every object of a scene, and its background."""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from starter_models import train_clip
from starter_models.batches import facts_matrix, shuffled, view
from starter_models.captions import canonical
from starter_models.half_precision import MasterWeights
from starter_models.labels import BACKGROUND_COLOURS, BACKGROUND_KINDS, LABELS, PAINTS
from starter_models.measures import Agreement, caption_labels, label_agreement
from starter_models.rendered import RenderedScenes, default_folder, load_rendered

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "caption"
IMAGE_SIZE, PATCH_SIZE, WIDTH = train_clip.IMAGE_SIZE, train_clip.PATCH_SIZE, train_clip.WIDTH
VISION_LAYERS = 4
TEXT_WIDTH, TEXT_LAYERS = 192, 3
#: Up to how many of a label the training head counts.
COUNTED = 3
#: Tokens a sentence has at most, with its first and last; five painted things of five labels need 32.
MAX_TOKENS = 40
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def vocabulary() -> list[str]:
    """Return the tokens: special ones, marks, letters for words that are not known, and every word of the captions."""
    words = {
        "a",
        "an",
        "no",
        "one",
        "two",
        "three",
        "four",
        "five",
        "and",
        "on",
        "in",
        "of",
        "pair",
        "pairs",
        "background",
    }
    words.update(PAINTS, BACKGROUND_COLOURS)
    for adjectives in BACKGROUND_KINDS.values():
        words.update(adjectives)
    for label in LABELS:
        words.update(" ".join(word for pair in label.words for word in pair).split())
    letters = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    return [*_SPECIAL, ",", ".", *letters, *sorted(words - set(_LETTERS))]


def build_tokenizer() -> Any:
    """Return the BERT tokenizer over ``vocabulary``."""
    tokens = {token: number for number, token in enumerate(vocabulary())}
    return BertTokenizer(vocab=tokens, bos_token="[DEC]", model_max_length=MAX_TOKENS)


def model_config(tokenizer: Any) -> BlipConfig:
    """Return BLIP's config; BLIP begins a sentence with [DEC] and ends it with [SEP]."""
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
        layer_norm_eps=1e-6,
        bos_token_id=tokenizer.convert_tokens_to_ids("[DEC]"),
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=0.02,
    )
    return BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)


class Trainee(nn.Module):
    """The model, and heads that only training has: they read labels off patches and counts off the first token."""

    def __init__(self, tokenizer: Any) -> None:
        """Build both with fresh weights."""
        super().__init__()
        self.blip: Any = BlipForConditionalGeneration(model_config(tokenizer))
        self.patch_head = nn.Linear(WIDTH, len(LABELS) + 1)
        self.count_head = nn.Linear(WIDTH, len(LABELS) * COUNTED)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the picture's tokens, (n, 1 + patches, width), from pictures in 0–1."""
        tokens: Tensor = self.blip.vision_model(pixel_values=normalised(pictures).bfloat16())[0]
        return tokens


def start_from_clip(trainee: Trainee, weights: dict[str, Tensor], pictures: Tensor) -> None:
    """Begin with the clip slot's eyes: its patches and first layers.

    BLIP has no layer norm before its first layer. Where the clip slot divides each token by its own deviation, the
    weights here take the mean deviation over ``pictures`` (normalised, n × 3 × side × side).
    """
    state = {name.removeprefix("visual."): value.float() for name, value in weights.items()}
    target = trainee.blip.vision_model.state_dict()
    gain, shift = state["ln_pre.weight"], state["ln_pre.bias"]
    positions = state["positional_embedding"]
    tokens = F.conv2d(pictures, state["conv1.weight"], stride=PATCH_SIZE).flatten(2).transpose(1, 2) + positions[1:]
    scale = gain / tokens.std(dim=-1, correction=0).mean()
    kernel = state["conv1.weight"]
    new = {
        "embeddings.patch_embedding.weight": (kernel - kernel.mean(dim=0)) * scale.view(-1, 1, 1, 1),
        "embeddings.patch_embedding.bias": torch.zeros(WIDTH),
        "post_layernorm.weight": state["ln_post.weight"],
        "post_layernorm.bias": state["ln_post.bias"],
    }
    whole = F.layer_norm(state["class_embedding"] + positions[0], (WIDTH,), gain, shift)
    moved = (positions - positions.mean(dim=1, keepdim=True)) * scale + shift
    new["embeddings.class_embedding"] = whole.view(1, 1, -1)
    new["embeddings.position_embedding"] = torch.cat((torch.zeros(1, WIDTH), moved[1:]))[None]
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.projection": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for layer in range(VISION_LAYERS):
        here, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            new[f"{here}.self_attn.qkv.{part}"] = state[f"{there}.attn.in_proj_{part}"]
            for mine, other in names.items():
                new[f"{here}.{mine}.{part}"] = state[f"{there}.{other}.{part}"]
    if new.keys() != target.keys():
        raise ValueError(f"the layouts differ in {sorted(new.keys() ^ target.keys())}")
    trainee.blip.vision_model.load_state_dict(new)


def encode(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token numbers that begin with [DEC] and end with [SEP], and the mask of what is no padding."""
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    ids = torch.as_tensor(encoded["input_ids"])
    ids[:, 0] = tokenizer.convert_tokens_to_ids("[DEC]")
    return ids, torch.as_tensor(encoded["attention_mask"])


def normalised(pictures: Tensor) -> Tensor:
    """Turn pictures in 0–1 into what the network takes."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (train_clip.MEAN, train_clip.STD))
    return (pictures - mean) / std


def word_loss(trainee: Trainee, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the mean loss of a word, given what the picture's tokens are seen as."""
    decoder = trainee.blip.text_decoder
    words = decoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, use_cache=False).logits
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(words[:, :-1].float().flatten(0, 1), targets.flatten())


def patch_loss(trainee: Trainee, seen: Tensor, shares: Tensor) -> Tensor:
    """Return the mean loss of a patch's label, given what the picture's tokens are seen as."""
    scores = F.log_softmax(trainee.patch_head(seen[:, 1:]).float(), dim=-1)
    # Background patches outnumber object patches about four to one.
    weight = 1 - 0.75 * shares[..., 0]
    return -((scores * shares).sum(dim=-1) * weight).sum() / weight.sum()


def count_loss(trainee: Trainee, seen: Tensor, facts: Tensor) -> Tensor:
    """Return the loss of saying of each label whether there is at least one, two and three of it.

    Without it the decoder learns late what a number word stands for: it has to tell two dogs before it tells a dog.
    """
    wanted = facts[:, : 5 * len(LABELS)].view(len(facts), len(LABELS), 5)[:, :, :COUNTED].float()
    scores = trainee.count_head(seen[:, 0]).float().view_as(wanted)
    return F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / len(facts)


@torch.no_grad()
def quick_agreement(trainee: Trainee, scenes: RenderedScenes, tokenizer: Any, count: int) -> Agreement:
    """Compare the captions of the first scenes of a rendered set with their truth."""
    trainee.eval()
    said, generator = [], torch.Generator().manual_seed(0)
    for start in range(0, count, 100):
        seen = view(scenes, np.arange(start, min(start + 100, count)), IMAGE_SIZE, generator, strength=0)
        ids = trainee.blip.generate(normalised(seen.pictures).bfloat16(), max_new_tokens=MAX_TOKENS)
        said += [caption_labels(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    trainee.train()
    return label_agreement(said, [Counter(thing.label for thing in facts.things) for facts in scenes.facts[:count]])


def export(trainee: Trainee, tokenizer: Any, folder: Path) -> None:
    """Write the folder that transformers' ``from_pretrained`` takes, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(tokenizer)
    config.architectures = ["BlipForConditionalGeneration"]
    # The file holds half precision to be small; whoever loads it computes in float32 unless they ask otherwise.
    config.dtype = "float32"
    config.save_pretrained(folder)
    generation = deepcopy(trainee.blip.generation_config)
    generation.max_new_tokens = MAX_TOKENS
    generation.save_pretrained(folder)
    BlipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(train_clip.MEAN),
        image_std=list(train_clip.STD),
        resample=3,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    tied = {"text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"}
    state = {
        name: value.detach().half().contiguous()
        for name, value in trainee.blip.state_dict().items()
        if name not in tied and value.is_floating_point()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def train(arguments: argparse.Namespace) -> None:
    """Train one leg; a leg has its own warm-up and decay, and ``--resume`` starts from the last one's weights."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    scenes = load_rendered("train", arguments.scenes, processes=arguments.threads, folder=arguments.work)
    validation = load_rendered("validation", arguments.validation, folder=arguments.work)
    tokenizer = build_tokenizer()
    trainee = Trainee(tokenizer)
    generator, done = torch.Generator().manual_seed(arguments.seed), 0
    checkpoint = arguments.work / "caption-checkpoint.pt"
    if arguments.resume:
        saved = torch.load(checkpoint, weights_only=True)
        trainee.load_state_dict(saved["model"])
        done = saved["step"]
    elif arguments.clip is not None:
        some = normalised(view(scenes, np.arange(min(64, len(scenes))), IMAGE_SIZE, generator, strength=0.3).pictures)
        start_from_clip(trainee, load_file(arguments.clip / "open_clip_model.safetensors"), some)
    trainee.bfloat16()
    masters = MasterWeights(trainee, rate=arguments.rate, decay=0.05)
    if arguments.resume:
        masters.load_values(list(saved["masters"]))
    batches = shuffled(len(scenes), arguments.batch, np.random.default_rng(arguments.seed + done))
    generator.manual_seed(arguments.seed + done)
    crowds = load_rendered("train", arguments.crowds, crowd=True, folder=arguments.work)
    facts, crowd_facts = facts_matrix(scenes.facts), facts_matrix(crowds.facts)
    crowd_batches = shuffled(len(crowds), arguments.batch, np.random.default_rng(arguments.seed + done))
    started, running = time.monotonic(), dict.fromkeys(("word", "patch", "count"), math.nan)
    for step in range(arguments.steps):
        parts: dict[str, Tensor] = {}
        # Crowds have no sentence, but four times the objects to be told apart.
        crowded = step % 2 == 1 and step < arguments.crowded * arguments.steps
        indices = next(crowd_batches if crowded else batches)
        source, truth = (crowds, crowd_facts) if crowded else (scenes, facts)
        cut = view(source, indices, IMAGE_SIZE, generator, strength=arguments.strength, patch=PATCH_SIZE, flip=True)
        seen = trainee(cut.pictures)
        if not crowded:
            ids, mask = encode(tokenizer, [canonical(scenes.facts[index]) for index in indices])
            parts["word"] = word_loss(trainee, seen, ids, mask)
        assert cut.patches is not None
        parts["patch"] = 0.5 * patch_loss(trainee, seen, cut.patches)
        parts["count"] = 0.1 * count_loss(trainee, seen, truth[torch.from_numpy(indices)])
        torch.autograd.backward(torch.stack(list(parts.values())).sum())
        masters.step(step / arguments.steps)
        for name, part in parts.items():
            running[name] = part.item() if math.isnan(running[name]) else 0.95 * running[name] + 0.05 * part.item()
        if step % 20 == 0:
            speed = (step + 1) * arguments.batch / (time.monotonic() - started)
            print(f"{step} {speed:.0f}/s", *(f"{name} {value:.4f}" for name, value in running.items()), flush=True)
        if step % arguments.every == arguments.every - 1 or step == arguments.steps - 1:
            found = quick_agreement(trainee, validation, tokenizer, min(200, arguments.validation))
            print(f"step {done + step + 1}: validation {found}", flush=True)
            state = {"model": trainee.state_dict(), "masters": masters.values(), "step": done + step + 1}
            torch.save(state, checkpoint)
            export(trainee, tokenizer, arguments.out)


def main(arguments: list[str] | None = None) -> None:
    """Train the caption slot and write its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--strength", type=float, default=0.3, help="of what changes pictures; much of it cuts things")
    parser.add_argument("--scenes", type=int, default=train_clip.TRAINING_SCENES)
    parser.add_argument("--crowds", type=int, default=10_000)
    parser.add_argument(
        "--crowded", type=float, default=0.6, help="until this part of the steps every other is a crowd"
    )
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--every", type=int, default=250, help="steps from one checkpoint to the next")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clip", type=Path, default=train_clip.WEIGHTS, help="weights to begin with")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint's weights")
    parser.add_argument("--work", type=Path, default=default_folder(), help="rendered scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
