"""What the person at the console sees: few lines, and while waiting, what is waited for."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Protocol

PLAIN_EVERY_S = 10.0


class Console(Protocol):
    """Where the launcher speaks."""

    def line(self, text: str) -> None:
        """Say `text`, which stays."""

    def waiting(self, text: str) -> None:
        """Say what is waited for at the moment; an empty text ends the wait."""


class PlainConsole:
    """Lines only, for logs and pipes; a wait is mentioned every ten seconds."""

    def __init__(self) -> None:
        self._next_mention = time.monotonic() + PLAIN_EVERY_S

    def line(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)

    def waiting(self, text: str) -> None:
        """Print `text` if the last mention was long ago."""
        if text and time.monotonic() >= self._next_mention:
            self._next_mention = time.monotonic() + PLAIN_EVERY_S
            self.line(text)


class RichConsole:
    """A terminal: one moving line says what is waited for."""

    def __init__(self) -> None:
        from rich.console import Console as Terminal  # costs 0.1 s, which a pipe need not pay

        self._terminal = Terminal(highlight=False)
        self._status = self._terminal.status("")
        self._shown = False

    def line(self, text: str) -> None:
        """Print `text` above the moving line."""
        self._terminal.print(text, markup=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        """Show `text` on the moving line."""
        from rich.markup import escape

        if text:
            self._status.update(escape(text))
        if bool(text) != self._shown:
            self._shown = bool(text)
            (self._status.start if text else self._status.stop)()


class LoggedConsole:
    """Speaks through another console, and keeps each line, with its time, in a file."""

    def __init__(self, console: Console, path: Path) -> None:
        self._console, self._path = console, path

    def line(self, text: str) -> None:
        """Say and keep `text`."""
        self._console.line(text)
        # On a full disk the console is what is left to speak through.
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")

    def waiting(self, text: str) -> None:
        """Pass on what is waited for; it is not kept."""
        self._console.waiting(text)


def make_console() -> Console:
    """Return the console that fits where standard output goes."""
    return RichConsole() if sys.stdout.isatty() else PlainConsole()
