"""The verbs of the inspection box: serve and watch. Each imports the server when it is called."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import limit_bytes, size_bytes
from anomalysd_edge.reports.console import say

Fallback = Annotated[
    str | None, Option(help="Backend to use where --backend is not available; health then reports degraded.")
]
RecordFile = Annotated[Path | None, Option("--record", help="SQLite file that keeps every verdict.")]
Keep = Annotated[str, Option(help="What the record keeps beside verdicts: photo, map, or photo,map.")]


def start_log() -> None:
    """Log lines on stderr, where journald and containers collect them."""
    level = os.environ.get("SD_EDGE_LOG", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def serve(
    bundles: Annotated[list[Path], Argument(metavar="BUNDLE", help="Bundle folders; a bundle's name is its folder's.")],
    host: Annotated[str, Option(help="Address to bind; outside loopback a token is required.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; 0 = any free one.")] = 8080,
    preset: options.Preset = "edge",
    backend: options.Backend = "cpu",
    fallback: Fallback = None,
    threads: options.Threads = None,
    record: RecordFile = None,
    keep: Keep = "",
    max_age_days: Annotated[float, Option(help="Remove verdicts older than this; 0 = never.")] = 0,
    max_record_size: Annotated[
        str, Option(metavar="SIZE", help="Remove the oldest above this, as 2GiB; 0 = never.")
    ] = "0",
    queue: Annotated[int, Option(help="Most photos that wait; further ones are answered 503.")] = 64,
    group: Annotated[int, Option(help="Photos inspected together, in shared UNet batches.")] = 4,
    deadline_ms: Annotated[float, Option(help="Deadline in milliseconds of a request that names none.")] = 60_000,
    photos_per_second: Annotated[
        float | None, Option(help="Keep up with a line of this rate: leave out repaints that there is no time for.")
    ] = None,
    memory_budget: Annotated[
        str, Option(metavar="SIZE", help="Unload the longest unused bundles while their files exceed this; 0 = never.")
    ] = "0",
    require_signature: options.PublicKey = None,
    sign: Annotated[Path | None, Option(metavar="KEY", help="Sign taught bundles with this private key.")] = None,
    trusted_width: Annotated[
        float, Option(metavar="PERCENT", help="Propose to trust a class once its error is known to so many points.")
    ] = 20,
    auto: Annotated[bool, Option("--auto", help="Accept by itself what it proposes to trust; needs --record.")] = False,
    token_file: Annotated[
        Path | None, Option(help="File of NAME:SECRET or NAME:SECRET:ROLE lines; or set SD_EDGE_TOKEN.")
    ] = None,
    allow_host: Annotated[list[str] | None, Option(help="Host name to accept in requests; repeatable.")] = None,
    tls_cert: Annotated[Path | None, Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, Option(help="PEM private key.")] = None,
    max_body_size: Annotated[str, Option(metavar="SIZE", help="Longer request bodies are answered 413.")] = "64MiB",
    rate: Annotated[float, Option(help="Inspections per second and client; 0 = no limit.")] = 0,
    mqtt: Annotated[
        str | None,
        Option(metavar="HOST:PORT", help="MQTT broker; credentials: SD_EDGE_MQTT_USER, SD_EDGE_MQTT_PASSWORD."),
    ] = None,
    mqtt_ca: Annotated[Path | None, Option(help="PEM of the broker's certificate authority; enables TLS.")] = None,
    mqtt_prefix: Annotated[str, Option(help="First part of every topic.")] = "sd-edge",
    webhook: Annotated[str | None, Option(help="URL that verdicts are posted to; needs --record.")] = None,
    webhook_on: Annotated[
        str, Option(metavar="A,B", help="Verdicts to post: anomalous, uncertain, good, unknown, or all.")
    ] = "anomalous,uncertain",
    ray: Annotated[str | None, Option(help="Replicas on Ray Serve: 'local', an address, or auto.")] = None,
    replicas: Annotated[str, Option(help="With --ray: number, or 1-4 to scale with the load.")] = "2",
    gpus: Annotated[float, Option(help="With --ray: GPUs that each replica reserves.")] = 0,
    full: options.Full = False,
) -> None:
    """Serve bundles: HTTP, a page for operators, KServe v2, MQTT, webhook, metrics.

    On SIGTERM it finishes the inspections that it has accepted.

    Example: sd-edge serve BUNDLE --record record.sqlite
    """
    from anomalysd_runtime.server import settings as s

    start_log()
    chosen = s.ServeSettings(
        bundles=tuple(bundles), host=host.strip("[]"), port=port, tls_cert=tls_cert, tls_key=tls_key,
        deadline_ms=deadline_ms,
        engine=s.EngineSettings(
            preset=preset, backend=backend, fallback=fallback, threads=threads, group=group, queue=queue,
            memory_bytes=limit_bytes(memory_budget, "--memory-budget"), public_key=require_signature,
            full=full, sign_key=sign, photos_per_second=photos_per_second,
        ),
        record=s.record_settings(record, keep, max_age_days, limit_bytes(max_record_size, "--max-record-size")),
        security=s.SecuritySettings(
            tokens=s.read_tokens(os.environ.get("SD_EDGE_TOKEN"), token_file), roles=s.read_roles(token_file),
            hosts=tuple(allow_host or ()),
            max_body_bytes=size_bytes(max_body_size, "--max-body-size") or 0, rate_per_s=rate,
        ),
        mqtt=s.mqtt_settings(mqtt, mqtt_ca, mqtt_prefix, os.environ) if mqtt else None,
        trusted_width=trusted_width / 100,
        auto=auto,
        webhook=s.webhook_settings(webhook, webhook_on, os.environ.get("SD_EDGE_WEBHOOK_SECRET")) if webhook else None,
    )  # fmt: skip
    if ray is not None:
        from anomalysd_runtime.distributed.ray_serve import ReplicaSettings, serve_on_ray

        serve_on_ray(ray, chosen, ReplicaSettings.parse(replicas, gpus))
        return
    from anomalysd_runtime.server.lifecycle import serve as run

    run(chosen)


def watch(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder of new photos; subfolders are classes.")],
    bundle: Annotated[Path, Option(help="Bundle folder.")],
    class_name: Annotated[str | None, Option("--class", help="Class of the photos that lie in FOLDER itself.")] = None,
    preset: options.Preset = "edge",
    backend: options.Backend = "cpu",
    fallback: Fallback = None,
    threads: options.Threads = None,
    record: RecordFile = None,
    keep: Keep = "",
    poll_s: Annotated[float, Option(help="Seconds between two looks into the folder.")] = 1.0,
    settle_s: Annotated[float, Option(help="Seconds that a file must stay unchanged.")] = 1.0,
    once: Annotated[bool, Option("--once", help="End when no photo is left.")] = False,
    full: options.Full = False,
) -> None:
    """Inspect the photos that arrive in a folder and move them to ok/, ng/, unsure/, unknown/ or error/.

    The verdict lies beside each as JSON.

    Example: sd-edge watch FOLDER --bundle BUNDLE --class bracket
    """
    from anomalysd_runtime.server import settings as s

    start_log()
    kept = s.record_settings(record or folder / ".sd-edge" / "record.sqlite", keep, 0, 0)
    engine = s.EngineSettings(preset=preset, backend=backend, fallback=fallback, threads=threads, full=full)
    from anomalysd_runtime.server.connectors.watch import WatchSettings
    from anomalysd_runtime.server.lifecycle import watch as run

    finished = run(
        s.ServeSettings(bundles=(bundle,), engine=engine, record=kept),
        WatchSettings(folder, class_name, poll_s, settle_s), once,
    )  # fmt: skip
    say(f"{finished} photos were judged and moved")
