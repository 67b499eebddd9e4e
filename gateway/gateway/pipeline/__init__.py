"""Drives every stored picture through the analysis stages, as a process of its own: `python -m gateway.pipeline`."""
