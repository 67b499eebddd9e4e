"""`python -m embed_service.record_golden` writes the golden vectors of the starter models into `data/golden.json`.

To be run, and its result committed, when the starter's weights have changed. The vectors are those of open_clip and
torchvision in fp32, computed while converting.
"""

from __future__ import annotations

import json
from pathlib import Path

from embed_service.artifact_cache import get_artifact, make_missing, order_for
from embed_service.catalogue import SLOTS, STARTER, find
from embed_service.settings import Settings

TARGET = Path(__file__).parent / "data" / "golden.json"


def main() -> None:
    """Replace what is recorded by the vectors of the present starter models."""
    settings = Settings()
    sources = [find(settings, slot, STARTER) for slot in SLOTS]
    make_missing([order_for(source, settings.cache_dir, half=True) for source in sources])
    known = {}
    for source in sources:
        artifact = get_artifact(source, settings.cache_dir, half=True)
        known[artifact.fingerprint] = {"slot": source.slot, "image": artifact.image_vector}
        if artifact.text_vector is not None:
            known[artifact.fingerprint]["text"] = artifact.text_vector
    TARGET.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
