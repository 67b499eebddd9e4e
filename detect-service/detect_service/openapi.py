"""`python -m detect_service.openapi` prints the OpenAPI document that is committed as `openapi.json`."""

from __future__ import annotations

import json

from detect_service.app import create_app
from detect_service.served import Models
from detect_service.settings import Settings


def main() -> None:
    """Print the document; it depends on no setting and no model."""
    app = create_app(Settings(models="starter"), models=Models(set="starter", detectors=[], mattes=[]))
    print(json.dumps(app.openapi(), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
