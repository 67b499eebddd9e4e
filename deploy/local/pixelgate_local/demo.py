"""`make demo`: the sample pictures go in, are found by words and by picture, and `demo.png` shows it.

It uses the Pixelgate that runs on the data folder. When none does, it starts one on that same folder, so that the
pictures are still there at the next `make run`, and stops it afterwards.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pixelgate_local import processes
from pixelgate_local.collage import Hit, Row, draw_collage
from pixelgate_local.data_folder import is_taken, read_run_file
from pixelgate_local.errors import LocalError
from pixelgate_local.samples import Sample, altered, read_samples
from pixelgate_local.settings import Settings, read_settings

OUTPUT = Path("demo.png")
HITS = 5
BATCH = 20
TAG = "sample"
START_TIMEOUT_S = 300.0
ANALYSIS_TIMEOUT_S = 600.0
SEARCHABLE = ("clip", "resnet")
"""The stages after which a picture can be found by words and by picture."""


@dataclass(frozen=True)
class Asked:
    """One search of the demo: by words, or by an altered copy of the sample `picture`; and what a right hit shows."""

    words: str | None = None
    picture: str | None = None
    labels: frozenset[str] = frozenset()
    background: str | None = None

    def is_right(self, filename: str, sample: Sample | None) -> bool | None:
        """Whether a hit shows what was asked; None when nobody knows (it is no sample)."""
        if sample is None:
            return None
        if self.picture is not None:
            return filename == self.picture
        return self.labels <= set(sample.labels) and self.background in (None, sample.background)


SEARCHES = (
    Asked(words="a penguin", labels=frozenset({"penguin"})),
    Asked(words="dogs", labels=frozenset({"dog"})),
    Asked(words="a vase on a white background", labels=frozenset({"vase"}), background="white"),
    Asked(words="a snail and an elephant", labels=frozenset({"snail", "elephant"})),
    Asked(picture="test-002020.jpg"),
    Asked(picture="test-002053.jpg"),
)


def main() -> int:
    """Run the demo; return the exit code, after one clear line when something is in the way."""
    console = Console(highlight=False)
    try:
        settings = read_settings()
        samples = read_samples()
        with running_system(settings, console) as address, httpx.Client(base_url=address, timeout=60) as client:
            console.print(f"\n[bold]1. {len(samples)} sample pictures go in[/]")
            ids = import_samples(client, samples, console)
            console.print("\n[bold]2. They are analysed[/]")
            wait_searchable(client, ids, console)
            console.print("\n[bold]3. They are found[/]")
            rows = [search(client, asked, samples, console) for asked in SEARCHES]
            write_collage(rows, len(samples), OUTPUT)
            console.print(f"\nThe same as a picture: [bold]{OUTPUT.absolute()}[/]", soft_wrap=True)
            console.print(f"Try your own words: curl '{address}/v1/search?q=two+cars&limit=5'\n", soft_wrap=True)
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    except httpx.HTTPError as error:
        print(f"Pixelgate did not answer as it should: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def running_system(settings: Settings, console: Console) -> Iterator[str]:
    """Yield the address of the system on the data folder; start one, and stop it at the end, when none runs.

    Raises:
        LocalError: it does not start.
    """
    if is_taken(settings.data_dir):
        yield _wait_for_run_file(settings.data_dir, None)
        return
    console.print(f"No Pixelgate runs on {settings.data_dir}: starting one for this demo (its pictures stay there)")
    command = processes.tied_command([sys.executable, "-P", "-m", "pixelgate_local"], signal.SIGINT)
    env = {**os.environ, "PIXELGATE_HINTS": "false"}
    # In a process group of its own: a Ctrl-C here reaches it once, from the line below.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, process_group=0) as launcher:
        try:
            yield _wait_for_run_file(settings.data_dir, launcher)
        finally:
            launcher.send_signal(signal.SIGINT)


def import_samples(client: httpx.Client, samples: Mapping[str, Sample], console: Console) -> list[int]:
    """Upload the samples, and return their ids; those that are known from the last time are not stored again."""
    ids: list[int] = []
    created = 0
    names = list(samples)
    for start in range(0, len(names), BATCH):
        files = [("files", (name, samples[name].path.read_bytes())) for name in names[start : start + BATCH]]
        for outcome in answer_of(client.post("/v1/images", files=files, data={"tags": TAG}))["outcomes"]:
            if outcome["image"] is None:
                raise LocalError(f"{outcome['filename']} was refused: {outcome['problem']['detail']}")
            ids.append(outcome["image"]["id"])
            created += outcome["outcome"] == "created"
    console.print(f"   {created} are new, {len(ids) - created} were there already")
    return ids


def wait_searchable(client: httpx.Client, ids: Sequence[int], console: Console) -> None:
    """Show how far the analysis is until every picture in `ids` can be found.

    Raises:
        LocalError: it takes too long, or one of them could not be analysed.
    """
    deadline = time.monotonic() + ANALYSIS_TIMEOUT_S
    columns = (TextColumn("   {task.description:<8}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    left = deque(ids)
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=None) for name in SEARCHABLE}
        while True:
            # The stages count all pictures; only the samples are waited for, should an import be under way.
            while left and _is_searchable(client, left[0]):
                left.popleft()
            stages = {stage["stage"]: stage for stage in answer_of(client.get("/v1/stages"))["stages"]}
            for name, bar in bars.items():
                if (stage := stages.get(name)) is not None:
                    total = stage["pending"] + stage["running"] + stage["done"] + stage["failed"]
                    progress.update(bar, completed=stage["done"], total=total)
            if not left:
                return
            if time.monotonic() > deadline:
                raise LocalError(f"The analysis did not end within {ANALYSIS_TIMEOUT_S:g} s; GET /v1/stages says why.")
            time.sleep(0.2)


def search(client: httpx.Client, asked: Asked, samples: Mapping[str, Sample], console: Console) -> Row:
    """Search, print the hits as a table, and return them with their pictures."""
    picture: Image.Image | None = None
    if asked.words is not None:
        note, title = "by words", f"“{asked.words}”"
        answer = client.get("/v1/search", params={"q": asked.words, "limit": HITS})
    else:
        assert asked.picture is not None
        data = altered(samples[asked.picture])
        picture = Image.open(io.BytesIO(data))
        note, title = "by picture: turned, cropped", f"a turned and cropped copy of {asked.picture}"
        answer = client.post("/v1/search/by-image", files={"image": ("query.jpg", data)}, data={"limit": str(HITS)})
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in ("", "likeness", "picture", "what is on it", ""):
        table.add_column(heading, justify="right" if heading == "likeness" else "left")
    hits = []
    for place, found in enumerate(answer_of(answer)["hits"], 1):
        image = found["image"]
        name, sample = image["filename"], samples.get(image["filename"])
        detail = sample.in_words() if sample else image.get("caption") or "one of your own pictures"
        is_right = asked.is_right(name, sample)
        likeness = found["parts"]["vector"]
        shown = "by its words" if likeness is None else f"{likeness:.2f}"
        table.add_row(f"{place}", shown, name, detail, "✓" if is_right else "")
        pixels = client.get(f"/v1/images/{image['id']}/medium").raise_for_status().content
        hits.append(Hit(Image.open(io.BytesIO(pixels)), shown, detail, is_right))
    console.print()
    console.print(table)
    return Row(asked.words, picture, note, hits)


def write_collage(rows: Sequence[Row], pictures: int, path: Path) -> None:
    """Draw `rows` and write them to `path`."""
    subtitle = f"{pictures} pictures, searched by words and by picture. A tick: the hit shows what was asked."
    page = draw_collage("Pixelgate", subtitle, rows, "make demo")
    unfinished = path.with_name(f"{path.name}.new")
    page.save(unfinished, "PNG", optimize=True)
    unfinished.replace(path)


def _wait_for_run_file(data_dir: Path, launcher: subprocess.Popen[bytes] | None) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (told := read_run_file(data_dir)) is None:
        if launcher is not None and launcher.poll() is not None:
            raise LocalError("Pixelgate did not start; the line above says why.")
        if time.monotonic() > deadline:
            raise LocalError(f"Pixelgate on {data_dir} was not ready within {START_TIMEOUT_S:g} s.")
        time.sleep(0.1)
    return told.address


def _is_searchable(client: httpx.Client, image_id: int) -> bool:
    record = answer_of(client.get(f"/v1/images/{image_id}"))
    states = {name: record["stages"][name] for name in SEARCHABLE if name in record["stages"]}
    for name, stage in states.items():
        if stage["state"] == "failed":
            raise LocalError(f"{record['filename']} could not be analysed ({name}): {stage['error']}")
    return all(stage["state"] in ("done", "off") for stage in states.values())


def answer_of(response: httpx.Response) -> Any:
    """Return the JSON of a good answer.

    Raises:
        LocalError: it is a problem; the line is what the problem says.
    """
    if response.is_success:
        return response.json()
    detail = response.text[:200]
    with contextlib.suppress(ValueError, KeyError, TypeError):
        detail = response.json()["detail"]
    raise LocalError(f"Pixelgate refused {response.request.method} {response.request.url.path}: {detail}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
