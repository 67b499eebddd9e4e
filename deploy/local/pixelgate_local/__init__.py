"""Pixelgate on one machine: its Postgres, its services as child processes, and the demo."""
