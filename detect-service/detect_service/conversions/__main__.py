"""`python -m detect_service.conversions < ORDERS` makes artifacts, one order in each line.

Loads each model by its own library, has it answer the golden question in fp32, and writes graph and facts. A problem
with a model is one line, the last on standard error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from pixelgate_common.digests import digest_of
from pixelgate_common.inference.artifact_cache import draft_of
from pixelgate_common.inference.errors import ModelProblem

from detect_service.artifacts import GRAPH, Artifact, Order
from detect_service.conversions.made import Made

METHOD = 1
"""Raise when boxes or alphas come out differently for the same weights: thresholds, suppression, resizing."""


def convert(order: Order, folder: Path) -> None:
    """Write the artifact that `order` asks for into `folder`. Each family's libraries are imported only for it."""
    made = _make(order, folder / GRAPH)
    whole = {
        "architecture": made.architecture,
        "weights": order.weights_sha256,
        "facts": made.facts,
        "method": METHOD,
    }
    slot = "cutout" if order.family == "matte" else "objects"
    Artifact(
        folder=folder,
        family=order.family,
        fingerprint=f"{slot}-{digest_of(json.loads(json.dumps(whole)))[:16]}",
        weights_sha256=order.weights_sha256,
        facts=made.facts,
        golden=made.golden,
    ).save()


def _make(order: Order, graph: Path) -> Made:
    if order.family == "yolo":
        from detect_service.conversions import yolo

        return yolo.convert(order.weights, order.config, graph, half=order.half)
    if order.family == "detr":
        from detect_service.conversions import detr

        return detr.convert(order.weights.parent, graph, half=order.half)
    from detect_service.conversions import matte

    return matte.convert(order.name, order.weights, order.config, graph, half=order.half)


def main() -> None:
    """Make the artifacts that standard input orders, and put each in its place."""
    orders = [Order.from_json(line) for line in sys.stdin if line.strip()]
    with tempfile.TemporaryDirectory(prefix="pixelgate-conversion-") as own:
        keep_to(Path(own))
        for order in orders:
            try:
                with draft_of(order.target) as folder:
                    convert(order, folder)
            except ModelProblem as error:
                sys.exit(error.detail)  # the last line on standard error, which the parent passes on
            except Exception as error:  # the libraries raise whatever they stumble over; the person needs the name
                sys.exit(f"{order.name} cannot be loaded from {order.weights}: {_first_line(error)}")


def keep_to(folder: Path) -> None:
    """Keep the libraries, imported after this, from fetching, installing, reporting, and writing but in `folder`."""
    os.environ.update(
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="False",
        YOLO_CONFIG_DIR=str(folder),
        YOLO_VERBOSE="False",
        MPLCONFIGDIR=str(folder),
        U2NET_HOME=str(folder),
        NUMBA_CACHE_DIR=str(folder),
        TORCH_HOME=str(folder),
        TORCHINDUCTOR_CACHE_DIR=str(folder),
        HF_HOME=str(folder),
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
    )
    tempfile.tempdir = str(folder)
    os.chdir(folder)  # ultralytics makes folders for its runs where it stands


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    main()
