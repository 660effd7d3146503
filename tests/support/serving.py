"""A box for tests: real sockets, a real worker, real ONNX graphs of a few pixels, and photos that make it fail."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import BackendError, DeviceLost, NumericError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import Inspection
from anomalysd_runtime.server import lifecycle
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.inference.worker import Opener, open_bundle
from anomalysd_runtime.server.settings import EngineSettings, RecordSettings, ServeSettings

CRASH, NAN, SLOW, STUCK = (255, 0, 255), (0, 255, 255), (255, 255, 0), (0, 0, 255)
"""First pixels that make a touchy detector die, find NaN, take 0.4 s, or never answer."""


def small_settings(bundle: Path, **changes: Any) -> ServeSettings:
    """One bundle, one CPU thread, any free port."""
    return ServeSettings(bundles=(bundle,), port=0, engine=EngineSettings(threads=1), **changes)


def recorded_settings(bundle: Path, folder: Path) -> ServeSettings:
    """The same with a record of its verdicts in `folder`."""
    record = RecordSettings(folder / ".sd-edge" / "record.sqlite")
    return ServeSettings(bundles=(bundle,), engine=EngineSettings(threads=1), record=record)


class Touchy(Detector):
    """A real detector that some photos make fail."""

    def inspect(
        self,
        photos: Sequence[U8],
        class_names: Sequence[str] | str,
        deadline: float | None = None,
        full: Sequence[bool] | bool = True,
    ) -> list[Inspection]:
        first = [tuple(int(v) for v in photo[0, 0]) for photo in photos]
        if CRASH in first:
            os._exit(66)
        if STUCK in first:
            time.sleep(600)
        if SLOW in first:
            time.sleep(0.4)
        if NAN in first:
            raise NumericError("3 of 48 values from the network 'unet' are NaN or Inf")
        return super().inspect(photos, class_names, deadline, full)


def open_touchy(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """As open_bundle."""
    detector = open_bundle(path, settings, backend)
    detector.__class__ = Touchy
    return detector


class TellsItsDeadline(Touchy):
    """Fails with the seconds that it was given, where a deadline came at all."""

    def inspect(self, photos: Sequence[U8], *rest: Any, **named: Any) -> list[Inspection]:
        if len(rest) > 1 and rest[1] is not None:
            raise BackendError(f"{rest[1] - time.monotonic():.3f} s are left")
        return super().inspect(photos, *rest, **named)


def open_telling(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """As open_bundle."""
    detector = open_bundle(path, settings, backend)
    detector.__class__ = TellsItsDeadline
    return detector


class LosesItsDevice(Touchy):
    """Some photos break the device as an illegal access breaks a CUDA context: this process judges nothing any more."""

    broken = False

    def inspect(self, photos: Sequence[U8], *rest: Any, **named: Any) -> list[Inspection]:
        networks = self.networks
        if any(tuple(int(v) for v in photo[0, 0]) == NAN for photo in photos):
            self.broken = True
            networks.__class__ = type("Lost", (type(networks),), {"probe": _lost})
        if self.broken:
            raise BackendError("onnxruntime failed in the network 'unet': CUDA failure 700: an illegal memory access")
        return super().inspect(photos, *rest, **named)


def _lost(networks: Any) -> None:
    raise DeviceLost(f"the GPU is lost to this process ({networks.backend})")


def open_losing(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """As open_bundle."""
    detector = open_bundle(path, settings, backend)
    detector.__class__ = LosesItsDevice
    return detector


class Slow(Touchy):
    """Takes long enough for whoever holds it to be killed in the middle of something."""

    def inspect(self, *asked: Any, **named: Any) -> list[Inspection]:
        time.sleep(0.3)
        return super().inspect(*asked, **named)


def open_slow(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """As open_bundle."""
    detector = open_bundle(path, settings, backend)
    detector.__class__ = Slow
    return detector


def open_without_cuda(path: Path, settings: EngineSettings, backend: str) -> Detector:
    """As open_bundle on a machine whose GPU is lost."""
    if backend == "cuda":
        raise BackendError("CUDAExecutionProvider was asked for and is not there")
    return open_bundle(path, settings, backend)


def png(seed: int = 0, first: tuple[int, int, int] | None = None, side: int = 20) -> bytes:
    """A PNG of noise; `first` is its first pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[0, 0] = first or (1, 2, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Box:
    """A running box."""

    service: Service
    port: int

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            told = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, told, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def inspect(self, photo: bytes, query: str = "", **headers: str) -> Answer:
        """A raw photo."""
        return self.ask("POST", f"/inspect{query}", photo, {"content-type": "image/png", **headers})

    def form(self, path: str, parts: Sequence[tuple[str, bytes | str]]) -> Answer:
        """A multipart body; bytes are files."""
        edge = "----edge"
        body = b""
        for name, value in parts:
            file = '; filename="photo.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
            data = value if isinstance(value, bytes) else value.encode()
            body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
        body += f"--{edge}--\r\n".encode()
        return self.ask("POST", path, body, {"content-type": f"multipart/form-data; boundary={edge}"})


@contextmanager
def running_box(settings: ServeSettings, opener: Opener = open_bundle) -> Iterator[Box]:
    """A box on a free port, ready; it stops in order at the end."""
    service = Service(settings, opener)
    listening = lifecycle.bind(settings)
    server = lifecycle.Server(lifecycle.config_of(service), service)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(lifecycle.run(service, server, listening, "test"))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until = time.monotonic() + 60
        while service.phase == "starting" and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        thread.join(0 if service.phase == "ready" else 10)
        if failed:
            raise failed[0]
        assert service.phase == "ready", service.phase
        yield Box(service, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()


def touchy_settings(bundle: Path, **changes: Any) -> ServeSettings:
    """Settings for open_touchy: stuck after a second."""
    settings = small_settings(bundle)
    return replace(settings, engine=replace(settings.engine, **changes))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
