"""Train the resnet slot: a narrow ResNet34 whose pooled feature says which objects a picture has, and which picture.

Pairs are pulled together: two scenes with the same objects, or one scene seen twice (cut, turned, recoloured).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from starter_models.batches import View, facts_matrix, shuffled, view
from starter_models.half_precision import MasterWeights
from starter_models.labels import LABELS
from starter_models.narrow_resnet import build_resnet, features
from starter_models.rendered import RenderedScenes, default_folder, load_rendered

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "resnet"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SIZE, WIDTH, STRIDE = 112, 24, 16
TEMPERATURE = 0.07
#: Share of each batch that consists of two scenes with the same objects; the rest is one scene seen twice.
GROUPED = 0.6


class Trainee(nn.Module):
    """The network, and a head that only training has: it reads labels off the cells of the third stage."""

    def __init__(self) -> None:
        """Build both with fresh weights."""
        super().__init__()
        self.resnet = build_resnet(WIDTH, len(LABELS))
        self.cell_head = nn.Linear(WIDTH * 4, len(LABELS) + 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled features, label logits, and label logits per cell (n, cells, labels + 1)."""
        pooled, middle = features(self.resnet, pictures)
        return pooled, self.resnet.fc(pooled), self.cell_head(middle.flatten(2).transpose(1, 2))


def config() -> dict[str, Any]:
    """Return what a loader must know; the README says what each entry means."""
    return {
        "architecture": "resnet34",
        "width": WIDTH,
        "num_classes": len(LABELS),
        "feature_dim": WIDTH * 8,
        "image_size": IMAGE_SIZE,
        "resize_mode": "squash",
        "interpolation": "bicubic",
        "mean": list(MEAN),
        "std": list(STD),
        "labels": [label.name for label in LABELS],
    }


def normalised(pictures: Tensor) -> Tensor:
    """Return pictures in 0–1 as the network takes them."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((pictures - mean) / std).bfloat16().contiguous(memory_format=torch.channels_last)


def losses(trainee: Trainee, seen: View, counts: Tensor) -> dict[str, Tensor]:
    """Compute the loss's parts for pairs: pictures 2i and 2i + 1 belong together.

    Args:
        trainee: the network.
        seen: the pictures and the label shares of their cells.
        counts: how often each label is in each picture, (n, labels).
    """
    assert seen.patches is not None
    pooled, logits, cells = trainee(normalised(seen.pictures))
    vectors = F.normalize(pooled.float(), dim=-1)
    scores = vectors @ vectors.T / TEMPERATURE
    number = torch.arange(len(vectors))
    partner = number ^ 1
    # Another scene of the batch with the very same objects is no wrong answer.
    same = torch.cdist(counts, counts, p=1) < 0.5
    wrong = scores.masked_fill(same, -torch.inf).logsumexp(dim=1)
    present = (counts > 0).float()
    weight = 1 - 0.75 * seen.patches[..., 0]
    cell_loss = -(F.log_softmax(cells.float(), dim=-1) * seen.patches).sum(dim=-1)
    return {
        "pair": F.softplus(wrong - scores[number, partner]).mean(),
        "label": F.binary_cross_entropy_with_logits(logits.float(), present, pos_weight=torch.tensor(4.0)) * 10,
        "cell": (cell_loss * weight).sum() / weight.sum(),
    }


LOSS_WEIGHTS = {"pair": 1.0, "label": 1.0, "cell": 0.5}


def interleaved(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return first[0], second[0], first[1], second[1], …"""
    return np.stack((first, second), axis=1).reshape(-1)


def joined(views: list[View]) -> View:
    """Put the pictures and shares of several views into one."""
    return View(
        torch.cat([item.pictures for item in views]),
        torch.cat([item.patches for item in views if item.patches is not None]),
    )


@torch.no_grad()
def quick_precision(trainee: Trainee, groups: RenderedScenes, per_group: int) -> float:
    """Return mAP@10 of finding, by the pooled feature, the other scenes with the same objects."""
    trainee.eval()
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in range(0, len(groups), 250):
        indices = np.arange(start, min(start + 250, len(groups)))
        seen = view(groups, indices, IMAGE_SIZE, generator, strength=0)
        parts.append(F.normalize(trainee(normalised(seen.pictures))[0].float(), dim=-1))
    trainee.train()
    vectors = torch.cat(parts)
    return mean_average_precision((vectors @ vectors.T).numpy(), np.arange(len(vectors)) // per_group)


def mean_average_precision(scores: NDArray[np.float32], group: NDArray[np.int64], top: int = 10) -> float:
    """Return mAP@``top``: each row asks for the other members of its group; a lone member is not counted.

    Args:
        scores: (n, n) similarities.
        group: (n,) which group each scene belongs to.
        top: how many answers count.
    """
    scores = scores.copy()
    top = min(top, len(scores) - 1)
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1)[:, :top]
    right = group[order] == group[:, None]
    precision = np.cumsum(right, axis=1) / np.arange(1, top + 1)
    possible = np.minimum(np.bincount(group)[group] - 1, top)
    asked = possible > 0
    return float(((precision * right).sum(axis=1)[asked] / possible[asked]).mean())


