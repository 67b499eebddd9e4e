"""The `pixelgate` command: what a person does with an installation besides running it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pixelgate_local import models_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; wrong usage is status 2."""
    parser = argparse.ArgumentParser(prog="pixelgate", description="Pixelgate on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models_command.add_to(commands)
    chosen = parser.parse_args(arguments)
    status: int = chosen.run(chosen)
    return status


if __name__ == "__main__":
    sys.exit(main())
