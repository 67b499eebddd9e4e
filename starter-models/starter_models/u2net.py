"""U²-Net after Qin et al. 2020 (https://arxiv.org/abs/2005.09007), with the paper's blocks and a choice of widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Middle and outer channels of the six encoder stages; the decoder mirrors them.
NARROW: tuple[tuple[int, int], ...] = ((16, 16), (16, 32), (16, 32), (16, 48), (32, 48), (32, 48))


class Layer(nn.Sequential):
    """Convolution of 3 × 3, batch norm and ReLU."""

    def __init__(self, inner: int, outer: int, dilation: int = 1) -> None:
        """Keep the picture's size at any dilation."""
        super().__init__(
            nn.Conv2d(inner, outer, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
        )


class ResidualU(nn.Module):
    """A residual U-block: a small U-Net of ``height`` levels whose input, after one layer, is added to its output.

    With ``flat``, it dilates instead of pooling, for maps that are small already.
    """

    def __init__(self, height: int, inner: int, middle: int, outer: int, *, flat: bool = False) -> None:
        """Build the block; ``height`` is the paper's L."""
        super().__init__()
        self._flat = flat
        steps = [2**level if flat else 1 for level in range(height)]
        self.enter = Layer(inner, outer)
        self.down = nn.ModuleList(
            Layer(middle if level else outer, middle, steps[level]) for level in range(height - 1)
        )
        self.bottom = Layer(middle, middle, steps[-1] if flat else 2)
        self.up = nn.ModuleList(
            Layer(2 * middle, middle if level else outer, steps[level]) for level in range(height - 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return (n, outer, height, width) from (n, inner, height, width)."""
        entered = self.enter(maps)
        levels: list[Tensor] = []
        current: Tensor = entered
        for number, layer in enumerate(self.down):
            current = layer(_halved(current) if number and not self._flat else current)
            levels.append(current)
        current = self.bottom(current)
        for number in reversed(range(len(levels))):
            current = self.up[number](torch.cat((_as_large(current, levels[number]), levels[number]), dim=1))
        total: Tensor = current + entered
        return total


class U2Net(nn.Module):
    """U²-Net: six U-blocks down, five up, a map from each of the last six, and one made of them all."""

    def __init__(self, widths: Sequence[tuple[int, int]] = NARROW) -> None:
        """Build the network; ``widths`` are (middle, outer) channels of each stage from the finest on."""
        super().__init__()
        heights = (7, 6, 5, 4, 4, 4)
        outer = [width for _, width in widths]
        self.encoder = nn.ModuleList(
            ResidualU(heights[stage], outer[stage - 1] if stage else 3, *widths[stage], flat=stage > 3)
            for stage in range(6)
        )
        # Each decoder stage takes the next coarser one's channels and its own encoder's.
        self.decoder = nn.ModuleList(
            ResidualU(
                heights[stage],
                outer[stage] + (outer[5] if stage == 4 else outer[stage]),
                widths[stage][0],
                outer[max(stage - 1, 0)],
                flat=stage > 3,
            )
            for stage in range(5)
        )
        sides = [outer[max(stage - 1, 0)] for stage in range(5)] + [outer[5]]
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in sides)
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Return logits (n, 1, height, width): the fused map, then those of the stages from the finest on."""
        encoded, current = [], pictures
        for stage, block in enumerate(self.encoder):
            current = block(_halved(current) if stage else current)
            encoded.append(current)
        decoded = [current]
        for stage in reversed(range(5)):
            current = self.decoder[stage](torch.cat((_as_large(current, encoded[stage]), encoded[stage]), dim=1))
            decoded.insert(0, current)
        maps = [_as_large(side(item), pictures) for side, item in zip(self.sides, decoded, strict=True)]
        return [self.fuse(torch.cat(maps, dim=1)), *maps]


class Sigmoids(nn.Module):
    """What is exported: the maps as shares of foreground in 0–1, the fused one first."""

    def __init__(self, network: U2Net) -> None:
        """Wrap a trained network."""
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return every map of ``U2Net`` in 0–1."""
        return tuple(torch.sigmoid(item) for item in self.network(pictures))


def _halved(maps: Tensor) -> Tensor:
    return F.max_pool2d(maps, 2, stride=2, ceil_mode=True)


def _as_large(maps: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(maps, size=other.shape[2:], mode="bilinear", align_corners=False)
