"""Train the objects slot: ultralytics' YOLO11 nano on drawn scenes, crowds, and mosaics of scenes."""

from __future__ import annotations

import os
import tempfile

# Before ultralytics is imported: it neither fetches anything nor writes into the home folder.
os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "False")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics-"))

import argparse
import json
import math
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

from starter_models.labels import LABEL_INDEX, LABELS
from starter_models.measures import Detection, Located, mean_average_precision_50
from starter_models.rendered import RenderedScenes, default_folder, load_rendered

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "objects"
ARCHITECTURE = "yolo11n"
#: What ultralytics pads with.
_GREY = 114
Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class Boxed:
    """Scenes with their boxes: rows of (label number, left, top, right, bottom) as parts of the picture's sides."""

    pictures: Pixels
    boxes: list[Boxes]

    @classmethod
    def of(cls, scenes: RenderedScenes) -> Boxed:
        """Take boxes from the scenes' facts."""
        rows = []
        for facts in scenes.facts:
            scale = np.array([facts.width, facts.height] * 2, dtype=np.float32)
            table = np.zeros((len(facts.things), 5), dtype=np.float32)
            for place, thing in enumerate(facts.things):
                table[place, 0] = LABEL_INDEX[thing.label]
                table[place, 1:] = np.asarray(thing.box, dtype=np.float32) / scale
            rows.append(table)
        return cls(scenes.pictures, rows)


def new_model() -> Any:
    """Build the network with fresh weights and the labels' names."""
    model = DetectionModel(f"{ARCHITECTURE}.yaml", nc=len(LABELS), verbose=False)
    model.names = {number: label.name for number, label in enumerate(LABELS)}
    model.args = get_cfg()
    return model.to(memory_format=torch.channels_last)


def compose(scenes: Boxed, crowds: Boxed, side: int, rng: np.random.Generator) -> tuple[Pixels, Boxes]:
    """Make one picture (side, side, 3): a scene, a crowd or a mosaic of four, cut and scaled; boxes in pixels."""
    canvas = np.full((side, side, 3), _GREY, dtype=np.uint8)
    kind = rng.random()
    if kind < 0.35:
        across, down = (round(side * rng.uniform(0.35, 0.65)) for _ in range(2))
        frames = [(0, 0, across, down), (across, 0, side, down), (0, down, across, side), (across, down, side, side)]
        pasted = [_paste(canvas, scenes, frame, rng, 1.0, 1.3) for frame in frames]
    elif kind < 0.7:
        pasted = [_paste(canvas, crowds, (0, 0, side, side), rng, 0.9, 1.6)]
    else:
        pasted = [_paste(canvas, scenes, (0, 0, side, side), rng, 0.7, 1.3)]
    boxes = np.concatenate(pasted)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
        boxes[:, [1, 3]] = side - boxes[:, [3, 1]]
    return canvas, boxes


def _paste(
    canvas: Pixels, source: Boxed, frame: tuple[int, int, int, int], rng: np.random.Generator, low: float, high: float
) -> Boxes:
    """Put one picture into a frame of the canvas, ``low`` to ``high`` times as large; return its boxes there."""
    index = int(rng.integers(len(source.boxes)))
    left, top, right, bottom = frame
    scale, squeeze = rng.uniform(low, high), math.exp(rng.uniform(-0.2, 0.2) / 2)
    width, height = round((right - left) * scale * squeeze), round((bottom - top) * scale / squeeze)
    picture = source.pictures[index]
    method = cv2.INTER_AREA if width * height < picture.shape[0] * picture.shape[1] else cv2.INTER_LINEAR
    picture = cv2.resize(picture, (width, height), interpolation=method)
    x = left + round((right - left - width) * rng.random())
    y = top + round((bottom - top - height) * rng.random())
    x1, y1, x2, y2 = max(x, left), max(y, top), min(x + width, right), min(y + height, bottom)
    canvas[y1:y2, x1:x2] = picture[y1 - y : y2 - y, x1 - x : x2 - x]
    boxes = source.boxes[index].copy()
    boxes[:, 1:] = boxes[:, 1:] * (width, height, width, height) + (x, y, x, y)
    area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(x1, x2)
    boxes[:, [2, 4]] = boxes[:, [2, 4]].clip(y1, y2)
    sides = boxes[:, 3:5] - boxes[:, 1:3]
    kept: Boxes = boxes[(sides.prod(axis=1) >= 0.4 * area) & (sides.min(axis=1) >= 5)]
    return kept


def make_batch(scenes: Boxed, crowds: Boxed, count: int, side: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Compose a batch as ultralytics' loss takes it: pictures in 0–1, boxes as (x, y, width, height) in 0–1."""
    made = [compose(scenes, crowds, side, rng) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([picture for picture, _ in made])).permute(0, 3, 1, 2).float() / 255
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (count, 3, 1, 1)).astype(np.float32))
    gain = gain * 0.3 + gain.mean(dim=1, keepdim=True) * 0.7
    shift = torch.from_numpy(rng.uniform(-0.05, 0.05, (count, 1, 1, 1)).astype(np.float32))
    boxes = torch.from_numpy(np.concatenate([some for _, some in made]))
    corners = boxes[:, 1:] / side
    return {
        "img": (pictures * gain + shift).clamp_(0, 1).contiguous(memory_format=torch.channels_last),
        "batch_idx": torch.repeat_interleave(torch.arange(count), torch.tensor([len(some) for _, some in made])),
        "cls": boxes[:, :1],
        "bboxes": torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), dim=1),
    }


