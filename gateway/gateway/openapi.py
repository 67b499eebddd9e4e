"""Writes the public API's description to `openapi.json` beside the package: `python -m gateway.openapi`."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.app import create_app
from gateway.settings import GatewaySettings

PATH = Path(__file__).parents[1] / "openapi.json"


def write() -> None:
    """Write the file anew."""
    PATH.write_text(json.dumps(create_app(GatewaySettings()).openapi(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()
