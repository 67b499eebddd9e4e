"""`make bench`: every question one after the other, each in a process of its own so that memory peaks are its own."""

from __future__ import annotations

import argparse
import subprocess
import sys

QUESTIONS = {
    "embed_http": "(a) embedding over HTTP against a plain FastAPI + open_clip service",
    "search_latency": "(b) search latency, recall and search during an import",
    "import_rate": "(c) importing 12-megapixel photographs against a Pillow + open_clip loop",
    "caption_http": "(e) captions over HTTP against generate() one by one",
    "objects_http": "(f) objects over HTTP against ultralytics' predict() one by one",
    "cutouts_http": "(g) cutouts over HTTP against rembg one by one",
    "color_ranking": "(h) ranking 100,000 palettes by CIEDE2000 against scikit-image",
    "color_search": "(h2) colour search in a store of 100,000 pictures against looking at every palette",
    "thumbnails": "(i) thumbnails of 12-megapixel photographs against Pillow",
    "gateway_overhead": "(d) what the gateway adds to a direct call",
}


def main() -> int:
    """Run the questions that were named (all of them by default); return how many could not be answered."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("questions", nargs="*", choices=[[], *QUESTIONS], help="which ones; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller amounts: to see that it runs, not to quote")
    options = parser.parse_args()
    failed = 0
    for name in options.questions or QUESTIONS:
        print(f"\n== {QUESTIONS[name]}\n", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *(["--quick"] if options.quick else [])]
        failed += subprocess.run(command).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
