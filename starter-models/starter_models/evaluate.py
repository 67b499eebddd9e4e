"""Measure the weights in ``weights/`` on unseen test scenes, through JPEG files and each library's own loader."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
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

from starter_models.answers import Captions, Cutout, Objects, labels_of
from starter_models.captions import Facts
from starter_models.font import ensure_font
from starter_models.measures import (
    Located,
    caption_labels,
    label_agreement,
    mask_iou,
    mean_average_precision_50,
)
from starter_models.narrow_resnet import build_resnet, features
from starter_models.queries import Query, altered_picture, label_queries, scene_queries
from starter_models.scenes import Scene, draw_scene, group_labels
from starter_models.train_cutout import foreground
from starter_models.train_resnet import mean_average_precision

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
CARD = WEIGHTS.parent / "MODEL_CARD.md"
CARD_MARKS = ("<!-- figures -->", "<!-- end of figures -->")
#: The slots in the order of the table; each is a folder of ``weights/``.
SLOTS = ("clip", "resnet", "caption", "objects", "cutout")
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
    scenes = drawn_scenes(count, first)
    return [decoded(scene.jpeg()) for scene in scenes], [scene.facts for scene in scenes]


def drawn_scenes(count: int, first: int = FIRST_SCENE) -> list[Scene]:
    """Return test scenes with their masks."""
    return [draw_scene("test", first + number) for number in range(count)]


def grouped_pictures(groups: int) -> list[Image.Image]:
    """Return test scenes as decoded JPEGs; GROUP_SIZE in a row share all their objects and nothing else."""
    return [
        decoded(draw_scene("test", FIRST_SCENE + number, labels=group_labels("test", number // GROUP_SIZE)).jpeg())
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
    changed = [decoded(altered_picture(picture, number)) for number, picture in enumerate(pictures[:cases])]
    return float((np.argmax(embed(changed) @ vectors.T, axis=1) == np.arange(cases)).mean())


def measure_captions(captions: Captions, pictures: Sequence[Image.Image], facts: Sequence[Facts]) -> list[Figure]:
    """Measure which labels the captions name, with their counts, over all scenes together."""
    told = [caption_labels(text) for text in captions.tell(pictures)]
    truths = [labels_of(item.things) for item in facts]
    found = label_agreement(told, truths)
    whole = float(np.mean([said == true for said, true in zip(told, truths, strict=True)]))
    return [
        Figure("caption", "named labels F1", found.f1, 0.90, len(told)),
        Figure("caption", "named labels precision", found.precision, None, len(told)),
        Figure("caption", "named labels recall", found.recall, None, len(told)),
        Figure("caption", "captions with every label and count right", whole, None, len(told)),
    ]


def measure_objects(objects: Objects, pictures: Sequence[Image.Image], facts: Sequence[Facts]) -> list[Figure]:
    """Measure boxes and labels."""
    found = [objects.find(picture) for picture in pictures]
    truths = [[Located(thing.label, thing.box) for thing in item.things] for item in facts]
    return [Figure("objects", "mAP50", mean_average_precision_50(found, truths), 0.90, len(found))]


def measure_cutout(cutout: Cutout, scenes: Sequence[Scene]) -> list[Figure]:
    """Measure the foreground: all objects' masks together, at the picture's own size."""
    overlaps = [mask_iou(cutout.mask(decoded(scene.jpeg())), foreground(scene)) for scene in scenes]
    return [Figure("cutout", "foreground IoU", float(np.mean(overlaps)), 0.93, len(overlaps))]


def measure(weights: Path, scenes: int = 1000, cases: int = 500, slots: Sequence[str] = SLOTS) -> list[Figure]:
    """Measure slots on ``scenes`` test scenes; ``cases`` of them are also searched for by an altered copy."""
    pictures, facts = decoded_scenes(scenes)
    figures: list[Figure] = []
    if "clip" in slots:
        figures += measure_clip(Clip(weights / "clip"), pictures, facts, cases)
    if "resnet" in slots:
        figures += measure_resnet(Resnet(weights / "resnet"), pictures, cases)
    if "caption" in slots:
        figures += measure_captions(Captions(weights / "caption"), pictures, facts)
    if "objects" in slots:
        figures += measure_objects(Objects(weights / "objects"), pictures, facts)
    if "cutout" in slots:
        figures += measure_cutout(Cutout(weights / "cutout"), drawn_scenes(scenes))
    return figures


def measure_clip(clip: Clip, pictures: Sequence[Image.Image], facts: list[Facts], cases: int) -> list[Figure]:
    """Measure search by sentence, by label and by altered picture."""
    whole, single = scene_queries(facts), label_queries(facts)
    images = clip.pictures(pictures)
    by_text = clip.texts([query.text for query in whole]) @ images.T
    by_label = clip.texts([query.text for query in single]) @ images.T
    again = found_again(clip.pictures, images, pictures, cases)
    return [
        Figure("clip", "text→image recall@10", recall(by_text, whole), 0.95, len(whole)),
        Figure("clip", "text→image recall@1", recall(by_text, whole, 1), None, len(whole)),
        Figure("clip", "single-label query precision@10", precision(by_label, single), 0.99, len(single)),
        Figure("clip", "altered picture finds its original first", again, 0.95, cases),
    ]


def measure_resnet(resnet: Resnet, pictures: Sequence[Image.Image], cases: int) -> list[Figure]:
    """Measure search by pictures of the same objects and by altered picture."""
    groups = grouped_pictures(len(pictures) // GROUP_SIZE)
    members = np.arange(len(groups)) // GROUP_SIZE
    same = resnet.pictures(groups)
    images = resnet.pictures(pictures)
    again = found_again(resnet.pictures, images, pictures, cases)
    return [
        Figure("resnet", "same-objects mAP@10", mean_average_precision(same @ same.T, members), 0.85, len(groups)),
        Figure("resnet", "altered picture finds its original first", again, 0.95, cases),
    ]


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| Slot | Figure | Reached | Aim | Cases |", "| --- | --- | --- | --- | --- |"]
    for item in figures:
        aim = "" if item.target is None else f"≥ {item.target}"
        lines.append(f"| {item.model} | {item.name} | {item.value:.3f} | {aim} | {item.cases} |")
    return "\n".join(lines)


def write_report(figures: Sequence[Figure], weights: Path, card: Path | None) -> None:
    """Write ``figures.json`` beside the weights, and the table between the marks of a model card."""
    sizes = {slot: folder_bytes(weights / slot) for slot in SLOTS if (weights / slot).is_dir()}
    report = {"bytes": sizes, "figures": [{**asdict(item), "value": round(item.value, 4)} for item in figures]}
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (weights / "figures.json").write_text(text, encoding="utf-8")
    if card is not None:
        before, start, rest = card.read_text(encoding="utf-8").partition(CARD_MARKS[0] + "\n")
        _, end, after = rest.partition(CARD_MARKS[1])
        if not start or not end:
            raise ValueError(f"{card} lacks the lines {CARD_MARKS[0]} and {CARD_MARKS[1]}")
        card.write_text(f"{before}{start}{table(figures)}\n{end}{after}", encoding="utf-8")


def last_figures(weights: Path, slots: Collection[str]) -> list[Figure]:
    """Return the figures of some slots from ``figures.json``."""
    path = weights / "figures.json"
    if not slots or not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    return [Figure(**item) for item in report["figures"] if item["model"] in slots]


def folder_bytes(folder: Path) -> int:
    """Return how much the files of a folder take."""
    return sum(path.stat().st_size for path in folder.iterdir())


def decoded(data: bytes) -> Image.Image:
    """Read a JPEG as RGB."""
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
    parser.add_argument("--slots", nargs="+", choices=SLOTS, default=SLOTS, help="others keep their last figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ensure_font()
    measured = measure(arguments.weights, arguments.scenes, arguments.cases, arguments.slots)
    figures = [*last_figures(arguments.weights, set(SLOTS) - set(arguments.slots)), *measured]
    figures.sort(key=lambda item: SLOTS.index(item.model))
    print(table(figures))
    write_report(figures, arguments.weights, CARD if arguments.weights == WEIGHTS else None)
    return 0 if all(item.target is None or item.value >= item.target for item in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
