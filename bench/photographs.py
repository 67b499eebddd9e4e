"""12-megapixel photographs to measure with: real ones, enlarged, with a sensor's noise, as cameras write them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 4000, 3000


def photographs(count: int) -> Iterator[bytes]:
    """Yield `count` different JPEG files of 4000 × 3000 pixels, 3 to 6 MB each."""
    import skimage.data
    import sklearn.datasets

    sources = [Image.fromarray(picture) for picture in sklearn.datasets.load_sample_images().images]
    sources += [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    rng = np.random.default_rng(12)
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.float32)
    for number in range(count):
        source = sources[number % len(sources)].convert("RGB")
        side = 0.6 + 0.4 * rng.random()
        width, height = int(source.width * side), int(min(source.height, source.width * 0.75) * side)
        left, top = int(rng.integers(0, source.width - width + 1)), int(rng.integers(0, source.height - height + 1))
        large = source.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grainy = np.asarray(large, np.float32) + np.roll(noise, number * 37, axis=0)
        buffer = io.BytesIO()
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        yield buffer.getvalue()
