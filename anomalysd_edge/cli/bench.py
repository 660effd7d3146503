"""The verb bench: from file to verdict on this machine, by stage; and the table of modes for deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import listed, numbers
from anomalysd_edge.errors import InputError
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table

if TYPE_CHECKING:
    from anomalysd_edge.profiling.operating_points import OperatingPoint
    from anomalysd_edge.workflows.bench import BenchResult


def bench(
    bundle: options.BundleDir,
    photos: Annotated[Path, Option(help="Photos to inspect: data set or folder.")],
    class_name: Annotated[str | None, Option("--class", help="Class of the photos in a plain folder.")] = None,
    backend: Annotated[str, Option(help="Backends, separated by commas, as cpu,cuda:fp16.")] = "cpu",
    preset: Annotated[str, Option(help="Presets of the bundle, separated by commas.")] = "edge",
    max_batch: Annotated[
        str | None,
        Option(metavar="SIZES", help="Most samples in one UNet pass, by commas; else 3 on a CPU, 16 elsewhere."),
    ] = None,
    in_flight: Annotated[str, Option(metavar="SIZES", help="Photos inspected together, by commas.")] = "1",
    rounds: Annotated[int, Option(help="Measured inspections per row.")] = 20,
    warm_up: Annotated[int, Option(help="Inspections before them, which do not count.")] = 2,
    seconds: Annotated[float, Option(help="Start no inspection after this time; 0 = no limit.")] = 0,
    threads: options.Threads = None,
    out: Annotated[Path | None, Option(help="Folder for bench.json, bench.csv and bench.png.")] = None,
    pareto: Annotated[bool, Option("--pareto", help="Measure the table of modes for --deadline-ms.")] = False,
    good: Annotated[Path | None, Option(help="With --pareto: good photos (data set, folder, RUN).")] = None,
    per_class: Annotated[int, Option(help="With --pareto: test photos per class, as many good ones as bad ones.")] = 8,
    full: options.Full = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure inspections from file to verdict: percentiles, photos per second, memory, and the share of each stage.

    One row for each combination of backend, preset, batch and photos in flight; each in its own process.

    Example: sd-edge bench BUNDLE --photos DATA --in-flight 1,4 --out RESULTS
    """
    from anomalysd_edge.profiling.measurement import BenchRequest
    from anomalysd_edge.workflows import bench as body
    from anomalysd_edge.workflows.open_options import InspectOptions

    if pareto:
        if preset != "edge" or "," in backend:
            raise InputError(f"--pareto takes preset edge and one backend, not {preset!r} on {backend!r}")
        opening = InspectOptions(preset=preset, backend=backend, threads=threads, force=force)
        with progress_bars(quiet) as progress:
            file, modes = body.measure_operating_points(bundle, photos, good or photos, per_class, opening, progress)
        show_json({"file": file.name, "modes": modes}) if as_json else _show_modes(modes)
        say(f"table of modes written: {file}; inspect --deadline-ms picks from it")
        return
    if min(rounds, warm_up) < 1:
        raise InputError(f"--rounds is {rounds} and --warm-up {warm_up}, expected at least 1")
    batches = [None] if max_batch is None else numbers(max_batch, "--max-batch", 1)
    flights = numbers(in_flight, "--in-flight", 1)
    files = body.bench_photos(bundle, photos, class_name)
    requests = [
        BenchRequest(
            bundle=str(bundle), photos=files, preset=p, backend=b, max_batch=n, in_flight=g, rounds=rounds,
            warm_up=warm_up, threads=threads, seconds=seconds, force=force, full=full,
        )
        for b in listed(backend) for p in listed(preset) for n in batches for g in flights
    ]  # fmt: skip
    with progress_bars(quiet) as progress:
        found = body.run_bench(requests, progress)
    if out is not None:
        found.write(out)
        say(f"written: {out / 'bench.json'}, bench.csv, bench.png")
    show_json(found.to_json()) if as_json else _show(found)


def _show(found: BenchResult) -> None:
    from anomalysd_edge.profiling.measurement import STAGES
    from anomalysd_edge.reports.bench import COLUMNS, stage_table, table

    rows = found.rows
    show_table("From file to verdict", COLUMNS, [table([row], found.floors.get(row.backend))[0] for row in rows])
    show_table("Milliseconds a photo, by stage (batch/photos in flight)", ("", *STAGES), stage_table(rows))
    first = rows[0]
    say(
        f"{first.plan}: {first.open_s:.1f} s to open, first verdict {first.first_verdict_s:.1f} s after the process's "
        f"start, warm-up {first.warm_up_ms:.0f} ms; not in the figures above"
    )
    for name, floor in found.floors.items():
        rates = f"{floor.flops_a_second / 1e9:.1f} GFLOP/s in a matrix product, {floor.bytes_a_second / 1e9:.1f} GB/s"
        say(f"{name}: {rates}; 'x floor' is the time over what those allow the networks")
    if not found.floors:
        say("no floor: operations are counted where the package onnx is installed, rates measured by ONNX Runtime")


def _show_modes(modes: tuple[OperatingPoint, ...]) -> None:
    columns = ("mode", "front", "p50 ms", "p95 ms", "image", "pixel", "missed", "false alarms", "UNet samples")
    rows = [
        (m.name, "*" if m.front else "", f"{m.p50_ms:.0f}", f"{m.p95_ms:.0f}", 100 * m.image_auroc, 100 * m.pixel_auroc,
         f"{m.missed}/{m.bad}", f"{m.false_alarms}/{m.good}", m.unet_samples)
        for m in modes
    ]  # fmt: skip
    show_table("Modes: one photo at a time, from file to verdict; AUROC in percent", columns, rows)
