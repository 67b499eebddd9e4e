"""Pixelgate's detect-service."""
