"""Serves the gateway: `python -m gateway.main`."""

from __future__ import annotations

from pixelgate_common.service import serve

from gateway.app import create_app
from gateway.settings import GatewaySettings

settings = GatewaySettings()
app = create_app(settings)

if __name__ == "__main__":
    serve(app, settings, "gateway")
