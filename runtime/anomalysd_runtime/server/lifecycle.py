"""`sd-edge serve`: build the box, open the doors, stop in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from anomalysd_edge.errors import SettingsError
from anomalysd_runtime.server.connectors.watch import FolderWatch, WatchSettings
from anomalysd_runtime.server.http.app import make_app
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.inference.worker import Opener, open_bundle
from anomalysd_runtime.server.settings import ServeSettings

log = logging.getLogger("sd-edge")


class Server(uvicorn.Server):
    """uvicorn's, but SIGTERM first stops the intake: what was taken is finished, then the connections close."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's raises the signal again at the end, which would end the process before the record is closed."""
        if threading.current_thread() is not threading.main_thread():  # signals can be heard there only
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """First signal: graceful; a second Ctrl-C: at once."""
        self._service.phase = "stopping"
        super().handle_exit(sig, frame)


def protocol_with_head_timeout(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, with a limit on the time for a request's head: uvicorn itself waits for ever."""

    class HeadTimeout(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(seconds, self._close_if_silent)

        def _close_if_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return HeadTimeout


def connect(service: Service) -> list[Any]:
    """The doors that the settings ask for beside HTTP; each has start() and stop()."""
    doors: list[Any] = []
    settings = service.settings
    if settings.webhook is not None and service.record is not None:
        from anomalysd_runtime.server.connectors.webhook import Webhook

        webhook = Webhook(service.record, settings.webhook)
        service.publish = webhook.wants
        service.listeners.append(webhook.heard)
        service.metrics.outbox.set_function(webhook.waiting)
        doors.append(webhook)
    if settings.mqtt is not None:
        from anomalysd_runtime.server.connectors.mqtt import MqttDoor

        mqtt = MqttDoor(service, settings.mqtt)
        service.listeners.append(mqtt.heard)
        service.metrics.mqtt.set_function(mqtt.connected.is_set)
        doors.append(mqtt)
    return doors


def serve(settings: ServeSettings, opener: Opener = open_bundle) -> None:
    """Run until SIGTERM or Ctrl-C. Raises SDEdgeError where the box cannot start."""
    service = Service(settings, opener)
    listening = bind(settings)
    host, port = listening.getsockname()[:2]
    where = f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    asyncio.run(run(service, Server(config_of(service), service), listening, where))


def watch(settings: ServeSettings, where: WatchSettings, once: bool = False, opener: Opener = open_bundle) -> int:
    """`sd-edge watch`: run until SIGTERM or Ctrl-C, or with `once` until the folder is empty; the photos finished."""
    service = Service(settings, opener)
    try:
        folder = FolderWatch(service, where)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: folder.stop())
        service.start()
        folder.run(once)
        return folder.finished
    finally:
        service.finish(settings.stop_s)
        service.stop()


def config_of(service: Service) -> uvicorn.Config:
    """uvicorn's settings for a box."""
    settings, security = service.settings, service.settings.security
    return uvicorn.Config(
        make_app(service, settings.host),
        http=protocol_with_head_timeout(security.header_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=security.max_connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.stop_s),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        h11_max_incomplete_event_size=32 * 1024,
    )


async def run(service: Service, server: Server, listening: socket.socket, where: str) -> None:
    """The doors open at once, so that health can say 'starting'; the bundles are opened in a thread meanwhile."""
    beside = connect(service)
    started: list[Any] = []
    doors = asyncio.ensure_future(server.serve(sockets=[listening]))
    start = asyncio.ensure_future(asyncio.to_thread(service.start))
    log.info("listening on %s", where)
    try:
        done, _ = await asyncio.wait({doors, start}, return_when=asyncio.FIRST_COMPLETED)
        if start in done:
            start.result()
            for door in beside:
                door.start()
                started.append(door)
            log.info("ready: %s", ", ".join(service.bundles.names()))
        await doors
    finally:
        server.should_exit = True
        await asyncio.wait({doors, start})
        if start.exception() is None:
            log.info("stopping: what was taken is finished first")
            await asyncio.to_thread(service.finish, service.settings.stop_s)
        for door in started:
            await asyncio.to_thread(door.stop)
        await asyncio.to_thread(service.stop)


def bind(settings: ServeSettings) -> socket.socket:
    """A socket on the asked-for address. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"{settings.host}:{settings.port} cannot be bound ({error.strerror}); choose another --port or --host"
        ) from error
    return listening
