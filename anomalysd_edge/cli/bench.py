"""The verb bench: from file to verdict on this machine, per stage; and the table of modes for deadlines."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomalysd_edge.bundle.backend_spec import ENGINES, backend_choice
from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.core.files import sha256_file, write_aside, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import BackendError, InputError
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.profiling.measurement import STAGES, BenchRequest, BenchRow
from anomalysd_edge.reports.bench import COLUMNS, Floor, as_csv, plot, stage_table, table
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table
from anomalysd_edge.vision import images

if TYPE_CHECKING:
    from anomalysd_edge.profiling.operating_points import Mode

_NETWORK_OF = {"features": "features", "encode": "vae_encoder", "unet": "unet", "decode": "vae_decoder",
               "distance": "perceptual"}  # fmt: skip


@dataclass(frozen=True)
class Benched:
    """What bench found."""

    machine: dict[str, Any]
    rows: list[BenchRow]
    floors: dict[str, Floor]
    """By backend; empty where the operations could not be counted."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = []
        for row in self.rows:
            floor = self.floors.get(row.backend)
            entry: dict[str, Any] = asdict(row)
            if floor is not None:
                entry["floor"] = {"times_floor": floor.times(row), "networks": floor.of(row)}
            found.append(entry)
        rates = {
            name: {"gflop_a_second": f.flops_a_second / 1e9, "gigabytes_a_second": f.bytes_a_second / 1e9}
            for name, f in self.floors.items()
        }
        return {"machine": self.machine, "rates": rates, "rows": found}


