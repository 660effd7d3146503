"""The command `sd-edge`. A verb is a few lines: the work is done in the rooms, each imported only by its verb."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalysd_edge import __version__
from anomalysd_edge.cli import bench, fleet, measuring, serving, training
from anomalysd_edge.errors import InputError, SDEdgeError, missing_extra
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table

app = typer.Typer(
    name="sd-edge",
    help="Few-shot anomaly detection by repainting with Stable Diffusion, for edge boxes.\n\n"
    "photos of good parts -> train -> RUN -> export -> BUNDLE -> inspect\n\n"
    "Exit codes: 0 done, 1 the answer is no (verify failed), 2 wrong use or input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataDir = Annotated[Path, typer.Option("--data", help="Photos: MVTec-AD layout, VisA layout, or a plain folder.")]
Classes = Annotated[
    str | None, typer.Option(help="Classes to use, separated by commas; all of the folder's if left out.")
]
Features = Annotated[
    Path | None, typer.Option(help="Folder of DINOv2 to take the features from, in place of EfficientNet-Lite2.")
]
ClassFile = Annotated[
    Path | None, typer.Option(help="TOML file with your classes' nouns, parts, kinds and symmetries.")
]
Preset = Annotated[str, typer.Option(help="Inspection preset of the bundle: edge (fast) or paper (as published).")]
Backend = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, ort-tensorrt, rtx or tensorrt; ':fp16' and so on choose a precision, as in cpu:fp16."
    ),
]
PublicKey = Annotated[
    Path | None, typer.Option("--require-signature", help="Public key (PEM) that must have signed the bundle.")
]
OnMismatch = Annotated[
    str, typer.Option(help="Where no engine fits this machine: error, rebuild, or onnxruntime (reported).")
]
Force = Annotated[bool, typer.Option("--force", help="Serve a precision that the gate refused.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _names(classes: str | None) -> list[str] | None:
    return [name.strip() for name in classes.split(",") if name.strip()] if classes else None


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Options before the verb."""
    if version:
        print(f"anomalysd-edge {__version__}")
        raise typer.Exit
    if debug:
        os.environ["SD_EDGE_DEBUG"] = "1"


