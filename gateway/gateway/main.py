"""Serves the gateway: `python -m gateway.main`."""

from __future__ import annotations

from pixelgate_common.service import serve

from gateway.app import create_app, end_streams
from gateway.settings import GatewaySettings


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = GatewaySettings()
    app = create_app(settings)
    serve(app, settings, "gateway", before_stop=lambda: end_streams(app))


if __name__ == "__main__":
    main()
