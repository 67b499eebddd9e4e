"""`python -m detect_service.main` serves until SIGTERM."""

from __future__ import annotations

import sys

import structlog
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.logs import configure_logs
from pixelgate_common.service import serve

from detect_service.app import SERVICE, create_app
from detect_service.settings import Settings


def main() -> None:
    """Load the models and serve them; a model that cannot be served is one line, and exit status 3."""
    settings = Settings()
    configure_logs(SERVICE, settings.log_level, settings.log_style)
    try:
        app = create_app(settings)
    except ModelProblem as error:
        structlog.get_logger(SERVICE).error("cannot_start", reason=error.detail)
        sys.exit(3)
    serve(app, settings, SERVICE)


if __name__ == "__main__":
    main()
