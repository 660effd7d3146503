"""The verbs of the inspection box: serve, watch, history. Like cli.py it opens the runtime's rooms inside functions."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

MEGA = 1 << 20
EXTRAS = dict.fromkeys(
    ("fastapi", "starlette", "pydantic", "uvicorn", "python_multipart", "prometheus_client", "paho", "cryptography"), "serve"
)
"""Which extra brings what these verbs import."""

Bundles = Annotated[list[Path], typer.Argument(help="Bundle folders; a bundle's name is its folder's.")]
Preset = Annotated[str, typer.Option(help="Inspection preset of the bundles: edge or paper.")]
Backend = Annotated[str, typer.Option(help="What the networks run on: cpu or cuda.")]
Fallback = Annotated[
    str | None, typer.Option(help="Backend to use where the asked-for one cannot be had; health then says degraded.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")]
RecordFile = Annotated[Path | None, typer.Option("--record", help="SQLite file in which every verdict is kept.")]


def talk() -> None:
    """Log lines on stderr, where journald and containers take them."""
    level = os.environ.get("SD_EDGE_LOG", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def serve(
    bundles: Bundles,
    host: Annotated[str, typer.Option(help="Address to bind; outside loopback a token is required.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 = any free one.")] = 8080,
    preset: Preset = "edge",
    backend: Backend = "cpu",
    fallback: Fallback = None,
    threads: Threads = None,
    record: RecordFile = None,
    keep: Annotated[str, typer.Option(help="What the record keeps beside verdicts: photo, map, or both by comma.")] = "",
    max_age_days: Annotated[float, typer.Option(help="Verdicts older than this leave the record; 0 = never.")] = 0,
    max_record_mb: Annotated[int, typer.Option(help="The oldest leave above this size; 0 = no limit.")] = 0,
    queue: Annotated[int, typer.Option(help="Photos that may wait; more are answered 503.")] = 64,
    group: Annotated[int, typer.Option(help="Photos that share their UNet batches.")] = 4,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of a request that names none.")] = 60_000,
    memory_mb: Annotated[int, typer.Option(help="Unload the longest unused bundles above this; 0 = no limit.")] = 0,
    signature_key: Annotated[Path | None, typer.Option(help="Ed25519 public key (PEM); bundles must be signed.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Lines NAME:SECRET; or set SD_EDGE_TOKEN.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Host name that the box is asked under.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    max_body_mb: Annotated[int, typer.Option(help="Longer bodies are answered 413.")] = 64,
    rate: Annotated[float, typer.Option(help="Inspections a second and client; 0 = no limit.")] = 0,
    mqtt: Annotated[str | None, typer.Option(help="Broker, HOST:PORT; SD_EDGE_MQTT_USER and _PASSWORD if it asks.")] = None,
    mqtt_ca: Annotated[Path | None, typer.Option(help="PEM of the broker's authority; turns TLS on.")] = None,
    mqtt_prefix: Annotated[str, typer.Option(help="First part of every topic.")] = "sd-edge",
    webhook: Annotated[str | None, typer.Option(help="URL that verdicts are posted to; needs --record.")] = None,
    webhook_on: Annotated[str, typer.Option(help="Which verdicts: anomalous or all.")] = "anomalous",
) -> None:
    """An inspection box: HTTP, page, KServe v2, MQTT, webhook, metrics. Ends well on SIGTERM."""
    from anomalysd_runtime.server import settings as s

    talk()
    chosen = s.ServeSettings(
        bundles=tuple(bundles), host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, deadline_ms=deadline_ms,
        engine=s.EngineSettings(
            preset=preset, backend=backend, fallback=fallback, threads=threads, group=group, queue=queue,
            memory_bytes=memory_mb * MEGA, signature_key=signature_key,
        ),
        record=s.record_settings(record, keep, max_age_days, max_record_mb * MEGA),
        security=s.SecuritySettings(
            tokens=s.read_tokens(os.environ.get("SD_EDGE_TOKEN"), token_file), hosts=tuple(allow_host or ()),
            max_body_bytes=max_body_mb * MEGA, rate_per_s=rate,
        ),
        mqtt=s.mqtt_settings(mqtt, mqtt_ca, mqtt_prefix, os.environ) if mqtt else None,
        webhook=s.webhook_settings(webhook, webhook_on, os.environ.get("SD_EDGE_WEBHOOK_SECRET")) if webhook else None,
    )  # fmt: skip
    from anomalysd_runtime.server.running import serve as run

    run(chosen)


def register(app: typer.Typer) -> None:
    """Hang the verbs into the command."""
    app.command()(serve)
