"""Pixelgate's color-service."""
