"""`python -m color_service.main` serves until SIGTERM."""

from __future__ import annotations

from pixelgate_common.service import serve

from color_service.app import SERVICE, create_app
from color_service.settings import Settings


def main() -> None:
    """Serve the routes with the settings of the environment."""
    settings = Settings()
    serve(create_app(settings), settings, SERVICE)


if __name__ == "__main__":
    main()
