"""`python -m detect_service.record_golden` writes the golden answers of the starter models into `data/golden.json`.

To be run, and its result committed, when the starter's weights have changed. The answers are those of ultralytics and
of rembg's session in fp32, computed while converting.
"""

from __future__ import annotations

import json
from pathlib import Path

from pixelgate_common.inference.model_sets import STARTER, find

from detect_service.converting import get_artifacts
from detect_service.settings import Settings

TARGET = Path(__file__).parent / "data" / "golden.json"


def main() -> None:
    """Replace what is recorded by the answers of the present starter models."""
    settings = Settings()
    sources = [find("objects", STARTER, settings), find("cutout", STARTER, settings)]
    known = {artifact.fingerprint: artifact.golden for artifact in get_artifacts(sources, settings)}
    TARGET.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
