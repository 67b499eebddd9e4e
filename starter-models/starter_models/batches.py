"""Batches for training: pictures seen from a little elsewhere, label maps that follow them, facts as vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from starter_models.captions import Caption, Facts, count_things
from starter_models.labels import BACKGROUND_COLOURS, BACKGROUND_KINDS, LABELS
from starter_models.rendered import RenderedScenes

_MAX_COUNT = 5
_COUNTED: tuple[str | tuple[str, str], ...] = (
    *(label.name for label in LABELS),
    *((label.name, colour) for label in LABELS for colour in label.colours),
)
_COUNTED_INDEX = {name: number for number, name in enumerate(_COUNTED)}
_COLOURS, _KINDS = list(BACKGROUND_COLOURS), list(BACKGROUND_KINDS)
#: Length of the vectors of ``facts_vector`` and ``demands_vector``.
FACT_COUNT = len(_COUNTED) * _MAX_COUNT + len(_COLOURS) + len(_KINDS)


@dataclass(frozen=True)
class View:
    """Pictures (n, 3, side, side) in 0–1 and, per patch, the share of each label (n, patches, labels + 1)."""

    pictures: Tensor
    patches: Tensor | None


def facts_vector(facts: Facts) -> NDArray[np.uint8]:
    """Return 0/1 for each "at least k of this", k = 1 to 5, then the background's colour and kind."""
    vector = np.zeros(FACT_COUNT, dtype=np.uint8)
    _fill(vector, count_things(facts.things), facts.background.colour, facts.background.kind)
    return vector


def demands_vector(caption: Caption) -> NDArray[np.uint8]:
    """Return the facts that a picture must have for the caption to fit it, as 0/1."""
    vector = np.zeros(FACT_COUNT, dtype=np.uint8)
    _fill(vector, caption.needs, caption.colour, caption.kind)
    return vector


def fitting(facts: Tensor, demands: Tensor) -> Tensor:
    """Return which scenes (rows of 0/1 facts) fit which captions (rows of 0/1 demands), (scenes, captions) bool."""
    met = facts.float() @ demands.float().T
    return met >= demands.float().sum(dim=1) - 0.5


def shuffled(count: int, batch: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield sorted index batches for ever, each scene once per epoch; the last, short batch of an epoch is dropped."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            # Sorted reads go through the memory-mapped file in one direction.
            yield np.sort(order[start : start + batch])


def view(
    scenes: RenderedScenes,
    indices: NDArray[np.int64],
    side: int,
    rng: torch.Generator,
    *,
    strength: float,
    patch: int | None = None,
    flip: bool = False,
) -> View:
    """Cut, turn, zoom, recolour and roughen scenes.

    Args:
        scenes: where the pictures come from.
        indices: which of them.
        side: side of the result in pixels.
        rng: draws all that is random.
        strength: 0 leaves the picture as it is; 1 cuts up to 28 % off each side's length and turns by up to 12°.
        patch: side of the patches for which label shares are wanted.
        flip: also mirror half of the pictures (captions that say left and right would then lie).
    """
    pictures = torch.from_numpy(scenes.pictures[indices]).permute(0, 3, 1, 2).float().div_(255)
    matrix = _random_affine(len(indices), rng, strength, flip)
    grid = F.affine_grid(matrix, [len(indices), 3, side, side], align_corners=False)
    # What lies outside is black, white, or grey, as after rotation in one editor or another.
    outside = torch.randint(0, 3, (len(indices), 1, 1, 1), generator=rng) / 2
    source = (
        pictures
        if side >= pictures.shape[-1]
        else F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)
    )
    seen = F.grid_sample(source - outside, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + outside
    shares = None
    if patch is not None:
        per_patch = 4
        cells = side // patch * per_patch
        cell_grid = F.affine_grid(matrix, [len(indices), 1, cells, cells], align_corners=False)
        maps = torch.from_numpy(scenes.maps[indices])[:, None].float()
        labels = F.grid_sample(maps, cell_grid, mode="nearest", align_corners=False)[:, 0].long()
        blocks = labels.unfold(1, per_patch, per_patch).unfold(2, per_patch, per_patch).flatten(3).flatten(1, 2)
        shares = torch.zeros(len(indices), blocks.shape[1], len(LABELS) + 1)
        shares.scatter_add_(2, blocks, torch.full(blocks.shape, 1 / per_patch**2))
    return View(_recolour(seen, rng, strength), shares)


def _random_affine(count: int, rng: torch.Generator, strength: float, flip: bool) -> Tensor:
    """Return (count, 2, 3) matrices from result to source coordinates in -1…1."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=rng) * (high - low) + low

    def chosen(probability: float) -> Tensor:
        return torch.rand(count, generator=rng) < probability

    cut = uniform(0, 0.28 * strength) * chosen(0.75)
    scale_x = 1 - cut * uniform(0.6, 1)
    scale_y = 1 - cut * uniform(0.6, 1)
    angle = torch.deg2rad(uniform(-12, 12) * strength) * chosen(0.5)
    # A turned picture is often put on a larger canvas, so that nothing is lost.
    grown = torch.where(chosen(0.4) & (angle != 0), 1 + angle.abs().sin() * 1.0, torch.ones(count))
    scale_x, scale_y = scale_x * grown, scale_y * grown
    shift_x = uniform(-1, 1) * (1 - scale_x).clamp(min=0)
    shift_y = uniform(-1, 1) * (1 - scale_y).clamp(min=0)
    sign = torch.where(chosen(0.5), -1.0, 1.0) if flip else torch.ones(count)
    cosine, sine = angle.cos(), angle.sin()
    row_x = torch.stack((cosine * scale_x * sign, -sine * scale_y, shift_x), dim=1)
    row_y = torch.stack((sine * scale_x * sign, cosine * scale_y, shift_y), dim=1)
    return torch.stack((row_x, row_y), dim=1)


def _recolour(pictures: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Vary brightness and contrast, and add noise to a third of the pictures, as re-encoding does."""
    count = len(pictures)
    gain = 1 + (torch.rand(count, 1, 1, 1, generator=rng) - 0.5) * 0.24 * strength
    shift = (torch.rand(count, 1, 1, 1, generator=rng) - 0.5) * 0.08 * strength
    noise = torch.rand(count, 1, 1, 1, generator=rng) * 0.05 * strength
    noise = noise * (torch.rand(count, 1, 1, 1, generator=rng) < 0.33)
    rough = torch.randn(pictures.shape, generator=rng)
    return (pictures * gain + shift + rough * noise).clamp_(0, 1)


def _fill(
    vector: NDArray[np.uint8], counts: dict[str | tuple[str, str], int], colour: str | None, kind: str | None
) -> None:
    for name, count in counts.items():
        start = _COUNTED_INDEX[name] * _MAX_COUNT
        vector[start : start + min(count, _MAX_COUNT)] = 1
    base = len(_COUNTED) * _MAX_COUNT
    if colour is not None:
        vector[base + _COLOURS.index(colour)] = 1
    if kind is not None:
        vector[base + len(_COLOURS) + _KINDS.index(kind)] = 1


def facts_matrix(facts: Sequence[Facts]) -> Tensor:
    """Return ``facts_vector`` of each scene as rows, uint8."""
    return torch.from_numpy(np.stack([facts_vector(item) for item in facts]))
