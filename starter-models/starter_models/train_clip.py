"""Train the clip slot: a small ViT and a text tower that put a scene and a sentence that fits it side by side."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from starter_models.batches import View, demands_vector, facts_matrix, fitting, shuffled, view
from starter_models.captions import Caption, Facts, describe, describe_part, label_query
from starter_models.half_precision import MasterWeights, use_batched_attention
from starter_models.labels import BACKGROUND_COLOURS, BACKGROUND_KINDS, LABELS
from starter_models.rendered import RenderedScenes, default_folder, load_rendered
from starter_models.vocabulary import CONTEXT_LENGTH, build_tokenizer, save_tokenizer

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "clip"
MEAN, STD = (0.5, 0.5, 0.5), (0.27, 0.27, 0.27)
IMAGE_SIZE, PATCH_SIZE, WIDTH = 112, 14, 256
TOKENIZER_SCENES = 5_000
TRAINING_SCENES = 100_000


def model_config(vocabulary_size: int) -> dict[str, Any]:
    """Return the open_clip model config."""
    return {
        "embed_dim": 256,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": 6,
            "width": WIDTH,
            "head_width": 64,
            "patch_size": PATCH_SIZE,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary_size,
            "hf_tokenizer_name": "tokenizer.json",
            "width": 192,
            "heads": 3,
            "layers": 4,
        },
    }


def preprocess_config() -> dict[str, Any]:
    """Return open_clip's preprocessing: the whole picture squashed to a square, so that no object is cut off."""
    return {
        "size": [IMAGE_SIZE, IMAGE_SIZE],
        "mode": "RGB",
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


class Trainee(nn.Module):
    """The model, and heads that only training has: they read labels off patches and backgrounds off the whole."""

    def __init__(self, vocabulary_size: int) -> None:
        """Build towers and heads with fresh weights."""
        super().__init__()
        config = model_config(vocabulary_size)
        del config["text_cfg"]["hf_tokenizer_name"]
        # The scale's own steps are small: from the usual 14 it would take all the training to get where it works.
        self.clip = CLIP(**config, init_logit_scale=math.log(30))
        self.clip.visual.output_tokens = True
        self.patch_head = nn.Linear(WIDTH, len(LABELS) + 1)
        self.ground_head = nn.Linear(256, len(BACKGROUND_COLOURS) + len(BACKGROUND_KINDS))
        self.count_head = nn.Linear(256, len(LABELS))

    def forward(self, pictures: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return picture vectors, patch tokens, text vectors; vectors are not normalised."""
        pooled, tokens = self.clip.visual(pictures)
        return pooled, tokens, self.clip.encode_text(texts)


def make_captions(facts: list[Facts], rng: Random) -> list[Caption]:
    """One sentence per scene (two in three name everything), then one query per label."""
    captions = [describe(item, rng) if rng.random() < 0.66 else describe_part(item, rng) for item in facts]
    return captions + make_label_queries(rng)


def make_label_queries(rng: Random) -> list[Caption]:
    """One query for every label."""
    return [label_query(label.name, rng) for label in LABELS]


def contrast(logits: Tensor, fits: Tensor, own: Tensor) -> Tensor:
    """Cross-entropy of the right column in each row, where other right columns do not count against it.

    Args:
        logits: (rows, columns).
        fits: which columns are right in a row, bool.
        own: the pairs to score, as (pairs, 2) row and column numbers.
    """
    wrong = logits.masked_fill(fits, -torch.inf).logsumexp(dim=1)
    right = logits[own[:, 0], own[:, 1]]
    return F.softplus(wrong[own[:, 0]] - right).mean()


def losses(trainee: Trainee, seen: View, texts: Tensor, facts: Tensor, captions: list[Caption]) -> dict[str, Tensor]:
    """Compute every part of the loss for one batch.

    ``captions`` are one for each scene, then the label queries; for crowds, the label queries alone.
    """
    assert seen.patches is not None
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    pooled, tokens, text = trainee(((seen.pictures - mean) / std).bfloat16(), texts)
    count = len(pooled)
    image = F.normalize(pooled.float(), dim=-1)
    words = F.normalize(text.float(), dim=-1)
    logits = trainee.clip.logit_scale.float().exp().clamp(max=100) * image @ words.T

    demands = torch.from_numpy(np.stack([demands_vector(caption) for caption in captions]))
    fits = fitting(facts, demands)
    described = len(captions) - len(LABELS)
    label_pairs = fits[:, described:].T.nonzero()
    patch_loss = -(F.log_softmax(trainee.patch_head(tokens).float(), dim=-1) * seen.patches).sum(dim=-1)
    # Background patches outnumber object patches about four to one.
    weight = 1 - 0.75 * seen.patches[..., 0]
    ground = trainee.ground_head(pooled).float()
    colours = len(BACKGROUND_COLOURS)
    at = facts.shape[1] - colours - len(BACKGROUND_KINDS)
    present = facts[:, : 5 * len(LABELS)].view(count, len(LABELS), 5).sum(dim=2).float()
    parts = {
        "label": contrast(logits[:, described:].T, fits[:, described:].T, label_pairs),
        "tag": contrast(logits[:, described:], fits[:, described:], label_pairs.flip(1)),
        "patch": (patch_loss * weight).sum() / weight.sum(),
        "ground": F.cross_entropy(ground[:, :colours], facts[:, at : at + colours].float())
        + F.cross_entropy(ground[:, colours:], facts[:, at + colours :].float()),
        "count": F.smooth_l1_loss(trainee.count_head(pooled).float(), present, beta=0.2) * 20,
    }
    if described:
        exact = torch.tensor([caption.exact for caption in captions])
        sure = fits & ~exact
        diagonal = torch.arange(count)
        sure[diagonal, diagonal] = True
        own = torch.stack((diagonal, diagonal), dim=1)
        parts["text"] = contrast(logits[:, :count].T, sure[:, :count].T, own)
        parts["image"] = contrast(logits[:, :count], sure[:, :count], own)
    return parts


LOSS_WEIGHTS = {"text": 1.0, "image": 1.0, "label": 1.5, "tag": 1.0, "patch": 1.0, "ground": 0.2, "count": 0.2}


@torch.no_grad()
def quick_recall(trainee: Trainee, scenes: RenderedScenes, tokenizer: Any) -> float:
    """Return text→image recall@10 of full descriptions among rendered scenes."""
    trainee.eval()
    count = len(scenes)
    rng = Random(7)
    texts = [describe(facts, rng, background=True).text for facts in scenes.facts]
    generator = torch.Generator().manual_seed(0)
    images, words = [], []
    for start in range(0, count, 250):
        seen = view(scenes, np.arange(start, min(start + 250, count)), IMAGE_SIZE, generator, strength=0)
        mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        pooled, _, text = trainee(
            ((seen.pictures - mean) / std).bfloat16(), _encode(tokenizer, texts[start : start + 250])
        )
        images.append(F.normalize(pooled.float(), dim=-1))
        words.append(F.normalize(text.float(), dim=-1))
    trainee.train()
    scores = torch.cat(words) @ torch.cat(images).T
    found = scores.topk(min(10, count), dim=1).indices == torch.arange(count)[:, None]
    return found.any(dim=1).float().mean().item()


def _encode(tokenizer: Any, texts: list[str]) -> Tensor:
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt")
    return torch.as_tensor(encoded["input_ids"])


def export(trainee: Trainee, tokenizer: Any, folder: Path) -> None:
    """Write the folder that open_clip's ``local-dir:`` loader takes, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_config(len(tokenizer)), "preprocess_cfg": preprocess_config()}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder)
    state = {name: value.detach().half().contiguous() for name, value in trainee.clip.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def train(arguments: argparse.Namespace) -> None:
    """Train until the steps are done, saving a checkpoint that ``--resume`` goes on from."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    scenes = load_rendered("train", arguments.scenes, processes=arguments.threads, folder=arguments.work)
    validation = load_rendered("validation", arguments.validation, folder=arguments.work)
    tokenizer = build_tokenizer(scenes.facts[:TOKENIZER_SCENES])
    trainee = Trainee(len(tokenizer)).bfloat16()
    use_batched_attention(trainee)
    masters = MasterWeights(trainee, rate=arguments.rate, decay=0.1)
    facts = facts_matrix(scenes.facts)
    batches = shuffled(len(scenes), arguments.batch, np.random.default_rng(arguments.seed))
    generator, rng = torch.Generator().manual_seed(arguments.seed), Random(arguments.seed)
    checkpoint = arguments.work / "clip-checkpoint.pt"
    first = 0
    if arguments.resume:
        saved = torch.load(checkpoint, weights_only=True)
        masters.load_state(saved["state"])
        first = saved["step"]
        for _ in range(first):
            next(batches)
    crowd_count = arguments.crowds if first < arguments.crowded_until else 0
    crowds = load_rendered("train", crowd_count, crowd=True, folder=arguments.work) if crowd_count else scenes
    crowd_facts = facts_matrix(crowds.facts) if crowd_count else facts
    crowd_batches = shuffled(len(crowds), arguments.batch, np.random.default_rng(arguments.seed))
    started, running = time.monotonic(), dict.fromkeys(LOSS_WEIGHTS, 0.0)
    for step in range(first, arguments.steps):
        if step < arguments.crowded_until and step % 4 != 0:
            indices = next(crowd_batches)
            seen = view(crowds, indices, IMAGE_SIZE, generator, strength=0.8, patch=PATCH_SIZE)
            captions, truth = make_label_queries(rng), crowd_facts[torch.from_numpy(indices)]
        else:
            indices = next(batches)
            seen = view(scenes, indices, IMAGE_SIZE, generator, strength=0.8, patch=PATCH_SIZE)
            captions, truth = (
                make_captions([scenes.facts[index] for index in indices], rng),
                facts[torch.from_numpy(indices)],
            )
        parts = losses(trainee, seen, _encode(tokenizer, [caption.text for caption in captions]), truth, captions)
        total = torch.stack([LOSS_WEIGHTS[name] * value for name, value in parts.items()]).sum()
        torch.autograd.backward(total)
        masters.step(step / arguments.steps)
        for name, value in parts.items():
            running[name] = 0.9 * running[name] + 0.1 * value.item() if running[name] else value.item()
        if step % 10 == 0:
            speed = (step - first + 1) * arguments.batch / (time.monotonic() - started)
            print(f"{step} {speed:.0f}/s", *(f"{name} {value:.3f}" for name, value in running.items()), flush=True)
        if step % arguments.every == arguments.every - 1 or step == arguments.steps - 1:
            recall = quick_recall(trainee, validation, tokenizer)
            print(f"step {step + 1}: validation recall@10 {recall:.4f}", flush=True)
            torch.save({"state": masters.state(), "step": step + 1}, checkpoint)
            export(trainee, tokenizer, arguments.out)


def main(arguments: list[str] | None = None) -> None:
    """Train the clip slot and write its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--scenes", type=int, default=TRAINING_SCENES)
    parser.add_argument("--validation", type=int, default=1000, help="scenes of the validation split")
    parser.add_argument("--crowds", type=int, default=10_000)
    parser.add_argument(
        "--crowded-until", type=int, default=3600, help="up to this step, three batches in four are crowds"
    )
    parser.add_argument("--every", type=int, default=250, help="steps from one checkpoint to the next")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--work", type=Path, default=default_folder(), help="rendered scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
