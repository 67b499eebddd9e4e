"""Measure the weights in ``weights/`` on unseen test scenes, through JPEG files and each library's own loader."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from starter_models.captions import Facts
from starter_models.font import ensure_font
from starter_models.narrow_resnet import build_resnet, features
from starter_models.queries import Query, altered_picture, label_queries, scene_queries
from starter_models.scenes import draw_scene, group_labels
from starter_models.train_resnet import mean_average_precision

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
CARD = WEIGHTS.parent / "MODEL_CARD.md"
CARD_MARKS = ("<!-- figures -->", "<!-- end of figures -->")
#: Test scenes from this index on are kept for measuring; samples and examples have other ones.
FIRST_SCENE = 10_000
GROUP_SIZE = 5
Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[Image.Image]], Vectors]


@dataclass(frozen=True)
class Figure:
    """One measured number; ``target`` is None where none was set."""

    model: str
    name: str
    value: float
    target: float | None
    cases: int


class Clip:
    """The clip slot as open_clip loads it, with no network."""

    def __init__(self, folder: Path) -> None:
        """Load weights, preprocessing and tokenizer from ``folder``."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        name = f"local-dir:{folder}"
        self._model, _, self._prepare = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Return unit vectors, (n, 256)."""
        batches = [
            self._model.encode_image(torch.stack([self._prepare(item) for item in some]), normalize=True)
            for some in _batched(pictures)
        ]
        return np.asarray(torch.cat(batches).numpy())

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors, (n, 256)."""
        batches = [self._model.encode_text(self._tokenizer(list(some)), normalize=True) for some in _batched(texts)]
        return np.asarray(torch.cat(batches).numpy())


class Resnet:
    """The resnet slot, loaded as the README describes."""

    def __init__(self, folder: Path) -> None:
        """Load weights and preprocessing from ``folder``."""
        self._config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._network = build_resnet(self._config["width"], self._config["num_classes"])
        self._network.load_state_dict(
            {name: _single(value) for name, value in load_file(folder / "model.safetensors").items()}
        )
        self._network.eval()

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Return unit vectors, (n, feature_dim)."""
        side = self._config["image_size"]
        mean = torch.tensor(self._config["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(self._config["std"]).view(1, 3, 1, 1)
        vectors = []
        for some in _batched(pictures):
            squashed = [np.asarray(item.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for item in some]
            pixels = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2) / 255
            vectors.append(F.normalize(features(self._network, (pixels - mean) / std)[0], dim=-1))
        return np.asarray(torch.cat(vectors).numpy())


def decoded_scenes(count: int, first: int = FIRST_SCENE) -> tuple[list[Image.Image], list[Facts]]:
    """Return test scenes as decoded JPEGs, and their facts."""
    scenes = [draw_scene("test", first + number) for number in range(count)]
    return [_decoded(scene.jpeg()) for scene in scenes], [scene.facts for scene in scenes]


def grouped_pictures(groups: int) -> list[Image.Image]:
    """Return test scenes as decoded JPEGs; GROUP_SIZE in a row share all their objects and nothing else."""
    return [
        _decoded(draw_scene("test", FIRST_SCENE + number, labels=group_labels("test", number // GROUP_SIZE)).jpeg())
        for number in range(groups * GROUP_SIZE)
    ]


def recall(scores: Vectors, queries: Sequence[Query], top: int = 10) -> float:
    """Return the share of queries with a right answer among the ``top`` of (queries, scenes) scores."""
    best = np.argsort(-scores, axis=1)[:, :top]
    return float(
        np.mean([bool(set(row.tolist()) & set(query.answers)) for row, query in zip(best, queries, strict=True)])
    )


def precision(scores: Vectors, queries: Sequence[Query], top: int = 10) -> float:
    """Return the mean share of right answers among the ``top`` of (queries, scenes) scores."""
    best = np.argsort(-scores, axis=1)[:, :top]
    hits = [len(set(row.tolist()) & set(query.answers)) for row, query in zip(best, queries, strict=True)]
    return float(np.mean(hits)) / top


def found_again(embed: Embed, vectors: Vectors, pictures: Sequence[Image.Image], cases: int) -> float:
    """Return how often a picture that was cut, turned and encoded again finds its original first among all."""
    changed = [_decoded(altered_picture(picture, number)) for number, picture in enumerate(pictures[:cases])]
    return float((np.argmax(embed(changed) @ vectors.T, axis=1) == np.arange(cases)).mean())


def measure(weights: Path, scenes: int = 1000, cases: int = 500) -> list[Figure]:
    """Measure both slots on ``scenes`` test scenes; ``cases`` of them are also searched for by an altered copy."""
    pictures, facts = decoded_scenes(scenes)
    whole, single = scene_queries(facts), label_queries(facts)
    groups = grouped_pictures(scenes // GROUP_SIZE)
    members = np.arange(len(groups)) // GROUP_SIZE

    clip = Clip(weights / "clip")
    images = clip.pictures(pictures)
    by_text = clip.texts([query.text for query in whole]) @ images.T
    by_label = clip.texts([query.text for query in single]) @ images.T
    figures = [
        Figure("clip", "text→image recall@10", recall(by_text, whole), 0.95, len(whole)),
        Figure("clip", "text→image recall@1", recall(by_text, whole, 1), None, len(whole)),
        Figure("clip", "single-label query precision@10", precision(by_label, single), 0.99, len(single)),
        Figure(
            "clip",
            "altered picture finds its original first",
            found_again(clip.pictures, images, pictures, cases),
            0.95,
            cases,
        ),
    ]
    resnet = Resnet(weights / "resnet")
    same = resnet.pictures(groups)
    images = resnet.pictures(pictures)
    figures += [
        Figure("resnet", "same-objects mAP@10", mean_average_precision(same @ same.T, members), 0.85, len(groups)),
        Figure(
            "resnet",
            "altered picture finds its original first",
            found_again(resnet.pictures, images, pictures, cases),
            0.95,
            cases,
        ),
    ]
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| Slot | Figure | Reached | Aim | Cases |", "| --- | --- | --- | --- | --- |"]
    for item in figures:
        aim = "" if item.target is None else f"≥ {item.target}"
        lines.append(f"| {item.model} | {item.name} | {item.value:.3f} | {aim} | {item.cases} |")
    return "\n".join(lines)


def write_report(figures: Sequence[Figure], weights: Path, card: Path | None) -> None:
    """Write ``figures.json`` beside the weights, and the table between the marks of a model card."""
    sizes = {folder: folder_bytes(weights / folder) for folder in ("clip", "resnet")}
    report = {"bytes": sizes, "figures": [{**asdict(item), "value": round(item.value, 4)} for item in figures]}
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (weights / "figures.json").write_text(text, encoding="utf-8")
    if card is not None:
        before, start, rest = card.read_text(encoding="utf-8").partition(CARD_MARKS[0] + "\n")
        _, end, after = rest.partition(CARD_MARKS[1])
        if not start or not end:
            raise ValueError(f"{card} lacks the lines {CARD_MARKS[0]} and {CARD_MARKS[1]}")
        card.write_text(f"{before}{start}{table(figures)}\n{end}{after}", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Return how much the files of a folder take."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _batched(items: Sequence[Any], size: int = 100) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _single(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def main() -> int:
    """Print the table, write ``figures.json`` and the model card; the exit status says whether all aims are met."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ensure_font()
    figures = measure(arguments.weights, arguments.scenes, arguments.cases)
    print(table(figures))
    write_report(figures, arguments.weights, CARD if arguments.weights == WEIGHTS else None)
    return 0 if all(item.target is None or item.value >= item.target for item in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
