"""The sample pictures of the repository, and what is known to be on each."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixelgate_local.errors import LocalError

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
ROTATION_DEGREES = 10
KEPT_SHARE = 0.82


@dataclass(frozen=True)
class Sample:
    """One sample picture: where it is, the background's colour, and (label, colour or None) of each object."""

    path: Path
    background: str
    objects: tuple[tuple[str, str | None], ...]

    @property
    def labels(self) -> Counter[str]:
        """How many objects of each label are on it."""
        return Counter(label for label, _ in self.objects)

    def in_words(self) -> str:
        """Say what is on it: `dog (4), butterfly on black`."""
        things = ", ".join(label if count == 1 else f"{label} ({count})" for label, count in self.labels.most_common())
        return f"{things} on {self.background}"


def read_samples(folder: Path = SAMPLES) -> dict[str, Sample]:
    """Return the sample pictures by file name.

    Raises:
        LocalError: they are not there.
    """
    try:
        lines = (folder / "truth.jsonl").read_text().splitlines()
    except OSError as error:
        raise LocalError(
            f"The sample pictures are not at {folder}: run `make demo` in a clone of Pixelgate."
        ) from error
    samples = {}
    for line in lines:
        truth = json.loads(line)
        objects = tuple((thing["label"], thing.get("colour")) for thing in truth["objects"])
        samples[truth["file"]] = Sample(folder / truth["file"], truth["background"]["colour"], objects)
    return samples


def altered(sample: Sample) -> bytes:
    """Return the picture as somebody's copy of it: turned, cropped, smaller and compressed harder, as JPEG."""
    with Image.open(sample.path) as opened:
        picture = opened.convert("RGB").rotate(ROTATION_DEGREES, Image.Resampling.BICUBIC)
    width, height = (round(side * KEPT_SHARE) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    picture = picture.crop((left, top, left + width, top + height)).resize((width * 3 // 4, height * 3 // 4))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=55)
    return buffer.getvalue()
