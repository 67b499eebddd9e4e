"""`pixelgate models list|pull|verify`: the models of every slot, from their hubs into the model folder.

Exit status: 0 all is well; 1 a model is not what it should be, or a hub does not give it; 2 wrong usage or settings;
3 a hub cannot be reached or wants to be asked later; 130 stopped by Ctrl-C. With `--json` the answer is one JSON
object on standard output; whatever else is said goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pixelgate_common.inference.download import HubUnreachable
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.hubs import HubSettings, host_of
from pixelgate_common.inference.known_models import KNOWN, SLOTS, KnownModel
from pixelgate_common.inference.model_sets import resolve_all, set_in_use
from pixelgate_common.inference.pull import Listed, ModelFolder, choose
from pixelgate_common.inference.settings import ModelSettings
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

OK, WRONG, USAGE, LATER, STOPPED = 0, 1, 2, 3, 130


def add_to(commands: Any) -> None:
    """Add `models` and its three subcommands to the parser's `commands`."""
    models = commands.add_parser("models", help="the models of every slot: list, pull, verify")
    actions = models.add_subparsers(required=True, metavar="ACTION")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="one JSON object on standard output")

    listing = actions.add_parser("list", parents=[shared], help="what each slot uses, and what is on disk")
    listing.add_argument("--all", action="store_true", help="also models that can be pulled and are not on disk")
    listing.set_defaults(run=_guarded(_list))

    pull = actions.add_parser("pull", parents=[shared], help="fetch models into the model folder")
    pull.add_argument("names", nargs="*", metavar="SLOT|NAME", help="a slot's standard model, or a model by its name")
    pull.add_argument("--update", action="store_true", help="take what is published now in place of what is recorded")
    pull.set_defaults(run=_guarded(_pull))

    verify = actions.add_parser("verify", parents=[shared], help="compare the files on disk with models.lock")
    verify.add_argument("names", nargs="*", metavar="SLOT|NAME", help="these only, in place of all")
    verify.set_defaults(run=_guarded(_verify))


@dataclass
class _Surroundings:
    """What every action needs."""

    arguments: argparse.Namespace
    settings: ModelSettings
    hubs: HubSettings
    out: Console = field(default_factory=lambda: Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    err: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    @property
    def folder(self) -> ModelFolder:
        return ModelFolder(self.settings.model_dir, self.hubs)

    def say_json(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer, indent=1), file=sys.stdout)

    def complain(self, text: str) -> None:
        self.err.print(text, markup=False, soft_wrap=True)


