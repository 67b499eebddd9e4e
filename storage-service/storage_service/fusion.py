"""Weighted reciprocal rank fusion: several rankings of the same pictures made one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

K = 60.0
"""The constant of the paper; it keeps the first few ranks of one ranking from outweighing all others."""


def fuse(rankings: Iterable[tuple[float, Sequence[int]]], k: float = K) -> list[tuple[int, float]]:
    """Return (id, score) of every id in `rankings`, the best first; equal scores by id.

    Each ranking is (weight > 0, ids with the best first, each id once). The score of an id is the sum over the rankings
    that have it of weight / (k + rank), with ranks from 1.

    Source: G. V. Cormack, C. L. A. Clarke, S. Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
    Rank Learning Methods", SIGIR 2009; the weights are our addition.
    """
    scores: dict[int, float] = {}
    for weight, ids in rankings:
        for rank, image_id in enumerate(ids, start=1):
            scores[image_id] = scores.get(image_id, 0.0) + weight / (k + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
