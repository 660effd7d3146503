"""The verbs that measure and calibrate: calibrate, verify, eval, protocol. Each imports its workflow when called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import listed, numbers
from anomalysd_edge.errors import InputError
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table


def calibrate(
    bundle: options.BundleToChange,
    photos: Annotated[Path | None, Option(help="Good photos: data set, folder or RUN.")] = None,
    dataset: options.DatasetName = None,
    normal_dir: options.NormalDirs = None,
    unlabelled: Annotated[
        Path | None, Option(help="Photos of the line, mostly good: threshold and error rates from them.")
    ] = None,
    known_bad: Annotated[Path | None, Option(help="With --unlabelled: a few photos of defects.")] = None,
    from_history: Annotated[
        Path | None, Option(help="Record of a box: only propose thresholds by its corrections.")
    ] = None,
    out: Annotated[Path | None, Option(help="Folder for the new bundle.")] = None,
    shots: Annotated[int | None, Option(help="Good photos per class, the first ones; all if left out.")] = None,
    missed_cost: options.MissedCost = 1.0,
    referral_cost: options.ReferralCost = 0.25,
    defect_rate: options.DefectRate = 0.5,
    false_alarm_rate: options.FalseAlarmRate = 0.02,
    synthetic: Annotated[int, Option(help="Synthetic anomalies per class to choose settings on; 0 = none.")] = 24,
    check: Annotated[Path | None, Option(help="Data set to measure the false-alarm rate on.")] = None,
    report: Annotated[Path | None, Option(help="Folder of the report; else BUNDLE-calibration.")] = None,
    preset: options.Preset = "edge",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Refit a bundle's prototypes, thresholds and class settings from good photos. The networks do not change.

    Example: sd-edge calibrate BUNDLE --photos RUN
    """
    if from_history is not None:
        from anomalysd_edge.cli.history import propose_for_bundle

        propose_for_bundle(bundle, from_history, missed_cost, as_json)
        return
    if photos is None:
        raise InputError("name good photos with --photos, or a box's record with --from-history")
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.method.score_model import Costs
    from anomalysd_edge.reports.calibration import Report, report_folder
    from anomalysd_edge.reports.reliability import shipped_reliability
    from anomalysd_edge.workflows.calibrate import CalibrateRequest, false_alarms, recalibrate
    from anomalysd_edge.workflows.open_options import InspectOptions

    settings = CalibrationSettings(
        false_alarm_rate=false_alarm_rate, costs=Costs(missed_cost, referral_cost, defect_rate), synthetic=synthetic,
        negatives=12 if synthetic else 8,
    )  # fmt: skip
    named = options.named_folders(normal_dir, None, None, None, dataset, None)
    request = CalibrateRequest(
        bundle=bundle, photos=photos, dataset=dataset, named=named, unlabelled=unlabelled, known_bad=known_bad, out=out,
        shots=shots, preset=preset, settings=settings, threads=threads,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        found = recalibrate(request, progress)
        opening = InspectOptions(preset=preset, threads=threads)
        seen = false_alarms(found, check, opening, progress, dataset) if check else {}
    shown, folder = Report(found, seen, shipped_reliability(found.features)), report or report_folder(found.bundle)
    shown.write(folder)
    show_json(shown.to_json()) if as_json else shown.show()
    say(f"calibrated: {found.bundle}; what was chosen and why: {folder / 'report.html'}")


def verify(
    bundle: options.BundleDir,
    photos: Annotated[Path, Option(help="Photos to compare on: data set or folder.")],
    dataset: options.DatasetName = None,
    normal_dir: options.NormalDirs = None,
    abnormal_dir: options.AbnormalDirs = None,
    normal_test_dir: options.NormalTestDirs = None,
    mask_dir: options.MaskDirs = None,
    run: Annotated[Path | None, Option(help="Run of the bundle: compares torch with ONNX Runtime.")] = None,
    features: options.Features = None,
    backend: Annotated[
        str | None, Option(metavar="A,B", help="Compare B with A, as cpu,cpu:fp16 or torch,cpu.")
    ] = None,
    labels: Annotated[bool, Option("--labels", help="With --backend: compare AUROC and AUPRO too.")] = False,
    limit: Annotated[int | None, Option(help="Most photos; else 20, or with --labels all.")] = None,
    max_flips: Annotated[int, Option(help="With --backend: verdicts that may differ.")] = 0,
    max_drop: Annotated[float, Option(help="With --backend and --labels: largest fall of AUROC, in [0,1].")] = 0.002,
    out: Annotated[Path | None, Option(help="With --backend: folder for verify.json and verify.html.")] = None,
    preset: options.Preset = "edge",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Inspect the same photos on two backends and compare scores and verdicts; exit code 1 where they disagree.

    A precision that passes with --backend may be served; one that fails is refused until it passes.

    Example: sd-edge verify BUNDLE --backend cpu,cpu:fp16 --photos DATA --labels
    """
    from anomalysd_edge.evaluation.backend_parity import GateSettings
    from anomalysd_edge.workflows.verify import EXPORT_GATE, VerifyRequest, show, verify_backends

    if backend is None and run is None:
        raise InputError("verify needs --run RUN (torch against ONNX Runtime) or --backend A,B (two backends)")
    named = options.named_folders(normal_dir, abnormal_dir, normal_test_dir, mask_dir, dataset, None)
    gate = EXPORT_GATE if backend is None else GateSettings(flips=max_flips, auroc_drop=max_drop)
    request = VerifyRequest(
        bundle=bundle, photos=photos, dataset=dataset, named=named, run=run, labels=labels, limit=limit, preset=preset,
        threads=threads, out=out, gate=gate, features=features,
        **({} if backend is None else {"backends": listed(backend)}),
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        found = verify_backends(request, progress)
    show_json(found.to_json()) if as_json else show(found)
    say(found.sentence())
    raise typer.Exit(0 if found.passed else 1)


def evaluate(
    bundle: options.BundleDir,
    data: options.DataDir,
    classes: options.Classes = None,
    dataset: options.DatasetName = None,
    normal_dir: options.NormalDirs = None,
    abnormal_dir: options.AbnormalDirs = None,
    normal_test_dir: options.NormalTestDirs = None,
    mask_dir: options.MaskDirs = None,
    out: Annotated[Path | None, Option(help="Folder for results.json and report.html.")] = None,
    preset: options.Preset = "edge",
    backend: options.Backend = "cpu",
    threads: options.Threads = None,
    require_signature: options.PublicKey = None,
    on_mismatch: options.OnMismatch = "error",
    force: options.Force = False,
    ray: options.Ray = None,
    workers: options.Workers = 2,
    gpus: options.Gpus = 0,
    journal: options.JournalFile = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a bundle on labelled photos: AUROC, AUPRO, F1-max and AP per class and mean, for each score map.

    Example: sd-edge eval BUNDLE --data DATA --out REPORT
    """
    from anomalysd_edge.workflows.evaluate import evaluate_bundle
    from anomalysd_edge.workflows.open_options import InspectOptions

    opening = InspectOptions(
        preset=preset, backend=backend, threads=threads, force=force, public_key=require_signature,
        on_mismatch=on_mismatch,
    )  # fmt: skip
    chosen = options.cluster(ray, workers, gpus, journal)
    names = options.class_names(classes)
    named = options.named_folders(normal_dir, abnormal_dir, normal_test_dir, mask_dir, dataset, names)
    with progress_bars(quiet) as progress:
        found = evaluate_bundle(bundle, data, names, out, opening, progress, chosen, dataset, named)
    if as_json:
        show_json(found.to_json())
    else:
        show_table(
            "Balanced error as shipped and at best, F1, pixel F1; image/pixel AUROC per map; percent",
            found.columns,
            found.rows,
        )


def protocol(
    data: options.DataDir,
    out: Annotated[Path, Option(help="Folder for runs, bundles, results.json, report.html and plots.")],
    dataset: options.DatasetName = None,
    classes: options.Classes = None,
    shots: Annotated[str, Option(help="Numbers of good photos per class, by commas, in this order.")] = "0,1,2,4",
    seeds: Annotated[str, Option(help="Random seeds of shots and training, by commas; or 'first'.")] = "0,1,2",
    class_file: options.ClassFile = None,
    base: options.Base = "nano",
    steps: Annotated[int | None, Option(help="UNet training steps; else the base's default.")] = None,
    device: options.Device = "cpu",
    calibrate: Annotated[bool, Option("--calibrate", help="Choose settings per class, as calibrate.")] = False,
    preset: options.Preset = "edge",
    backend: options.Backend = "cpu",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train and measure for every number of shots and every seed: mean and standard deviation per class.

    What is finished is kept: the same command resumes where it was stopped.

    Example: sd-edge protocol --data DATA --shots 1,4 --seeds 0,1,2 --out OUT
    """
    from anomalysd_edge.reports.protocol import show, write
    from anomalysd_edge.workflows.open_options import InspectOptions
    from anomalysd_edge.workflows.protocol import ProtocolRequest, run_protocol

    names = options.class_names(classes)
    request = ProtocolRequest(
        data=data, out=out, dataset=dataset, classes=tuple(names) if names else None, seeds=listed(seeds),
        shots=numbers(shots, "--shots"), class_file=class_file, base=base, steps=steps, device=device,
        calibrate=calibrate,
        options=InspectOptions(preset=preset, backend=backend, threads=threads),
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        found = run_protocol(request, progress)
    write(found.report(), found.to_json(), out)
    show_json(found.to_json()) if as_json else show(found.report())
    for note in found.notes:
        say(f"not the published photos: {note}")
    say(f"written: {out / 'results.json'}, {out / 'report.html'}, {out / 'plots'}")
