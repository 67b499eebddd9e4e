"""`make run`: Postgres and all services on this machine, from one folder, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from pixelgate_local import data_folder, logs
from pixelgate_local.console import Console, LoggedConsole, make_console
from pixelgate_local.errors import LocalError
from pixelgate_local.ports import InnerPorts, check_public_port, loopback_of, url_of
from pixelgate_local.postgres import LocalPostgres
from pixelgate_local.services import SERVICES, Service, environment
from pixelgate_local.settings import Settings, read_settings
from pixelgate_local.supervisor import Guard, Supervised, SupervisedPostgres, SupervisedService

_TICK_S = 0.2


class Launcher:
    """One run of the whole system; needs the main thread, whose end would end every child."""

    def __init__(self, settings: Settings, services: Sequence[Service], console: Console) -> None:
        self._settings, self._services = settings, services
        self._data_dir = settings.data_dir
        self._console: Console = LoggedConsole(console, data_folder.log_path(self._data_dir, "launcher"))
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._postgres: SupervisedPostgres | None = None
        self._kept: dict[str, Supervised] = {}
        self._ports: dict[str, int] = {}
        self._began = time.monotonic()

    async def run(self) -> None:
        """Start everything, watch over it until told to stop, and stop it.

        Raises:
            LocalError: something keeps it from starting.
        """
        settings = self._settings
        address = url_of(settings.host, settings.port)
        with ExitStack() as stack:
            stack.enter_context(data_folder.taken(self._data_dir, address))
            data_folder.check_space(self._data_dir, settings.min_free_mb)
            guard_lock = await self._wait_for_former_services()
            stack.callback(guard_lock.close)
            check_public_port(settings.host, settings.port)
            data_folder.clear_tmp(self._data_dir)
            data_folder.rotate_logs(self._data_dir, [*(s.name for s in self._services), "postgres", "launcher"])
            inner = InnerPorts()
            stack.callback(inner.close)
            self._choose_ports(inner)
            guard = Guard(settings.grace_s, guard_lock)
            stack.callback(guard.close)
            self._listen_to_signals()
            self._build(guard)
            keeping = [asyncio.create_task(one.keep(), name=one.name) for one in self._kept.values()]
            try:
                if await self._until_ready(keeping):
                    data_folder.write_run_file(self._data_dir, address, self._ports)
                    self._say_ready(address)
                    await self._watch(keeping)
            finally:
                self._console.waiting("")
                await self._stop_all(keeping)

    async def _wait_for_former_services(self) -> IO[str]:
        """Return the lock of the guard, once what a killed launcher left running has ended: it holds ports and stores.

        Raises:
            LocalError: it does not end.
        """
        lock = (self._data_dir / "run" / "guard.lock").open("a")
        deadline, said = time.monotonic() + 2 * self._settings.grace_s + 10, False
        while not data_folder.lock_now(lock):
            if not said:
                self._console.line("Waiting for what a killed Pixelgate left running …")
                said = True
            if time.monotonic() > deadline:
                lock.close()
                raise LocalError(f"Services of a killed Pixelgate still run on {self._data_dir}: end them first.")
            await asyncio.sleep(0.1)
        return lock

    def _choose_ports(self, inner: InnerPorts) -> None:
        for service in self._services:
            if service.public:
                self._ports[service.name] = self._settings.port
                continue
            wanted = os.environ.get(f"{service.variable}_PORT", "")
            usual = int(wanted) if wanted.isdigit() else service.port
            port = self._ports[service.name] = inner.take(usual)
            if port != usual:
                self._console.line(f"Port {usual} is in use; {service.name} takes {port}")

    def _build(self, guard: Guard) -> None:
        settings = self._settings
        if settings.database_url is None:
            self._postgres = SupervisedPostgres(LocalPostgres(self._data_dir), self._console)
            self._kept["postgres"] = self._postgres
        token = secrets.token_urlsafe(32)
        for service in self._services:
            host = loopback_of(settings.host) if service.public else "127.0.0.1"
            self._kept[service.name] = SupervisedService(
                service.name,
                service.command,
                lambda service=service: environment(  # type: ignore[misc]  # asked at each start
                    service, self._ports, self._services, os.environ, self._given(service, token)
                ),
                (host, self._ports[service.name]),
                log_path=data_folder.log_path(self._data_dir, service.name),
                cwd=self._data_dir,
                after=self._postgres if service.owns_stores else None,
                settings=settings,
                guard=guard,
                console=self._console,
                needed=service.awaited,
            )

    def _given(self, service: Service, token: str) -> dict[str, str]:
        """Return what every service is told, and the owner of the stores also where our own Postgres is."""
        settings = self._settings
        given = {
            "PIXELGATE_HOST": settings.host,
            "PIXELGATE_PORT": str(settings.port),
            "PIXELGATE_DATA_DIR": str(self._data_dir),
            "PIXELGATE_MODELS": settings.models,
            "PIXELGATE_MODEL_DIR": str(settings.weights_dir),
            "PIXELGATE_SERVICE_TOKEN": token,
            # What is on disk is what is used: no library may ask a hub, and wait for it, at start.
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if self._postgres is not None and service.owns_stores:
            given["DATABASE_URL"] = self._postgres.server.dsn
        return given

    def _listen_to_signals(self) -> None:
        def on_signal(number: signal.Signals) -> None:
            self._console.line(f"{number.name}: stopping" + (" at once" if self._stop.is_set() else " …"))
            if self._stop.is_set():
                self._hurry.set()
            self._stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, on_signal, number)

    async def _until_ready(self, keeping: Sequence[asyncio.Task[None]]) -> bool:
        """Wait until all are ready, saying what is waited for; False when told to stop before."""
        while not self._stop.is_set():
            missing = [one for one in self._awaited() if not one.ready.is_set()]
            if not missing:
                self._console.waiting("")
                return True
            waits = ", ".join(one.name + (f" ({one.waits_for})" if one.waits_for else "") for one in missing)
            self._console.waiting(f"waiting for {waits}: {time.monotonic() - self._began:.0f} s")
            await self._tick(keeping)
        return False

    def _awaited(self) -> list[Supervised]:
        others = {service.name for service in self._services if not service.awaited}
        return [one for name, one in self._kept.items() if name not in others]

    async def _watch(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """Until told to stop: look after free space and the logs' sizes, and notice what cannot be kept running."""
        settings = self._settings
        warned, next_check = False, 0.0
        while not self._stop.is_set():
            await self._tick(keeping)
            if time.monotonic() < next_check:
                continue
            next_check = time.monotonic() + settings.disk_check_s
            for name in (*self._kept, "launcher"):
                with contextlib.suppress(OSError):  # a full disk: the warning below is what there is to say
                    logs.cap(data_folder.log_path(self._data_dir, name), settings.log_max_mb * data_folder.MIB)
            free = data_folder.free_mb(self._data_dir)
            if free < settings.warn_free_mb and not warned:
                self._console.line(
                    f"Only {free} MB are free on the disk of {self._data_dir}: new pictures will soon be refused"
                )
            warned = free < (2 if warned else 1) * settings.warn_free_mb

    async def _tick(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """Wait a moment, less when told to stop; raise what ended one of the keepers."""
        stop = asyncio.ensure_future(self._stop.wait())
        done, _ = await asyncio.wait({stop, *keeping}, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in done - {stop}:
            await task

    def _say_ready(self, address: str) -> None:
        self._console.line(f"\nPixelgate is ready after {time.monotonic() - self._began:.1f} s: {address}")
        self._console.line(f"  data    {self._data_dir}")
        self._console.line(f"  models  {self._settings.models}")
        if self._settings.hints:
            self._console.line("  try     make demo   (in another terminal: sample pictures, a few searches, demo.png)")
            self._console.line("  stop    Ctrl-C\n")

    async def _stop_all(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """Stop what lets work in before what does it, and the database last."""
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        for rank in sorted({service.rank for service in self._services}):
            names = [service.name for service in self._services if service.rank == rank]
            await asyncio.gather(*(self._kept[name].stop(self._hurry) for name in names))
        if self._postgres is not None:
            await self._postgres.stop(self._hurry)
        self._console.line("Stopped.")


def main(services: Sequence[Service] = SERVICES) -> int:
    """Run until told to stop; return the exit code, after one clear line when something is in the way."""

    async def run(settings: Settings) -> None:
        await Launcher(settings, services, make_console()).run()

    try:
        asyncio.run(run(read_settings()))
    except LocalError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # before the handlers were there
        return 130
    return 0
