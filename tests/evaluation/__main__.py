"""Starts a whole Pixelgate, imports test scenes through its gateway, and prints what it found in them as one table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from starter_models.font import ensure_font

from tests.evaluation.colors import by_colors, by_palette
from tests.evaluation.content import captions, cutouts, objects
from tests.evaluation.duplicates import COPIES, duplicates
from tests.evaluation.figures import Figure, table
from tests.evaluation.filters import filters
from tests.evaluation.library import Say, draw, import_scenes
from tests.evaluation.words import found_by_words
from tests.system import EVERYTHING, System, running

SCENES = 500


def measure(system: System, count: int, say: Say) -> list[Figure]:
    """Import `count` scenes into a running system, and return all figures."""
    say(f"drawing {count} scenes")
    scenes = draw(count)
    with system.client() as client:
        library = import_scenes(client, scenes, say)
        figures = [captions(library), objects(library), cutouts(library, sorted(library.scenes))]
        say("captions, objects and cutouts are compared")
        figures += filters(library)
        figures += [by_colors(library, mode, 20) for mode in ("similar", "complementary")]
        figures.append(by_palette(library, 10))
        figures += found_by_words(library)
        say("filters, colours and words are compared")
        figures += duplicates(library, say, min(COPIES, count))
    return figures


def main() -> int:
    """Measure and print; the exit status says whether every aim is reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.evaluation", description=__doc__)
    parser.add_argument("--count", type=int, default=SCENES, help=f"scenes to import (default {SCENES})")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the data in this new folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures into this file as well")
    arguments = parser.parse_args()
    if arguments.count < 50:
        parser.error("--count: at least 50 scenes are needed, for filters that find something")
    if arguments.keep is not None and arguments.keep.exists():
        parser.error(f"--keep: {arguments.keep} exists")
    ensure_font()
    started = time.monotonic()
    with ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixelgate-evaluate-")))
        folder.mkdir(parents=True, exist_ok=True)
        system = stack.enter_context(running(folder / "data", EVERYTHING))
        figures = measure(system, arguments.count, lambda line: print(line, flush=True))
    print(f"\n{arguments.count} scenes, {time.monotonic() - started:.0f} s\n\n{table(figures)}")
    if arguments.json is not None:
        report = [{**asdict(figure), "ok": figure.ok} for figure in figures]
        arguments.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
