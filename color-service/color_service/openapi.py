"""`python -m color_service.openapi` prints the OpenAPI document that is committed as `openapi.json`."""

from __future__ import annotations

import json

from color_service.app import create_app
from color_service.settings import Settings


def main() -> None:
    """Print the document; it depends on no setting."""
    print(json.dumps(create_app(Settings()).openapi(), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
