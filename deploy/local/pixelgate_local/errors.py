"""What keeps the launcher from doing its work, said in one line to the person at the console."""

from __future__ import annotations


class LocalError(Exception):
    """The message is the one line that the person sees: what is wrong, and what to do about it."""
