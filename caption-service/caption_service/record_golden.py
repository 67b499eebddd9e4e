"""`python -m caption_service.record_golden` writes the golden answer of the starter model into `data/golden.json`.

To be run, and its result committed, when the starter's weights or the way of speaking have changed. The answer is
that of transformers in fp32; it is recorded only if the starter says the same in every precision that can be had here.
"""

from __future__ import annotations

import json
from pathlib import Path

from pixelgate_common.inference.model_sets import STARTER
from pixelgate_common.inference.openvino_runtime import Precision, cpu_has_bf16

from caption_service import golden
from caption_service.artifacts import get_artifact
from caption_service.catalogue import find
from caption_service.runners import OpenVinoRunner
from caption_service.settings import Settings

TARGET = Path(__file__).parent / "data" / "golden.json"


def main() -> None:
    """Replace what is recorded by the answer of the present starter model."""
    settings = Settings()
    source = find(settings, STARTER)
    precisions: list[Precision] = ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]
    for precision in precisions:
        artifact = get_artifact(source, settings.cache_dir, half=precision != "fp32")
        runner = OpenVinoRunner(artifact, precision, settings.thread_count)
        golden.check(source.name, runner, artifact, artifact.answer, precision, sentence=True)
    known = {artifact.fingerprint: artifact.answer.to_json()}
    TARGET.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
