"""A set of rendered scenes on disk, small and uncompressed: what training reads."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from starter_models.captions import Facts
from starter_models.labels import LABEL_INDEX
from starter_models.scenes import Split, draw_scene, facts_of, group_labels

#: Side of the stored pictures in pixels; scenes are squashed to squares, as they are when they are embedded.
PICTURE_SIDE = 128
#: Side of the stored label maps: which label covers each cell (0: none, else its number plus one).
MAP_SIDE = 32
_DRAWN_SIZE = 176
_CHUNK = 500


@dataclass(frozen=True)
class RenderedScenes:
    """Memory-mapped scenes: pictures (n, side, side, 3) and label maps (n, map side, map side), uint8; their facts."""

    pictures: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    facts: list[Facts]

    def __len__(self) -> int:
        return len(self.facts)


def default_folder() -> Path:
    """Where rendered scenes are kept: outside the repository."""
    return Path.home() / ".cache" / "pixelgate" / "starter"


def load_rendered(
    split: Split, count: int, *, per_group: int = 1, crowd: bool = False, processes: int = 1, folder: Path | None = None
) -> RenderedScenes:
    """Return the first ``count`` scenes of a split, rendering them first unless they are on disk already.

    With ``per_group`` above 1, that many scenes in a row share all their objects, and only those. With ``crowd`` they
    are crowds.
    """
    name = f"{split}-{count}" if per_group == 1 else f"{split}-{count}-by-{per_group}"
    if crowd:
        name += "-crowd"
    target = (folder or default_folder()) / name
    truth = target / "truth.jsonl"
    pictures_path, maps_path = target / "pictures.npy", target / "maps.npy"
    if not truth.exists():
        target.mkdir(parents=True, exist_ok=True)
        pictures = np.lib.format.open_memmap(
            pictures_path, mode="w+", dtype=np.uint8, shape=(count, PICTURE_SIDE, PICTURE_SIDE, 3)
        )
        maps = np.lib.format.open_memmap(maps_path, mode="w+", dtype=np.uint8, shape=(count, MAP_SIDE, MAP_SIDE))
        lines: list[str] = []
        starts = range(0, count, _CHUNK)
        with ProcessPoolExecutor(processes) as pool:
            for start, (some, covers, texts) in zip(
                starts, pool.map(partial(_render, split, count, per_group, crowd), starts), strict=True
            ):
                pictures[start : start + len(some)] = some
                maps[start : start + len(some)] = covers
                lines.extend(texts)
        pictures.flush()
        maps.flush()
        # Written last: its presence says that the arrays are whole.
        partial_truth = truth.with_suffix(".part")
        partial_truth.write_text("\n".join(lines), encoding="utf-8")
        partial_truth.rename(truth)
    facts = [facts_of(json.loads(line)) for line in truth.read_text(encoding="utf-8").splitlines()]
    return RenderedScenes(np.load(pictures_path, mmap_mode="r"), np.load(maps_path, mmap_mode="r"), facts)


def _render(
    split: Split, count: int, per_group: int, crowd: bool, start: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    """Render one chunk: pictures, label maps, truth lines."""
    pictures, maps, lines = [], [], []
    for index in range(start, min(start + _CHUNK, count)):
        labels = group_labels(split, index // per_group) if per_group > 1 else None
        scene = draw_scene(split, index, _DRAWN_SIZE, labels=labels, crowd=crowd)
        small = scene.picture.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
        cover = np.zeros((MAP_SIDE, MAP_SIDE), dtype=np.uint8)
        for item in scene.objects:
            mask = Image.fromarray(item.mask).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BOX)
            cover[np.asarray(mask) >= 128] = LABEL_INDEX[item.label] + 1
        pictures.append(np.asarray(small))
        maps.append(cover)
        lines.append(json.dumps(scene.truth()))
    return np.stack(pictures), np.stack(maps), lines


def main() -> None:
    """Render a split ahead of training."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--per-group", type=int, default=1)
    parser.add_argument("--crowd", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    load_rendered(
        arguments.split,
        arguments.count,
        per_group=arguments.per_group,
        crowd=arguments.crowd,
        processes=arguments.processes,
    )


if __name__ == "__main__":
    main()
