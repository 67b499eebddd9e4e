"""What two Pixelgate services really share, and nothing that only one of them needs."""

__version__ = "0.1.0"