def _guarded(action: Any) -> Any:
    """Turn what can go wrong on any way into one plain line and an exit status."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            around = _Surroundings(arguments, ModelSettings(), HubSettings())
        except ValidationError as error:
            first = error.errors()[0]
            print(f"{'.'.join(map(str, first['loc']))} is not valid: {first['msg']}", file=sys.stderr)
            return USAGE
        try:
            status: int = action(around)
        except ModelProblem as error:
            return _failed(around, error)
        except KeyboardInterrupt:
            around.complain("Stopped. What came in is kept; the next pull goes on from there.")
            return STOPPED
        return status

    return run


def _failed(around: _Surroundings, error: ModelProblem) -> int:
    if around.arguments.json:
        around.say_json({"problem": {"code": error.code, "detail": error.detail}})
    around.complain(error.detail)
    return LATER if isinstance(error, HubUnreachable) else WRONG


def _list(around: _Surroundings) -> int:
    rows = around.folder.overview()
    slots = [_slot_facts(slot, around.settings) for slot in SLOTS]
    used = {(facts["slot"], name) for facts in slots for name in facts["models"]}
    shown = [
        one for one in rows if around.arguments.all or one.is_standard or one.state != "missing" or _key(one) in used
    ]
    if around.arguments.json:
        around.say_json(
            {
                "model_dir": str(around.settings.model_dir),
                "asked_for": around.settings.models,
                "slots": slots,
                "models": [_model_facts(one, _key(one) in used, around.settings) for one in shown],
            }
        )
        return OK
    table = Table("slot", "uses", "set", title=f"In use (PIXELGATE_MODELS={around.settings.models})")
    table.add_column("from", overflow="fold")
    for facts in slots:
        table.add_row(
            facts["slot"],
            escape(", ".join(facts["models"]) or "–"),
            facts["set"],
            escape(facts["problem"] or "\n".join(facts["paths"])),
        )
    around.out.print(table)
    table = Table("slot", title=f"In {around.settings.model_dir}")
    for title in ("model", "from", "size", "on disk", "revision", "digest"):
        table.add_column(title, overflow="fold")
    for one in shown:
        table.add_row(
            one.row.slot,
            escape(one.row.name) + (" *" if _key(one) in used else ""),
            one.row.hub,
            f"{one.size_bytes / 1e6:,.1f} MB" if one.size_bytes else "–",
            one.state,
            (one.revision or "–")[:8],
            one.digest,
        )
    table.caption = "* in use; `--json` says more, licences too"
    around.out.print(table)
    return OK


def _slot_facts(slot: Any, settings: ModelSettings) -> dict[str, Any]:
    try:
        sources = resolve_all(slot, settings)
    except ModelProblem as error:
        return {"slot": slot, "models": [], "set": "–", "paths": [], "problem": error.detail}
    return {
        "slot": slot,
        "models": [source.name for source in sources],
        "set": set_in_use(sources[:1]),
        "paths": [str(source.path) for source in sources],
        "problem": None,
    }


def _key(one: Listed) -> tuple[str, str]:
    return one.row.slot, one.row.name


def _model_facts(one: Listed, in_use: bool, settings: ModelSettings) -> dict[str, Any]:
    return {
        "slot": one.row.slot,
        "name": one.row.name,
        "kind": one.row.kind,
        "set": "standard" if one.is_standard else "named",
        "in_use": in_use,
        "state": one.state,
        "size_bytes": one.size_bytes,
        "path": str(one.row.path(settings.model_dir)),
        "hub": one.row.hub,
        "host": one.host,
        "source": one.row.source,
        "revision": one.revision,
        "digest": one.digest,
        "licence": one.row.licence,
    }


class _Bars:
    """Progress bars on a terminal, one line for each file elsewhere; all on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console
        )
        self._tasks: dict[str, TaskID] = {}
        self.outcomes: dict[str, str] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        if self._console.is_terminal:
            with self._progress:
                yield
        else:
            yield

    def file(self, row: KnownModel, name: str, done: int, total: int | None) -> None:
        label = f"{row.name}: {name}"
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(escape(label), total=total)
            if not self._console.is_terminal:
                size = "" if total is None else f" ({total / 1e6:,.1f} MB)"
                self._console.print(f"{label}{size}", markup=False, soft_wrap=True)
        self._progress.update(self._tasks[label], completed=done, total=total)

    def model(self, row: KnownModel, outcome: Literal["pulled", "already there"]) -> None:
        self.outcomes[row.name] = outcome
        self._console.print(f"{row.slot} {row.name}: {outcome}", markup=False, soft_wrap=True)


def _pull(around: _Surroundings) -> int:
    rows = choose(around.arguments.names)
    bars = _Bars(around.err)
    folder = around.folder
    problems: list[tuple[KnownModel, ModelProblem]] = []
    away: set[str] = set()
    with bars.shown():
        for row in rows:
            host = host_of(row, around.hubs)
            if host in away:
                continue
            try:
                folder.pull(row, bars, update=around.arguments.update)
            except ModelProblem as error:
                problems.append((row, error))
                if isinstance(error, HubUnreachable):
                    away.add(host)
    for row, problem in problems:
        around.complain(f"{row.slot} {row.name}: {problem.detail}")
    if around.arguments.json:
        around.say_json(
            {
                "model_dir": str(around.settings.model_dir),
                "models": bars.outcomes,
                "problems": [
                    {"model": row.name, "code": problem.code, "detail": problem.detail} for row, problem in problems
                ],
                "not_tried": [
                    row.name
                    for row in rows
                    if row.name not in bars.outcomes and row not in [failed for failed, _ in problems]
                ],
            }
        )
    if not problems:
        return OK
    return LATER if all(isinstance(problem, HubUnreachable) for _, problem in problems) else WRONG


def _verify(around: _Surroundings) -> int:
    rows = choose(around.arguments.names) if around.arguments.names else list(KNOWN)
    checked, differences = around.folder.verify(rows)
    if around.arguments.json:
        around.say_json(
            {
                "model_dir": str(around.settings.model_dir),
                "checked": [row.name for row in checked],
                "differences": [{"model": one.model, "file": one.file, "problem": one.problem} for one in differences],
            }
        )
    else:
        for one in differences:
            around.out.print(f"{one.model}: {one.file}: {one.problem}", markup=False, soft_wrap=True)
        around.out.print(f"{len(checked)} models checked, {len(differences)} differences.", markup=False)
    return WRONG if differences else OK