@app.command()
def train(
    data: DataDir,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    shots: Annotated[int, typer.Option(help="K: good photos per class; 0 keeps the base as it is.")] = 4,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    shot_seed: Annotated[
        int | None, typer.Option(help="Choose the K photos by this seed; the first K if left out.")
    ] = None,
    classes: Classes = None,
    class_file: ClassFile = None,
    base: Annotated[
        str, typer.Option(help="nano, a folder in diffusers' layout, a .safetensors checkpoint, or a hub id.")
    ] = "nano",
    steps: Annotated[int | None, typer.Option(help="UNet steps; the base's default if left out.")] = None,
    decoder_steps: Annotated[
        int | None, typer.Option(help="VAE decoder steps; the base's default if left out.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a UNet step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the UNet.")] = None,
    lora_rank: Annotated[int, typer.Option(help="0 = full fine-tuning; above it low-rank adapters of this rank.")] = 0,
    vae: Annotated[
        str | None,
        typer.Option(help="tiny: TAESD in the autoencoder's place; or an AutoencoderTiny's folder or hub id."),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, any training setting, as often as needed: docs/stable-diffusion.md."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the UNet and the VAE decoder on a few good photos of every class: one model for all."""
    from anomalysd_edge.workflows.train import train_on

    chosen = {
        "shots": shots, "seed": seed, "steps": steps, "decoder_steps": decoder_steps, "batch": batch, "lr": lr,
        "lora_rank": lora_rank, "vae": vae, "device": device, **training.settings_of(more or []),
    }  # fmt: skip
    with progress_bars(quiet) as progress:
        train_on(data, out, base, chosen, shot_seed, _names(classes), class_file, resume, progress)
    say(f"run written: {out}; next: sd-edge export {out} --out BUNDLE")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder that train wrote; with --triton also a bundle.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write.")] = None,
    class_file: ClassFile = None,
    precision: Annotated[str, typer.Option(help="fp32, and fp16 or bf16 beside it, by commas.")] = "fp32",
    size: Annotated[int | None, typer.Option(help="Side of the photo in px; the run's if left out.")] = None,
    features: Features = None,
    batch: Annotated[str, typer.Option(help="dynamic, or static sizes to write beside it, as 1,4,13.")] = "dynamic",
    threads: Threads = None,
    triton: fleet.TritonDir = None,
    name: fleet.TritonName = None,
    backend: fleet.TritonBackend = "cuda",
    preset: Preset = "edge",
    instances: fleet.TritonInstances = 2,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Turn a run into a bundle: ONNX graphs with proof, prompt states, prototypes, thresholds, manifest."""
    if fleet.is_bundle(run):
        fleet.write_triton(run, triton, name, backend, preset, instances, force)
        return
    if out is None:
        raise InputError(f"export needs --out BUNDLE, the folder to write the bundle of {run} to")
    from anomalysd_edge.workflows.export import export_to

    with progress_bars(quiet) as progress:
        graphs = training.graphs_of(precision, size, batch, features)
        bundle = export_to(run, out, class_file, threads, progress, graphs)
    figures = (
        (name, record.dtype, f"{record.parity['max_abs']:.1e}", f"{record.tolerance:.0e}")
        for name, record in bundle.manifest.networks.items()
    )
    show_table("Largest difference from torch", ("network", "dtype", "difference", "allowed"), list(figures))
    say(f"bundle written: {out}; next: sd-edge inspect {out} PHOTO...")
    if triton is not None:
        fleet.write_triton(out, triton, name, backend, preset, instances, force)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    photos: Annotated[Path, typer.Option(help="Folder of photos, or a data set.")],
    run: Annotated[Path | None, typer.Option(help="The run it was exported from: torch against ONNX Runtime.")] = None,
    features: Features = None,
    backend: Annotated[
        str | None, typer.Option(help="A,B: hold B against A, as in cpu,cpu:fp16; 'torch' needs --run.")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Compare AUROC and AUPRO too, on all test photos.")] = False,
    limit: Annotated[int | None, typer.Option(help="At most so many photos, spread over the classes.")] = None,
    max_flips: Annotated[int, typer.Option(help="Verdicts that may differ.")] = 0,
    max_drop: Annotated[float, typer.Option(help="How far AUROC may fall, in [0,1].")] = 0.002,
    out: Annotated[Path | None, typer.Option(help="Folder for verify.json and verify.html, with --backend.")] = None,
    preset: Preset = "edge",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge the same photos with two backends: differences, and exit code 1 where they disagree."""
    if backend is not None:
        from anomalysd_edge.evaluation.backend_parity import GateSettings
        from anomalysd_edge.workflows.verify import VerifyRequest, show, verify_backends

        gate = GateSettings(flips=max_flips, auroc_drop=max_drop)
        asked = VerifyRequest(bundle, backend, photos, run, labels, limit, preset, threads, out, gate, features)
        with progress_bars(quiet) as progress:
            judged = verify_backends(asked, progress)
        show_json(judged.to_json()) if as_json else show(judged)
        say(judged.sentence())
        raise typer.Exit(0 if judged.passed else 1)
    if run is None:
        raise InputError("verify needs --run RUN (torch against ONNX Runtime) or --backend A,B (two backends)")
    from anomalysd_edge.workflows.verify import verify_against

    with progress_bars(quiet) as progress:
        found = verify_against(bundle, run, photos, limit or 20, preset, threads, progress, features)
    if as_json:
        show_json(found.to_json())
    else:
        rows = [
            (
                p.name,
                p.class_name,
                f"{p.score_a:.5f}",
                f"{p.score_b:.5f}",
                f"{p.score_difference:.1e}",
                f"{p.map_error:.1e}",
                "FLIP" if p.flip else "",
            )
            for p in found.photos
        ]
        show_table(
            "torch against ONNX Runtime",
            ("photo", "class", "torch", "onnxruntime", "score diff", "map error", ""),
            rows,
        )
    say(found.sentence())
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; it is replaced unless --out says otherwise.")],
    photos: Annotated[Path | None, typer.Option(help="Good photos: the run that it came from, or a data set.")] = None,
    from_history: Annotated[
        Path | None,
        typer.Option(help="A box's record: propose thresholds from operators' corrections, change nothing."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the new bundle there.")] = None,
    shots: Annotated[
        int | None, typer.Option(help="Good photos per class; the bundle's own number if left out.")
    ] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good photos that may raise an alarm.")] = 0.02,
    synthetic: Annotated[
        int, typer.Option(help="Synthetic anomalies per class to choose settings on; 0 keeps the preset's.")
    ] = 24,
    check: Annotated[
        Path | None, typer.Option(help="Data set whose other good photos tell the false-alarm rate that is seen.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for calibration.json and report.html; BUNDLE-calibration if left out.")
    ] = None,
    preset: Preset = "edge",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find prototypes, thresholds and each class's settings again, from good photos alone."""
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.reports.calibration import Report, report_folder
    from anomalysd_edge.workflows.calibrate import CalibrateRequest, false_alarms, recalibrate
    from anomalysd_edge.workflows.open_options import Opening

    if from_history is not None:
        from anomalysd_edge.cli.serving import propose_for

        propose_for(bundle, from_history, as_json)
        return
    if photos is None:
        raise InputError("name good photos with --photos, or a box's record with --from-history")
    how = CalibrationSettings(false_alarm_rate=false_alarm_rate, synthetic=synthetic, negatives=12 if synthetic else 8)
    with progress_bars(quiet) as progress:
        found = recalibrate(CalibrateRequest(bundle, photos, out, shots, preset, how, threads), progress)
        seen = false_alarms(found, check, Opening(preset, threads=threads), progress) if check else {}
    told, folder = Report(found, seen), report or report_folder(found.bundle)
    told.write(folder)
    show_json(told.to_json()) if as_json else told.show()
    say(f"calibrated: {found.bundle}; what was chosen and why: {folder / 'report.html'}")


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; it is changed.")],
    engine: Annotated[str, typer.Option(help="rtx, tensorrt, or onnx for the precision's graphs alone.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or fp8.")] = "fp16",
    targets: Annotated[str | None, typer.Option(help="For rtx: sm86,sm89,... or portable, the default.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Static batch sizes, as 1,4,8,16; the planner's if left out.")
    ] = None,
    memory_budget: Annotated[str | None, typer.Option(help="Device memory for the engines, as 6GiB.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="Memory of a building process, as 8GiB.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Good photos, for the ranges of int8 and fp8.")] = None,
    quantise: Annotated[str, typer.Option(help="Networks that int8 and fp8 quantise; the rest is fp16.")] = "unet",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Also what is there already.")] = False,
    preset: Preset = "edge",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a precision's graphs and, from them, engines with static batch sizes; each in a process of its own."""
    from anomalysd_edge.workflows.build import BuildRequest
    from anomalysd_edge.workflows.build import build as body

    asked = BuildRequest(
        bundle,
        engine,
        precision,
        targets,
        batch,
        memory_budget,
        host_memory,
        photos,
        quantise,
        preset,
        threads,
        rebuild,
    )
    with progress_bars(quiet) as progress:
        done = body(asked, progress)
    show_json(done.to_json()) if as_json else done.show()
    say(done.sentence())
    if done.signature_void:
        say(f"the bundle was signed and has changed: sign it again with sd-edge sign {bundle} --key KEY")


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    key: Annotated[Path, typer.Option(help="ed25519 private key, PEM.")],
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make the key first; its public half goes to KEY.pub.")
    ] = False,
) -> None:
    """Sign a bundle: its manifest, and with it every file and engine."""
    from anomalysd_edge.bundle.reader import MANIFEST, check_engines, read_bundle
    from anomalysd_edge.bundle.signing import new_key as make_key
    from anomalysd_edge.bundle.signing import sign as put

    check_engines(read_bundle(bundle))
    if new_key:
        say(f"key made: {key} (keep it secret) and {make_key(key)}")
    say(f"signed: {put(bundle / MANIFEST, key)}")


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    photos: Annotated[list[str], typer.Argument(help="Photos, or folders of photos; with --ray also URLs.")],
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of the photos; not needed where the bundle has one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and pictures, a folder a photo.")] = None,
    preset: Preset = "edge",
    backend: Backend = "cpu",
    threads: Threads = None,
    max_batch: Annotated[int, typer.Option(help="Largest UNet batch; never changes a verdict.")] = 16,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Milliseconds a photo may take; the mode is picked by the bench's table.")
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory of the process, as 600MiB; the bench's table tells which batch fits.")
    ] = None,
    require_signature: PublicKey = None,
    on_mismatch: OnMismatch = "error",
    force: Force = False,
    ray: fleet.Ray = None,
    workers: fleet.Workers = 2,
    gpus: fleet.Gpus = 0,
    journal: fleet.JournalFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say of each photo whether it is anomalous, where, and which repainted mask raised the alarm."""
    from anomalysd_edge.workflows.inspect import inspect_photos
    from anomalysd_edge.workflows.open_options import Opening

    how = Opening(
        preset, backend, threads, max_batch, force, require_signature, on_mismatch, deadline_ms, memory_budget
    )
    with progress_bars(quiet or (ray is None and len(photos) < 2)) as progress:
        if (cluster := fleet.cluster(ray, workers, gpus, journal)) is not None:
            from anomalysd_edge.workflows.ray import inspect_on_ray

            results = inspect_on_ray(bundle, photos, class_name, out, how, cluster, progress)
        else:
            results = inspect_photos(bundle, [Path(p) for p in photos], class_name, out, how, progress)
    failed = [r for r in results if "error" in r]
    if as_json:
        show_json(results)
    else:
        _show_inspections([r for r in results if "error" not in r])
        if deadline_ms is not None:
            met = sum(r["deadline_met"] for r in results)
            say(f"mode: {results[0]['mode']}; {met} of {len(results)} verdicts within {deadline_ms:g} ms")
    for r in failed:
        say(f"no verdict: {r['error']}")
    if failed:
        raise typer.Exit(1)


def _show_inspections(results: list[dict[str, Any]]) -> None:
    rows = []
    for r in results:
        limit = "-" if r["threshold"] is None else f"{r['threshold']:.4f}"
        mask = r["evidence"]["kind"] + (f" {r['evidence']['scale']}" if r["evidence"]["scale"] else "")
        took = sum(r["timings_ms"].values())
        rows.append((r["photo"], r["class"], f"{r['pred_score']:.4f}", limit, r["verdict"], mask, took))
    show_table("Inspection", ("photo", "class", "score", "threshold", "verdict", "mask", "ms"), rows)


@app.command("eval")
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: DataDir,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json and report.html.")] = None,
    preset: Preset = "edge",
    backend: Backend = "cpu",
    threads: Threads = None,
    require_signature: PublicKey = None,
    on_mismatch: OnMismatch = "error",
    force: Force = False,
    ray: fleet.Ray = None,
    workers: fleet.Workers = 2,
    gpus: fleet.Gpus = 0,
    journal: fleet.JournalFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle on labelled photos: AUROC, AUPRO, F1-max and AP per class and mean, for each score map."""
    from anomalysd_edge.workflows.evaluate import evaluate_bundle
    from anomalysd_edge.workflows.open_options import Opening

    how = Opening(preset, backend, threads, 16, force, require_signature, on_mismatch)
    cluster = fleet.cluster(ray, workers, gpus, journal)
    with progress_bars(quiet) as progress:
        found = evaluate_bundle(bundle, data, _names(classes), out, how, progress, cluster)
    if as_json:
        show_json(found.to_json())
    else:
        show_table("Image/pixel AUROC per map, then the fused map, in percent", found.columns, found.rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Of data, training and noise.")] = 0,
    quiet: Quiet = False,
) -> None:
    """The whole chain on rendered parts: data, training, bundle, proof, table, report. About 5 minutes on 2 cores."""
    from anomalysd_edge.workflows.demo import run_demo

    with progress_bars(quiet) as progress:
        found = run_demo(out, seed, progress)
    show_table("Demo: image/pixel AUROC per map, then the fused map, in percent", found.columns, found.rows)
    say(found.sentence)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can run, and why not the rest."""
    from anomalysd_edge.workflows.doctor import examine

    findings = examine()
    if as_json:
        show_json([vars(f) for f in findings])
        return
    for f in findings:
        print(f"{'yes' if f.able else 'no ':3}  {f.what:24}  {f.because}")


bench.register(app)
serving.register(app)
training.register(app)
fleet.register(app)
measuring.register(app)


def main() -> None:
    """Entry point: every error we raise on purpose becomes one sentence and exit code 2."""
    try:
        app()
    except SDEdgeError as error:
        _stop(error, str(error))
    except ModuleNotFoundError as error:
        others = {"onnxruntime": "cpu", "onnx": "export", "onnxscript": "export", "polygraphy": "rtx"}
        extra = {**others, **serving.EXTRAS, **fleet.EXTRAS}.get(error.name or "", "train")
        _stop(error, str(missing_extra(error.name or "?", extra)))
    except OSError as error:
        _stop(error, str(InputError(f"{error.strerror or error}: {error.filename or 'the system gave no file name'}")))
    except KeyboardInterrupt:
        say("stopped; what was finished before is kept, nothing is half-written")
        sys.exit(130)


def _stop(error: BaseException, sentence: str) -> None:
    if os.environ.get("SD_EDGE_DEBUG"):
        raise error
    say(f"sd-edge: {sentence}")
    sys.exit(2)


if __name__ == "__main__":
    main()
