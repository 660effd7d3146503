"""The verbs of the inspection box: serve, watch, history. Like cli.py it opens the runtime's rooms inside functions."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalysd_edge.core.files import write_aside
from anomalysd_edge.reports.console import say, show_json, show_table

if TYPE_CHECKING:
    from anomalysd_runtime.server.records.verdict_store import Record

MEGA = 1 << 20
EXTRAS = dict.fromkeys(
    ("fastapi", "starlette", "pydantic", "uvicorn", "python_multipart", "prometheus_client", "paho", "cryptography"),
    "serve",
)
"""Which extra brings what these verbs import."""

Bundles = Annotated[list[Path], typer.Argument(help="Bundle folders; a bundle's name is its folder's.")]
Preset = Annotated[str, typer.Option(help="Inspection preset of the bundles: edge or paper.")]
Backend = Annotated[str, typer.Option(help="What the networks run on, as for inspect: cpu, cuda, rtx, cuda:fp16 ...")]
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
    keep: Annotated[
        str, typer.Option(help="What the record keeps beside verdicts: photo, map, or both by comma.")
    ] = "",
    max_age_days: Annotated[float, typer.Option(help="Verdicts older than this leave the record; 0 = never.")] = 0,
    max_record_mb: Annotated[int, typer.Option(help="The oldest leave above this size; 0 = no limit.")] = 0,
    queue: Annotated[int, typer.Option(help="Photos that may wait; more are answered 503.")] = 64,
    group: Annotated[int, typer.Option(help="Photos that share their UNet batches.")] = 4,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of a request that names none.")] = 60_000,
    memory_mb: Annotated[int, typer.Option(help="Unload the longest unused bundles above this; 0 = no limit.")] = 0,
    signature_key: Annotated[
        Path | None, typer.Option("--require-signature", help="Public key (PEM) that must have signed the bundles.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Lines NAME:SECRET; or set SD_EDGE_TOKEN.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Host name that the box is asked under.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    max_body_mb: Annotated[int, typer.Option(help="Longer bodies are answered 413.")] = 64,
    rate: Annotated[float, typer.Option(help="Inspections a second and client; 0 = no limit.")] = 0,
    mqtt: Annotated[
        str | None, typer.Option(help="Broker, HOST:PORT; SD_EDGE_MQTT_USER and _PASSWORD if it asks.")
    ] = None,
    mqtt_ca: Annotated[Path | None, typer.Option(help="PEM of the broker's authority; turns TLS on.")] = None,
    mqtt_prefix: Annotated[str, typer.Option(help="First part of every topic.")] = "sd-edge",
    webhook: Annotated[str | None, typer.Option(help="URL that verdicts are posted to; needs --record.")] = None,
    webhook_on: Annotated[str, typer.Option(help="Which verdicts: anomalous or all.")] = "anomalous",
    ray: Annotated[
        str | None, typer.Option(help="Run as replicas on Ray Serve: 'local', a cluster's address, or auto.")
    ] = None,
    replicas: Annotated[str, typer.Option(help="With --ray: how many, or 1-4 to scale with the load.")] = "2",
    gpus: Annotated[float, typer.Option(help="With --ray: GPUs that a replica claims.")] = 0,
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
    if ray is not None:
        from anomalysd_runtime.distributed.ray_serve import Replicas, serve_on_ray

        serve_on_ray(ray, chosen, Replicas.parse(replicas, gpus))
        return
    from anomalysd_runtime.server.lifecycle import serve as run

    run(chosen)


def watch(
    folder: Annotated[Path, typer.Argument(help="Photos lie in it, or in folders in it named after classes.")],
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")],
    class_name: Annotated[str | None, typer.Option("--class", help="Class of the photos directly in FOLDER.")] = None,
    preset: Preset = "edge",
    backend: Backend = "cpu",
    fallback: Fallback = None,
    threads: Threads = None,
    record: RecordFile = None,
    keep: Annotated[str, typer.Option(help="What the record keeps beside verdicts: photo, map.")] = "",
    poll_s: Annotated[float, typer.Option(help="Pause between two looks.")] = 1.0,
    settle_s: Annotated[float, typer.Option(help="A file must stay unchanged for so long.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="End when no photo is left.")] = False,
) -> None:
    """Judge new photos of a folder and move them to ok/, ng/, unknown/ or error/, each with its verdict as JSON."""
    from anomalysd_runtime.server import settings as s

    talk()
    kept = s.record_settings(record or folder / ".sd-edge" / "record.sqlite", keep, 0, 0)
    engine = s.EngineSettings(preset=preset, backend=backend, fallback=fallback, threads=threads)
    from anomalysd_runtime.server.connectors.watch import WatchSettings
    from anomalysd_runtime.server.lifecycle import watch as run

    finished = run(
        s.ServeSettings(bundles=(bundle,), engine=engine, record=kept),
        WatchSettings(folder, class_name, poll_s, settle_s), once,
    )  # fmt: skip
    say(f"{finished} photos were judged and moved")


history = typer.Typer(
    help="Ask the record: list and export verdicts, inspect a stored photo again, propose a threshold.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
RecordArgument = Annotated[Path, typer.Argument(help="The record's SQLite file.", exists=True, dir_okay=False)]
ClassOf = Annotated[str | None, typer.Option("--class", help="Only this class.")]
VerdictOf = Annotated[str | None, typer.Option("--verdict", help="good, anomalous or unknown.")]
Corrected = Annotated[bool, typer.Option("--corrected", help="Only those that an operator judged.")]
Since = Annotated[str | None, typer.Option(help="ISO 8601 time; UTC where no zone is given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@history.command("list")
def list_verdicts(
    record: RecordArgument,
    class_name: ClassOf = None,
    verdict: VerdictOf = None,
    corrected: Corrected = False,
    since: Since = None,
    until: Since = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest first.")] = 50,
) -> None:
    """A table of verdicts, the newest first."""
    from anomalysd_runtime.server.records import history as room

    with opened(record) as found:
        verdicts = room.find(found, room.Wanted(class_name, verdict, corrected, since, until, limit))
    rows = [
        (v.uid, datetime.fromtimestamp(v.at).isoformat(" ", "seconds"), v.class_name, f"{v.pred_score:.4f}",
         "-" if v.threshold is None else f"{v.threshold:.4f}", v.verdict, v.correction or "", v.photo)
        for v in verdicts
    ]  # fmt: skip
    show_table("Verdicts", ("uid", "time", "class", "score", "threshold", "verdict", "said", "photo"), rows)


@history.command()
def export(
    record: RecordArgument,
    out: Annotated[Path, typer.Option(help="File of JSON lines to write.")],
    class_name: ClassOf = None,
    verdict: VerdictOf = None,
    corrected: Corrected = False,
    since: Since = None,
    until: Since = None,
) -> None:
    """Write verdicts as JSON lines, whole."""
    from anomalysd_runtime.server.records import history as room

    with opened(record) as found, write_aside(out) as aside, aside.open("w", encoding="utf-8") as file:
        lines = list(room.export_lines(found, room.Wanted(class_name, verdict, corrected, since, until)))
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    say(f"{len(lines)} verdicts written: {out}")


@history.command()
def again(
    record: RecordArgument,
    uid: Annotated[str, typer.Argument(help="The verdict's uid.")],
    bundle: Annotated[Path, typer.Option(help="The bundle that judged it.")],
    backend: Backend = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Inspect a stored photo again: the score must be the recorded one, or the exit code is 1."""
    from anomalysd_runtime.server.records import history as room

    with opened(record) as found:
        told = room.inspect_again(found, uid, bundle, backend, threads)
    if as_json:
        show_json(told)
    same = "the same" if told.same else f"another by {abs(told.found - told.recorded):.1e}"
    say(f"recorded {told.recorded:.8g}, now {told.found:.8g}: {same}")
    if not told.same:
        raise typer.Exit(1)


