"""`python -m storage_service.main` serves. Nothing happens on import: decoders import this module again."""

from __future__ import annotations

from pixelgate_common.service import serve

from storage_service.app import create_app
from storage_service.settings import Settings


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = Settings()
    serve(create_app(settings), settings, "storage-service")


if __name__ == "__main__":
    main()