def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    photos: Annotated[Path, typer.Option(help="Photos to judge: a data set, or a folder of one class.")],
    class_name: Annotated[str | None, typer.Option("--class", help="Class of the photos of a plain folder.")] = None,
    backend: Annotated[str, typer.Option(help="Backends by commas, as cpu,cuda:fp16.")] = "cpu",
    plan: Annotated[str, typer.Option(help="Presets of the bundle, by commas.")] = "edge",
    batch: Annotated[str, typer.Option(help="Largest UNet batches, by commas.")] = "16",
    in_flight: Annotated[str, typer.Option(help="Photos inspected together, by commas.")] = "1",
    rounds: Annotated[int, typer.Option(help="Inspections that count, per row.")] = 20,
    warm_up: Annotated[int, typer.Option(help="Inspections before, timed apart.")] = 2,
    seconds: Annotated[float, typer.Option(help="Begin no round after so long; 0 = no limit.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, bench.csv and bench.png.")] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Measure modes and put the table for --deadline-ms beside the bundle.")
    ] = False,
    good: Annotated[Path | None, typer.Option(help="With --pareto: RUN or data set of the good photos.")] = None,
    per_class: Annotated[int, typer.Option(help="With --pareto: good and bad photos judged a class, each.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Also a precision that the gate refused.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Measure from file to verdict: per stage, percentiles, photos a second, memory, distance from the floor."""
    if pareto:
        with progress_bars(quiet) as progress:
            file, modes = _pareto(bundle, photos, good, plan, backend, threads, per_class, force, progress)
        show_json({"file": file.name, "modes": modes}) if as_json else _show_modes(modes)
        say(f"table of modes written: {file}; inspect --deadline-ms picks from it")
        return
    asked = [
        BenchRequest(
            str(bundle), _photos(bundle, photos, class_name), p, b, n, g, rounds, warm_up, threads, seconds, force
        )
        for b in _words(backend)
        for p in _words(plan)
        for n in _numbers(batch, "--batch")
        for g in _numbers(in_flight, "--in-flight")
    ]
    if min(rounds, warm_up) < 1:
        raise InputError(f"--rounds is {rounds} and --warm-up {warm_up}, expected at least 1")
    with progress_bars(quiet) as progress:
        rows = []
        for number, one in enumerate(asked):
            progress("bench", number, len(asked), f"{one.preset} on {one.backend}, batch {one.batch}")
            rows.append(in_own_process(one))
        progress("bench", len(asked), len(asked), "done")
        floors = _floors(bundle, asked, rows)
    found = Benched(machine_facts(), rows, floors)
    if out is not None:
        _write(out, found)
    if as_json:
        show_json(found.to_json())
        return
    _show(found)


def in_own_process(asked: BenchRequest) -> BenchRow:
    """Measure one row in a fresh Python: its memory and its start are its own. Raises BackendError."""
    command = [sys.executable, "-m", "anomalysd_edge.workflows.bench_worker"]
    request = json.dumps({"asked": asdict(asked), "sent": time.time()})
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    found = json.loads(last[0]) if done.returncode == 0 else {}
    if "error" in found:
        raise BackendError(found["error"])
    if not found:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(f"measuring {asked.preset} on {asked.backend} broke off ({words}): try a smaller --batch")
    return BenchRow(**found)


def floor_of(bundle: Bundle, backend: str, threads: int | None, batch: int) -> Floor | None:
    """The floor on this machine; None where the package onnx, or a library to measure the rates with, is missing."""
    try:
        from anomalysd_export.engines.counting import graph_cost
        from anomalysd_runtime.machine_rates import measure_rates
        from anomalysd_runtime.onnx.sessions import available_providers
        from anomalysd_runtime.static_batches import PIXELS_A_CALL
    except ModuleNotFoundError:
        return None
    choice = backend_choice(backend)
    device = "cpu" if choice.kind == "cpu" else "cuda"
    if device == "cuda" and "CUDAExecutionProvider" not in available_providers():
        return None
    rates = measure_rates(device, threads, half=device == "cuda" and choice.precision != "fp32")
    sizes = bundle.manifest.sizes
    gflop, megabytes, seconds = {}, {}, {}
    for job, network in _NETWORK_OF.items():
        if network not in bundle.manifest.networks:
            continue
        side = sizes.features_px if network == "features" else sizes.size_px
        used = batch if network == "unet" else max(1, min(batch, PIXELS_A_CALL // side**2))
        file = bundle.network_file(network, "fp32" if choice.kind in ENGINES else choice.precision)
        one, many = graph_cost(file), graph_cost(file, used)
        gflop[job], megabytes[job] = one.flops / 1e9, one.bytes / 1e6
        seconds[job] = many.floor_seconds(rates.flops_a_second, rates.bytes_a_second) / used
    return Floor(rates.flops_a_second, rates.bytes_a_second, gflop, megabytes, seconds)


def _floors(bundle: Path, asked: list[BenchRequest], rows: list[BenchRow]) -> dict[str, Floor]:
    opened, found = read_bundle(bundle, verify=False), {}
    for one, row in zip(asked, rows, strict=True):
        if row.backend not in found and (floor := floor_of(opened, one.backend, one.threads, one.batch)) is not None:
            found[row.backend] = floor
    return found


def _show(found: Benched) -> None:
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


def _write(out: Path, found: Benched) -> None:
    write_json(out / "bench.json", found.to_json())
    with write_aside(out / "bench.csv") as aside:
        aside.write_text(as_csv(found.rows), encoding="utf-8")
    title = f"From file to verdict: {found.machine['processor']}, {found.machine['cores']} cores"
    images.save_png(out / "bench.png", plot(found.rows, title))
    say(f"written: {out / 'bench.json'}, bench.csv, bench.png")


def _photos(bundle: Path, photos: Path, class_name: str | None) -> list[tuple[str, str]]:
    """(file, class): of a data set in turn over its classes, or of a folder of one class."""
    from anomalysd_edge.evaluation.agreement import spread_over_classes
    from anomalysd_edge.workflows.verify import samples_of

    opened = read_bundle(bundle)
    if class_name is not None:
        if class_name not in opened.manifest.classes:
            raise InputError(f"class {class_name!r} is not in {bundle}; it holds {', '.join(opened.manifest.classes)}")
        files = images.list_images(photos) if photos.is_dir() else [photos]
        if not files:
            raise InputError(f"{photos} holds no photos")
        return [(str(file), class_name) for file in files]
    samples = [s for s in samples_of(photos, opened) if s.class_name in opened.manifest.classes]
    return [(str(s.path), s.class_name) for s in spread_over_classes(samples, 64)]


def _pareto(
    path: Path, photos: Path, good: Path | None, plan: str, backend: str, threads: int | None, per_class: int,
    force: bool, progress: Progress,
) -> tuple[Path, tuple[Mode, ...]]:  # fmt: skip
    from anomalysd_edge.bundle.detector_factory import preset_settings
    from anomalysd_edge.profiling import operating_point_search, operating_points
    from anomalysd_edge.workflows.calibrate import good_photos
    from anomalysd_edge.workflows.open_options import Opening, machine_name
    from anomalysd_edge.workflows.verify import samples_of

    if plan != "edge" or "," in backend:
        raise InputError(f"--pareto takes preset edge and one backend, not {plan!r} on {backend!r}")
    opened = read_bundle(path)
    records = opened.manifest.classes
    shots = {
        name: [images.load_rgb(file) for file in files]
        for name, files in good_photos(good or photos, records, None).items()
    }
    samples = [s for s in samples_of(photos, opened) if s.class_name in records]
    judged = operating_point_search.labelled(samples, per_class)
    named = "labelled photos"
    if {j.bad for j in judged} != {False, True}:
        judged = operating_point_search.synthetic_judged(
            shots, {name: r.kind for name, r in records.items()}, per_class
        )
        named = "synthetic anomalies"
    settings = preset_settings(opened, plan)
    with Opening(plan, backend, threads, 16, force).detector(path) as base:
        asked = operating_point_search.ParetoRequest(
            opened, plan, settings, shots, judged, operating_point_search.CANDIDATES
        )
        found = operating_point_search.measure_modes(asked, base.networks, base, progress)
    peaks = {}
    for batch in (1, 4, 16):
        files = [(str(s.path), s.class_name) for s in samples[:4]]
        alone = BenchRequest(str(path), files, plan, backend, batch, 4, 2, 1, threads, force=force)
        peaks[str(batch)] = in_own_process(alone).peak_rss_bytes
    done = operating_points.ModeTable(
        sha256_file(path / MANIFEST), plan, str(backend_choice(backend)), machine_name(), threads, named, found, peaks
    )
    return operating_points.write_table(path, done), found


def _show_modes(modes: tuple[Mode, ...]) -> None:
    columns = ("mode", "front", "p50 ms", "p95 ms", "image", "pixel", "missed", "false alarms", "UNet samples")
    rows = [
        (m.name, "*" if m.front else "", f"{m.p50_ms:.0f}", f"{m.p95_ms:.0f}", 100 * m.image_auroc, 100 * m.pixel_auroc,
         f"{m.missed}/{m.bad}", f"{m.false_alarms}/{m.good}", m.unet_samples)
        for m in modes
    ]  # fmt: skip
    show_table("Modes: one photo at a time, from file to verdict; AUROC in percent", columns, rows)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(word) for word in _words(text)]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}, expected whole numbers by commas, as 1,4,16") from error
    if not found or min(found) < 1:
        raise InputError(f"{option} is {text!r}, expected whole numbers of at least 1 by commas")
    return found


def register(app: typer.Typer) -> None:
    """Hang the verb into the command."""
    app.command()(bench)