def export(trainee: Trainee, folder: Path) -> None:
    """Write config.json and model.safetensors, floating-point values in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=2) + "\n", encoding="utf-8")
    state = {
        name: (value.detach().half() if value.is_floating_point() else value).contiguous()
        for name, value in trainee.resnet.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def to_half(trainee: Trainee) -> None:
    """Turn all but the batch norms to bfloat16: their running statistics need the precision."""
    for module in trainee.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.bfloat16()
    trainee.to(memory_format=torch.channels_last)


def train(arguments: argparse.Namespace) -> None:
    """Train until the steps are done, saving a checkpoint that ``--resume`` goes on from."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    scenes = load_rendered("train", arguments.scenes, processes=arguments.threads, folder=arguments.work)
    groups = load_rendered(
        "train", arguments.grouped_scenes, per_group=2, processes=arguments.threads, folder=arguments.work
    )
    validation = load_rendered("validation", arguments.validation, per_group=5, folder=arguments.work)
    counts = label_counts(scenes)
    group_counts = label_counts(groups)
    trainee = Trainee()
    to_half(trainee)
    masters = MasterWeights(trainee, rate=arguments.rate, decay=0.05)
    pairs = arguments.batch // 2
    grouped_pairs = round(pairs * GROUPED)
    single_batches = shuffled(len(scenes), pairs - grouped_pairs, np.random.default_rng(arguments.seed))
    group_batches = shuffled(len(groups) // 2, grouped_pairs, np.random.default_rng(arguments.seed))
    generator = torch.Generator().manual_seed(arguments.seed)
    checkpoint = arguments.work / "resnet-checkpoint.pt"
    first = 0
    if arguments.resume:
        saved = torch.load(checkpoint, weights_only=True)
        trainee.load_state_dict(saved["model"])
        masters.load_state(saved["state"])
        first = saved["step"]
        for _ in range(first):
            next(single_batches), next(group_batches)
    started, running = time.monotonic(), dict.fromkeys(LOSS_WEIGHTS, 0.0)
    for step in range(first, arguments.steps):
        alone, group = next(single_batches), next(group_batches)
        twice, members = interleaved(alone, alone), interleaved(group * 2, group * 2 + 1)
        seen = joined(
            [
                view(scenes, twice, IMAGE_SIZE, generator, strength=1.0, patch=STRIDE, flip=True),
                view(groups, members, IMAGE_SIZE, generator, strength=0.7, patch=STRIDE, flip=True),
            ]
        )
        parts = losses(trainee, seen, torch.cat((counts[twice], group_counts[members])))
        total = torch.stack([LOSS_WEIGHTS[name] * value for name, value in parts.items()]).sum()
        torch.autograd.backward(total)
        masters.step(step / arguments.steps)
        for name, value in parts.items():
            running[name] = 0.9 * running[name] + 0.1 * value.item() if step > first else value.item()
        if step % 10 == 0:
            speed = (step - first + 1) * arguments.batch / (time.monotonic() - started)
            print(f"{step} {speed:.0f}/s", *(f"{name} {value:.3f}" for name, value in running.items()), flush=True)
        if step % arguments.every == arguments.every - 1 or step == arguments.steps - 1:
            precision = quick_precision(trainee, validation, 5)
            print(f"step {step + 1}: validation mAP@10 {precision:.4f}", flush=True)
            torch.save({"model": trainee.state_dict(), "state": masters.state(), "step": step + 1}, checkpoint)
            export(trainee, arguments.out)


def label_counts(scenes: RenderedScenes) -> Tensor:
    """Return how often each label is in each scene, (n, labels) float32."""
    return facts_matrix(scenes.facts)[:, : 5 * len(LABELS)].view(len(scenes), len(LABELS), 5).sum(dim=2).float()


def main(arguments: list[str] | None = None) -> None:
    """Train the resnet slot and write its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64, help="pictures in a batch; half as many pairs")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--grouped-scenes", type=int, default=40_000)
    parser.add_argument("--validation", type=int, default=1000, help="scenes of the validation split")
    parser.add_argument("--every", type=int, default=500, help="steps from one checkpoint to the next")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--work", type=Path, default=default_folder(), help="rendered scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