def in_float32(value: Any) -> Any:
    """Turn every tensor of a nested result to float32: the loss is not made for less."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, dict):
        return {name: in_float32(item) for name, item in value.items()}
    return [in_float32(item) for item in value]


@torch.no_grad()
def quick_map(model: nn.Module, scenes: RenderedScenes, side: int, count: int) -> float:
    """Return mAP50 on the first scenes of a rendered set, squashed to squares."""
    model.eval()
    truths, predictions = [], []
    for start in range(0, count, 50):
        some = [
            cv2.resize(scenes.pictures[index], (side, side), interpolation=cv2.INTER_LINEAR)
            for index in range(start, start + 50)
        ]
        pictures = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() / 255
        found = non_max_suppression(model(pictures), conf_thres=0.01, iou_thres=0.7, max_det=100)
        for offset, rows in enumerate(found):
            facts = scenes.facts[start + offset]
            scale = [facts.width / side, facts.height / side] * 2
            predictions.append(
                [
                    Detection(
                        LABELS[int(row[5])].name,
                        row[4],
                        tuple(value * part for value, part in zip(row[:4], scale, strict=True)),
                    )
                    for row in rows.tolist()
                ]
            )
            truths.append([Located(thing.label, thing.box) for thing in facts.things])
    return mean_average_precision_50(predictions, truths)


def export(model: Any, side: int, folder: Path) -> None:
    """Write an ultralytics checkpoint that ``YOLO(path)`` loads, in half precision, and what it was trained for."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"task": "detect", "imgsz": side, "model": f"{ARCHITECTURE}.yaml", "data": None}
    slim = deepcopy(model).to(memory_format=torch.contiguous_format).half().eval()
    slim.criterion = None
    slim.args = settings
    slim.yaml["yaml_file"] = f"{ARCHITECTURE}.yaml"
    for parameter in slim.parameters():
        parameter.requires_grad = False
    checkpoint = {
        "epoch": -1,
        "best_fitness": None,
        "model": slim,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": settings,
        "version": ultralytics_version,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
    }
    torch.save(checkpoint, folder / "model.pt")
    # No object hides more than 35 % of a smaller one (an IoU of 0.21): boxes that share more are of one thing.
    config = {
        "imgsz": side,
        "iou": 0.3,
        "agnostic_nms": True,
        "labels": [label.name for label in LABELS],
        "architecture": ARCHITECTURE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _average(average: nn.Module, live: nn.Module, step: int) -> None:
    """Move the running average of all weights towards the live ones; it follows faster at the beginning."""
    keep = min(0.9985, (1 + step) / (20 + step))
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), live.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - keep)
            else:
                kept.copy_(new)


def train(arguments: argparse.Namespace) -> None:
    """Train one leg; a leg has its own warm-up and decay, and ``--resume`` starts from the last one's weights."""
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(arguments.seed)
    scenes = Boxed.of(load_rendered("train", arguments.scenes, processes=arguments.threads, folder=arguments.work))
    crowds = Boxed.of(
        load_rendered("train", arguments.crowds, crowd=True, processes=arguments.threads, folder=arguments.work)
    )
    validation = load_rendered("validation", arguments.validation, folder=arguments.work)
    model, done = new_model(), 0
    checkpoint = arguments.work / "objects-checkpoint.pt"
    average = deepcopy(model)
    if arguments.resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        done = saved["step"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.requires_grad and p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.requires_grad and p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=arguments.rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    rng = np.random.default_rng(arguments.seed + done)
    started, running = time.monotonic(), np.zeros(3)
    for step in range(arguments.steps):
        progress = step / arguments.steps
        rate = arguments.rate * min(1.0, (progress + 0.001) / 0.04) * (0.02 + 0.98 * (1 - progress) ** 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        batch = make_batch(scenes, crowds, arguments.batch, arguments.side, rng)
        with torch.autocast("cpu", torch.bfloat16):
            seen = model(batch["img"])
        parts, values = model.loss(batch, in_float32(seen))
        torch.autograd.backward(parts.sum() / arguments.batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        _average(average, model, done + step)
        now = np.array([float(value) for value in (values.values() if isinstance(values, dict) else values)])
        running = 0.98 * running + 0.02 * now if step else now
        if step % 50 == 0:
            speed = (step + 1) * arguments.batch / (time.monotonic() - started)
            print(f"{step} {speed:.0f}/s box {running[0]:.3f} cls {running[1]:.3f} dfl {running[2]:.3f}", flush=True)
        if step % arguments.every == arguments.every - 1 or step == arguments.steps - 1:
            found = quick_map(average, validation, arguments.side, min(300, arguments.validation))
            print(f"step {done + step + 1}: validation mAP50 {found:.4f}", flush=True)
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": done + step + 1}
            torch.save(state, checkpoint)
            export(average, arguments.side, arguments.out)


def main(arguments: list[str] | None = None) -> None:
    """Train the objects slot and write its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=128, help="side of the pictures in pixels, a multiple of 32")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--crowds", type=int, default=10_000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--every", type=int, default=500, help="steps from one checkpoint to the next")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint's weights")
    parser.add_argument("--work", type=Path, default=default_folder(), help="rendered scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
