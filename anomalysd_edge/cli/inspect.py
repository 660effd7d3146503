"""The verb inspect: photos to verdicts, on this machine or over Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.reports.console import percent, progress_bars, say, score_limits, show_json, show_table


def inspect(
    bundle: options.BundleDir,
    photos: Annotated[list[str], Argument(metavar="PHOTO", help="Photos, or folders of photos; with --ray also URLs.")],
    class_name: Annotated[
        str | None, Option("--class", help="Class of the photos, where the bundle has several.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for result.json and pictures of each photo.")] = None,
    preset: options.Preset = "edge",
    backend: options.Backend = "cpu",
    threads: options.Threads = None,
    max_batch: options.MaxBatch = None,
    deadline_ms: Annotated[
        float | None,
        Option(help="Milliseconds that a photo may take; picks the mode that bench --pareto measured for it."),
    ] = None,
    photos_per_second: Annotated[
        float | None, Option(help="The same by the rate of a line: 4 is a deadline of 250 ms.")
    ] = None,
    memory_budget: Annotated[
        str | None,
        Option(
            metavar="SIZE", help="Memory that the process may take, as 600MiB; lowers --max-batch by bench --pareto."
        ),
    ] = None,
    require_signature: options.PublicKey = None,
    on_mismatch: options.OnMismatch = "error",
    full: options.Full = False,
    force: options.Force = False,
    ray: options.Ray = None,
    workers: options.Workers = 2,
    gpus: options.Gpus = 0,
    journal: options.JournalFile = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Inspect photos: is each good, anomalous or uncertain, where, and what the repainted part looks like.

    Where a class has limits, a score between them is uncertain: a person should look. No verdict changes the exit code;
    it is 1 where a photo got none.

    Example: sd-edge inspect BUNDLE new.png --class bracket --out RESULTS
    """
    from anomalysd_edge.workflows.open_options import InspectOptions

    deadline_ms = options.time_of_photo(deadline_ms, photos_per_second)
    opening = InspectOptions(
        preset=preset, backend=backend, threads=threads, max_batch=max_batch, force=force,
        public_key=require_signature, on_mismatch=on_mismatch, deadline_ms=deadline_ms,
        memory_budget_bytes=options.size_bytes(memory_budget, "--memory-budget"),
    )  # fmt: skip
    with progress_bars(quiet or (ray is None and len(photos) < 2)) as progress:
        if (cluster := options.cluster(ray, workers, gpus, journal)) is not None:
            from anomalysd_edge.workflows.ray import inspect_on_ray

            results = inspect_on_ray(bundle, photos, class_name, out, opening, cluster, progress, full)
        else:
            from anomalysd_edge.workflows.inspect import inspect_photos

            results = inspect_photos(bundle, [Path(p) for p in photos], class_name, out, opening, progress, full)
    failed = [r for r in results if "error" in r]
    if as_json:
        show_json(results)
    else:
        _show([r for r in results if "error" not in r])
        if deadline_ms is not None:
            met = sum(r["deadline_met"] for r in results)
            say(f"mode: {results[0]['mode']}; {met} of {len(results)} verdicts within {deadline_ms:g} ms")
    if out is not None:
        say(f"pictures and result.json of each photo: {out}")
    for r in failed:
        say(f"no verdict: {r['error']}")
    if failed:
        raise typer.Exit(1)


def _show(results: list[dict[str, Any]]) -> None:
    rows = []
    for r in results:
        limit = score_limits(r["threshold"], r["limits"])
        sure = percent(r["pred_probability"])
        mask = r["evidence"]["kind"] + (f" {r['evidence']['scale']}" if r["evidence"]["scale"] else "")
        took = sum(r["timings_ms"].values())
        rows.append((r["photo"], r["class"], f"{r['pred_score']:.4f}", limit, r["verdict"], sure, mask, took))
    show_table("Inspection", ("photo", "class", "score", "threshold", "verdict", "defective", "mask", "ms"), rows)
