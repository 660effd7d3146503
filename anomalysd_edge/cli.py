"""The command `sd-edge`. A verb is a few lines: the work is done in the rooms, each imported only by its verb."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from anomalysd_edge import __version__, serving_verbs
from anomalysd_edge.console import progress_bars, say, show_json, show_table
from anomalysd_edge.errors import InputError, SDEdgeError, missing_extra

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
ClassFile = Annotated[
    Path | None, typer.Option(help="TOML file with your classes' nouns, parts, kinds and symmetries.")
]
Preset = Annotated[str, typer.Option(help="Inspection preset of the bundle: edge (fast) or paper (as published).")]
Backend = Annotated[str, typer.Option(help="cpu or cuda: what ONNX Runtime runs on. Never another one in silence.")]
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
    base: Annotated[str, typer.Option(help="nano, a folder in diffusers' layout, or a hub id.")] = "nano",
    steps: Annotated[int | None, typer.Option(help="UNet steps; the base's default if left out.")] = None,
    decoder_steps: Annotated[
        int | None, typer.Option(help="VAE decoder steps; the base's default if left out.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a UNet step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the UNet.")] = None,
    lora_rank: Annotated[int, typer.Option(help="0 = full fine-tuning; above it low-rank adapters of this rank.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the UNet and the VAE decoder on a few good photos of every class: one model for all."""
    from anomalysd_edge.workflow import train_on

    chosen = {
        "shots": shots, "seed": seed, "steps": steps, "decoder_steps": decoder_steps, "batch": batch, "lr": lr,
        "lora_rank": lora_rank, "device": device,
    }  # fmt: skip
    with progress_bars(quiet) as progress:
        train_on(data, out, base, chosen, shot_seed, _names(classes), class_file, resume, progress)
    say(f"run written: {out}; next: sd-edge export {out} --out BUNDLE")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder that train wrote.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    class_file: ClassFile = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Turn a run into a bundle: ONNX graphs with proof, prompt states, prototypes, thresholds, manifest."""
    from anomalysd_edge.workflow import export_to

    with progress_bars(quiet) as progress:
        bundle = export_to(run, out, class_file, threads, progress)
    figures = (
        (name, record.dtype, f"{record.parity['max_abs']:.1e}", f"{record.tolerance:.0e}")
        for name, record in bundle.manifest.networks.items()
    )
    show_table("Largest difference from torch", ("network", "dtype", "difference", "allowed"), list(figures))
    say(f"bundle written: {out}; next: sd-edge inspect {out} PHOTO...")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    run: Annotated[Path, typer.Option(help="The run it was exported from.")],
    photos: Annotated[Path, typer.Option(help="Folder of photos, or a data set.")],
    limit: Annotated[int, typer.Option(help="At most so many photos, spread over the classes.")] = 20,
    preset: Preset = "edge",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge the same photos with torch and with ONNX Runtime: differences, and exit code 1 where they disagree."""
    from anomalysd_edge.workflow import verify_against

    with progress_bars(quiet) as progress:
        found = verify_against(bundle, run, photos, limit, preset, threads, progress)
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
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of the photos; not needed where the bundle has one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and pictures, a folder a photo.")] = None,
    preset: Preset = "edge",
    backend: Backend = "cpu",
    threads: Threads = None,
    max_batch: Annotated[int, typer.Option(help="Largest UNet batch; never changes a verdict.")] = 16,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say of each photo whether it is anomalous, where, and which repainted mask raised the alarm."""
    from anomalysd_edge.workflow import inspect_photos

    with progress_bars(quiet or len(photos) < 2) as progress:
        results = inspect_photos(bundle, photos, class_name, out, (preset, backend, threads, max_batch), progress)
    if as_json:
        show_json(results)
        return
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
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle on labelled photos: AUROC, AUPRO, F1-max and AP per class and mean, for each score map."""
    from anomalysd_edge.workflow import evaluate_bundle

    with progress_bars(quiet) as progress:
        found = evaluate_bundle(bundle, data, _names(classes), out, (preset, backend, threads), progress)
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
    from anomalysd_edge.demo import run_demo

    with progress_bars(quiet) as progress:
        found = run_demo(out, seed, progress)
    show_table("Demo: image/pixel AUROC per map, then the fused map, in percent", found.columns, found.rows)
    say(found.sentence)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can run, and why not the rest."""
    from anomalysd_edge.doctor import examine

    findings = examine()
    if as_json:
        show_json([vars(f) for f in findings])
        return
    for f in findings:
        print(f"{'yes' if f.able else 'no ':3}  {f.what:24}  {f.because}")


serving_verbs.register(app)


def main() -> None:
    """Entry point: every error we raise on purpose becomes one sentence and exit code 2."""
    try:
        app()
    except SDEdgeError as error:
        _stop(error, str(error))
    except ModuleNotFoundError as error:
        extra = {"onnxruntime": "cpu", "onnx": "export", "onnxscript": "export", **serving_verbs.EXTRAS}.get(
            error.name or "", "train"
        )
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
