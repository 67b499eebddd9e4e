"""Train the cutout slot: a narrow U²-Net that tells a scene's objects from what is behind them, exported to ONNX."""

from __future__ import annotations

import argparse
import io
import json
import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from starter_models.batches import shuffled
from starter_models.measures import mask_iou
from starter_models.rendered import default_folder
from starter_models.scenes import Scene, Split, draw_scene
from starter_models.u2net import Sigmoids, U2Net

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "cutout"
#: What rembg's U²-Net sessions normalise with, after they divide a picture by its brightest value.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 160
#: Of the fused map and of the six stages', from the finest on.
_LOSS_WEIGHTS = (2.0, 1.0, 0.6, 0.4, 0.3, 0.2, 0.2)
_CHUNK = 250


@dataclass(frozen=True)
class MaskedScenes:
    """Memory-mapped scenes squashed to squares: pictures (n, SIDE, SIDE, 3) and masks (n, SIDE, SIDE), uint8."""

    pictures: NDArray[np.uint8]
    masks: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.masks)


def foreground(scene: Scene) -> NDArray[np.uint8]:
    """Return the union of a scene's object masks, (height, width), 0–255."""
    union: NDArray[np.uint8] = np.stack([item.mask for item in scene.objects]).max(axis=0)
    return union


def load_masked(split: Split, count: int, *, processes: int = 1, folder: Path | None = None) -> MaskedScenes:
    """Return the first ``count`` scenes of a split with their masks, drawing them first unless they are on disk."""
    target = (folder or default_folder()) / f"{split}-{count}-cutout"
    paths = target / "pictures.npy", target / "masks.npy"
    if not paths[1].exists():
        target.mkdir(parents=True, exist_ok=True)
        pictures = np.lib.format.open_memmap(paths[0], mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
        masks = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
        starts = range(0, count, _CHUNK)
        with ProcessPoolExecutor(processes) as pool:
            for start, (some, covers) in zip(starts, pool.map(partial(_render, split, count), starts), strict=True):
                pictures[start : start + len(some)] = some
                masks[start : start + len(some)] = covers
        pictures.flush()
        # Written last: its presence says that both arrays are whole.
        unfinished = target / "masks.part.npy"
        np.save(unfinished, masks)
        unfinished.rename(paths[1])
    return MaskedScenes(np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r"))


def _render(split: Split, count: int, start: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pictures, masks = [], []
    for index in range(start, min(start + _CHUNK, count)):
        # At the size of test scenes and through JPEG, whose traces around edges a net that has not met them cuts along.
        scene = draw_scene(split, index)
        picture = Image.open(io.BytesIO(scene.jpeg())).convert("RGB")
        pictures.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
        masks.append(np.asarray(Image.fromarray(foreground(scene)).resize((SIDE, SIDE), Image.Resampling.BOX)))
    return np.stack(pictures), np.stack(masks)


def make_batch(
    scenes: MaskedScenes, indices: NDArray[np.int64], side: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return pictures in 0–1 and masks in 0–1, mirrored, zoomed and recoloured."""
    count = len(indices)
    pictures = torch.from_numpy(scenes.pictures[indices]).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(scenes.masks[indices])[:, None].float() / 255
    both = torch.cat((pictures, masks), dim=1)
    if side != SIDE:
        both = F.interpolate(both, (side, side), mode="bilinear", antialias=True, align_corners=False)
    zoom = 1 - 0.25 * torch.rand(count, generator=rng) * (torch.rand(count, generator=rng) < 0.5)
    sign = torch.randint(0, 2, (count,), generator=rng) * 2 - 1
    shift = (torch.rand(count, 2, generator=rng) * 2 - 1) * (1 - zoom)[:, None]
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = zoom * sign, zoom, shift
    grid = F.affine_grid(matrix, list(both.shape), align_corners=False)
    both = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain = 1 + (torch.rand(count, 3, 1, 1, generator=rng) - 0.5) * 0.2
    offset = (torch.rand(count, 1, 1, 1, generator=rng) - 0.5) * 0.1
    return (both[:, :3] * gain + offset).clamp_(0, 1), both[:, 3:]


def normalised(pictures: Tensor) -> Tensor:
    """Normalise pictures in 0–1 as rembg does."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    brightest = pictures.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return ((pictures / brightest - mean) / std).contiguous(memory_format=torch.channels_last)


def loss_of(maps: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Return the weighted sum of every map's mean binary cross-entropy, and what the fused map's overlap lacks to 1.

    Coarse maps cannot be sharp: at full weight they would outweigh the fused one, which is what is used.
    """
    logits = [item.float() for item in maps]
    crossed = [F.binary_cross_entropy_with_logits(item, masks) for item in logits]
    fused = torch.sigmoid(logits[0])
    shared = (fused * masks).sum(dim=(1, 2, 3))
    together = (fused + masks - fused * masks).sum(dim=(1, 2, 3))
    overlap = (1 - shared / together.clamp(min=1)).mean()
    return torch.stack([weight * part for weight, part in zip(_LOSS_WEIGHTS, crossed, strict=True)]).sum() + overlap


@torch.no_grad()
def quick_iou(network: U2Net, scenes: MaskedScenes, side: int) -> float:
    """Return the mean overlap of foregrounds at a rendered set's size."""
    network.eval()
    found = []
    for start in range(0, len(scenes), 50):
        pictures = torch.tensor(scenes.pictures[start : start + 50]).permute(0, 3, 1, 2).float() / 255
        small = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)
        fused = torch.sigmoid(network(normalised(small))[0])
        whole = F.interpolate(fused, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
        alphas = (whole * 255).round().to(torch.uint8).numpy()
        found += [mask_iou(*pair) for pair in zip(alphas, scenes.masks[start : start + 50], strict=True)]
    network.train()
    return float(np.mean(found))


def export(network: U2Net, side: int, folder: Path) -> None:
    """Write ``model.onnx``, whose first output is the fused map (n, 1, side, side) in 0–1, and ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = U2Net()
    plain.load_state_dict(network.state_dict())
    names = ["fused", *(f"side{number}" for number in range(1, 7))]
    with warnings.catch_warnings():
        # The older exporter needs no package but onnx; it says that it is the older one.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            Sigmoids(plain).eval(),
            (torch.zeros(1, 3, side, side),),
            str(folder / "model.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in ["input", *names]},
        )
    config = {"architecture": "u2net", "size": side, "mean": list(MEAN), "std": list(STD), "divide_by_max": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(arguments: argparse.Namespace) -> None:
    """Train one leg; a leg has its own warm-up and decay, and ``--resume`` starts from the last one's weights."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    scenes = load_masked("train", arguments.scenes, processes=arguments.threads, folder=arguments.work)
    validation = load_masked("validation", arguments.validation, processes=arguments.threads, folder=arguments.work)
    network, done = U2Net().to(memory_format=torch.channels_last), 0
    checkpoint = arguments.work / "cutout-checkpoint.pt"
    if arguments.resume:
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["model"])
        done = saved["step"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-4, fused=True)
    batches = shuffled(len(scenes), arguments.batch, np.random.default_rng(arguments.seed + done))
    generator = torch.Generator().manual_seed(arguments.seed + done)
    started, running = time.monotonic(), math.nan
    for step in range(arguments.steps):
        progress = step / arguments.steps
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1.0, (progress + 0.002) / 0.04) * (0.02 + 0.98 * (1 - progress))
        pictures, masks = make_batch(scenes, next(batches), arguments.side, generator)
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(normalised(pictures))
        loss = loss_of(maps, masks)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        if step % 20 == 0:
            speed = (step + 1) * arguments.batch / (time.monotonic() - started)
            print(f"{step} {speed:.0f}/s loss {running:.4f}", flush=True)
        if step % arguments.every == arguments.every - 1 or step == arguments.steps - 1:
            print(f"step {done + step + 1}: IoU {quick_iou(network, validation, arguments.side):.4f}", flush=True)
            torch.save({"model": network.state_dict(), "step": done + step + 1}, checkpoint)
            export(network, arguments.side, arguments.out)


def main(arguments: list[str] | None = None) -> None:
    """Train the cutout slot and write its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=SIDE, help="side of the pictures in pixels")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--every", type=int, default=200, help="steps from one checkpoint to the next")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint's weights")
    parser.add_argument("--work", type=Path, default=default_folder(), help="drawn scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
