"""The inspection box as a Ray Serve deployment: every replica is a whole box behind one address.

A replica holds its own Service (its bundles, its worker process, its queue), made and warmed up before Ray sends it
requests. Ray's proxy spreads requests over replicas, starts more of them as requests pile up, and replaces one that
died; what that one had been given is lost to its clients, who get an error from the proxy and may ask again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from anomalysd_edge.bundle.reader import MANIFEST
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.errors import BackendError, BundleError, SettingsError
from anomalysd_runtime.distributed.ray_start import LOCAL, ray_running
from anomalysd_runtime.server.inference.worker import Opener, open_bundle
from anomalysd_runtime.server.settings import ServeSettings

log = logging.getLogger("sd-edge")
APP = "sd-edge"
STOP_S = 35.0
"""Ray's patience with a replica that finishes what it took; a little more than the box's own."""


@dataclass(frozen=True)
class Replicas:
    """How many boxes, and what each claims of the cluster."""

    least: int = 2
    """Always there."""
    most: int = 2
    """There under load; above `least` Ray scales."""
    gpus: float = 0.0
    """GPUs a replica claims."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.gpus < 0:
            raise SettingsError(
                f"{self.least} to {self.most} replicas with {self.gpus:g} GPUs each; expected 1 <= least <= most"
            )

    @classmethod
    def parse(cls, text: str, gpus: float) -> Replicas:
        """'2', or '1-4' for scaling. Raises SettingsError."""
        least, _, most = text.partition("-")
        if not least.isdigit() or not (most or least).isdigit():
            raise SettingsError(f"--replicas is {text!r}; expected a number, or two as in 1-4")
        return cls(int(least), int(most or least), gpus)


class Replica:
    """One box. Ray makes it; `ingress` gives it the ASGI application that `application` holds."""

    def __init__(self, settings: ServeSettings, opener: Opener, versions: dict[str, str]) -> None:
        """Open and warm up; ready for requests afterwards. Raises SDEdgeError, which Ray reports.

        `versions` (bundle -> its id) makes Ray replace the replicas one by one when a bundle changed.
        """
        from anomalysd_runtime.server.http.app import make_app
        from anomalysd_runtime.server.inference.service import Service

        for path in settings.bundles:
            found = sha256_file(path / MANIFEST)[:16]
            if found != versions[path.name]:
                raise BundleError(f"{path} on {os.uname().nodename} is {found}, expected {versions[path.name]}")
        self.service = Service(settings, opener)
        self.service.start()
        _Front.app = make_app(self.service, settings.host)

    def check_health(self) -> None:
        """Raise where this replica cannot judge any more: Ray then makes another one."""
        if self.service.engine.state.lost is not None:
            raise BackendError(self.service.engine.state.lost)

    def __del__(self) -> None:
        """Ray's goodbye: what was taken is finished first."""
        service = getattr(self, "service", None)
        if service is not None:
            service.finish(service.settings.stop_s)
            service.stop()


class _Front:
    """The ASGI application of this process, once its Replica is made; it holds back what would reach one replica."""

    app: Any = None

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and _changes_one_replica(scope["path"]):
            sentence = "this would reach one replica of several; deploy again with 'sd-edge serve --ray' to update all"
            body = json.dumps({"error": sentence}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 501, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await _Front.app(scope, receive, send)


def _changes_one_replica(path: str) -> bool:
    return path.startswith("/bundles/") or (path.startswith("/v2/repository/models/"))


def application() -> Any:
    """What ingress calls in the replica, after the Replica was made."""
    return _Front()


def check(settings: ServeSettings) -> None:
    """Raise SettingsError for what only a box of its own can do."""
    alone = {
        "--mqtt": settings.mqtt is not None, "--webhook": settings.webhook is not None,
        "--tls-cert": settings.tls_cert is not None, "--port 0": settings.port == 0,
    }  # fmt: skip
    asked = [name for name, wanted in alone.items() if wanted]
    if asked:
        raise SettingsError(f"{', '.join(asked)} cannot go with --ray: they belong to one box, or to a proxy in front")


def deploy(serve: Any, settings: ServeSettings, replicas: Replicas, opener: Opener = open_bundle) -> None:
    """Put the boxes up, or replace those of another bundle one by one; they are warm when the call returns."""
    engine = settings.engine
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                # A replica is busy with one group; a second one in its queue means that another could work.
                "target_ongoing_requests": 2 * engine.group,
            }
        }
    made = serve.deployment(
        name="box",
        max_ongoing_requests=engine.queue + engine.group,
        ray_actor_options={"num_cpus": engine.threads or 1, "num_gpus": replicas.gpus},
        graceful_shutdown_timeout_s=STOP_S,
        health_check_period_s=2,
        **scaling,
    )(serve.ingress(application)(Replica))
    versions = {path.name: sha256_file(path / MANIFEST)[:16] for path in settings.bundles}
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.deadline_ms / 1e3 + 5,
        },
    )
    serve.run(made.bind(settings, opener, versions), name=APP, route_prefix="/")


def serve_on_ray(address: str, settings: ServeSettings, replicas: Replicas, opener: Opener = open_bundle) -> None:
    """`sd-edge serve --ray`. 'local': until SIGTERM or Ctrl-C; on a cluster the boxes stay when the call returns."""
    check(settings)
    cpus = replicas.most * (settings.engine.threads or 1)
    with ray_running(address, cpus) as ray:
        from ray import serve

        try:
            deploy(serve, settings, replicas, opener)
        except (RuntimeError, ray.exceptions.RayError) as error:
            said = [line for line in str(error).strip().splitlines() if line.strip()]
            raise BackendError(f"the boxes do not start ({said[-1].strip()}); look at Ray's logs") from error
        log.info("ready: %d replicas at http://%s:%d", replicas.least, settings.host, settings.port)
        if address != LOCAL:
            log.info("they stay; 'serve shutdown' of Ray ends them, the same command again updates them")
            return
        wanted = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: wanted.set())
        while not wanted.wait(0.5):
            pass
        log.info("stopping: what was taken is finished first")
        serve.shutdown()