@history.command()
def propose(
    record: RecordArgument,
    class_name: Annotated[str, typer.Option("--class", help="The class.")],
    missed_cost: Annotated[float, typer.Option(help="How many false alarms a missed defect is worth.")] = 1.0,
    rest_is_right: Annotated[
        bool, typer.Option("--rest-is-right", help="Uncorrected verdicts count as right.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Propose a threshold from operators' corrections. Changes nothing."""
    from anomalysd_runtime.server.records import history as room

    with opened(record) as found:
        told = room.propose(found, class_name, missed_cost, rest_is_right)
    if as_json:
        show_json(told)
        return
    rows = [
        ("now", "-" if told.current is None else f"{told.current:.4f}", told.missed[0], told.false_alarms[0]),
        ("proposed", f"{told.proposed:.4f}", told.missed[1], told.false_alarms[1]),
    ]
    title = f"{class_name}, bundle {told.bundle_id}: {told.ok} photos OK, {told.ng} NG"
    show_table(title, ("", "threshold", "missed", "false alarms"), rows)


def propose_for(bundle: Path, file: Path, as_json: bool) -> None:
    """`calibrate --from-history`: for every class of a bundle what `history propose` says of its verdicts."""
    from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
    from anomalysd_edge.core.files import sha256_file
    from anomalysd_edge.errors import InputError
    from anomalysd_runtime.server.records import history as room

    if not file.is_file():
        raise InputError(f"there is no record {file}; name the file that 'sd-edge serve --record' writes")
    bundle_id = sha256_file(bundle / MANIFEST)[:16]
    told: list[dict[str, Any]] = []
    with opened(file) as found:
        for name in sorted(read_bundle(bundle, verify=False).manifest.classes):
            try:
                told.append(asdict(room.propose(found, name, bundle_id=bundle_id)))
            except InputError as error:
                told.append({"class_name": name, "error": str(error)})
    if as_json:
        show_json(told)
        return
    rows = [
        (each["class_name"], "-", "-", "", "", each["error"])
        if "error" in each
        else (
            each["class_name"], "-" if each["current"] is None else f"{each['current']:.4f}", f"{each['proposed']:.4f}",
            " -> ".join(map(str, each["missed"])), " -> ".join(map(str, each["false_alarms"])),
            f"{each['ok']} OK, {each['ng']} NG",
        )
        for each in told
    ]  # fmt: skip
    show_table(
        f"Thresholds by operators' corrections, bundle {bundle_id}",
        ("class", "now", "proposed", "missed", "false alarms", "judged"), rows,
    )  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[Record]:
    """The record at `path`, closed at the end."""
    from anomalysd_runtime.server.records.verdict_store import Record

    record = Record(path)
    try:
        yield record
    finally:
        record.close()


def register(app: typer.Typer) -> None:
    """Hang the verbs into the command."""
    app.command()(serve)
    app.command()(watch)
    app.add_typer(history, name="history")
