"""Pixelgate's caption-service."""
