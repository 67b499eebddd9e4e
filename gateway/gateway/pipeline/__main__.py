"""Runs the pipeline: `python -m gateway.pipeline`."""

from __future__ import annotations

from pixelgate_common.service import serve

from gateway.pipeline.app import create_app
from gateway.pipeline.settings import PipelineSettings

if __name__ == "__main__":
    settings = PipelineSettings()
    serve(create_app(settings), settings, "pipeline")
