"""Altered copies of pictures, and whether they are recognised as the same picture."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from random import Random
from typing import Any

import httpx
from PIL import Image

from tests.evaluation.figures import Figure
from tests.evaluation.library import Library, Say, wait_done
from tests.system import upload

COPIES = 40
ALTERATIONS = ("re-encoded", "resized", "cropped", "all of it")
Pair = tuple[int, int]


def altered(picture: Image.Image, how: str, rng: Random) -> bytes:
    """Return a copy as people pass it on: another JPEG quality, another size, up to 8 % of width and height cut off."""
    width, height = picture.size
    if how in ("cropped", "all of it"):
        across, down = rng.uniform(0.02, 0.08) * width, rng.uniform(0.02, 0.08) * height
        left, top = rng.uniform(0, across), rng.uniform(0, down)
        picture = picture.crop((round(left), round(top), round(left + width - across), round(top + height - down)))
    if how in ("resized", "all of it"):
        factor = rng.uniform(0.5, 1.5)
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if how == "resized":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=rng.randint(40, 85))
    return buffer.getvalue()


def copies(library: Library, count: int) -> tuple[dict[str, bytes], dict[str, int]]:
    """Return `count` altered copies of different pictures by name, and of which picture each one is."""
    rng = Random("copies")
    files: dict[str, bytes] = {}
    originals: dict[str, int] = {}
    for number, image_id in enumerate(rng.sample(sorted(library.scenes), count)):
        how = ALTERATIONS[number % len(ALTERATIONS)]
        stored = Image.open(io.BytesIO(library.scenes[image_id].jpeg())).convert("RGB")
        name = f"copy {number} {how}"
        files[name], originals[name] = altered(stored, how, rng), image_id
    return files, originals


def groups(client: httpx.Client, tier: str, timeout_s: float = 120) -> Iterator[list[dict[str, Any]]]:
    """Yield all groups of a tier, after every picture has been compared with the others."""
    deadline = time.monotonic() + timeout_s
    while (left := page_of(client, tier, 1)["pending"]) > 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left} pictures have not been compared after {timeout_s:g} s")
        time.sleep(0.3)
    cursor: str | None = None
    while True:
        page = page_of(client, tier, 100, cursor)
        for group in page["groups"]:
            yield group["images"]
        if (cursor := page["next_cursor"]) is None:
            return


def page_of(client: httpx.Client, tier: str, limit: int, cursor: str | None = None) -> dict[str, Any]:
    """Return a page of groups."""
    params = {"tier": tier, "limit": str(limit), **({"cursor": cursor} if cursor else {})}
    page: dict[str, Any] = client.get("/v1/duplicates", params=params).raise_for_status().json()
    return page


def pairs(found: Sequence[Sequence[dict[str, Any]]]) -> set[Pair]:
    """Return every pair of pictures that stand in one group, the smaller id first."""
    return {pair for images in found for pair in combinations(sorted(image["id"] for image in images), 2)}


def duplicates(library: Library, say: Say, count: int = COPIES, aim: float | None = 0.99) -> list[Figure]:
    """Add altered copies, and measure which pairs are called the same picture."""
    files, originals = copies(library, count)
    outcomes = upload(library.client, list(files.items()))
    say(f"{len(files)} altered copies stored")
    wait_done(library.client, say)
    true: dict[Pair, str] = {}
    for outcome in outcomes:
        assert outcome["outcome"] == "created", outcome
        true[(originals[outcome["filename"]], outcome["image"]["id"])] = outcome["filename"].split(" ", 2)[2]
    found = pairs(list(groups(library.client, "same")))
    right = found & true.keys()
    by_way = ", ".join(
        f"{how} {sum(true[pair] == how for pair in right)}/{sum(way == how for way in true.values())}"
        for how in ALTERATIONS
    )
    precision = len(right) / len(found) if found else 0.0
    return [
        Figure("duplicates, tier same: precision", precision, aim, len(found)),
        Figure("duplicates, tier same: recall", len(right) / len(true), None, len(true), by_way),
    ]
