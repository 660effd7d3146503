"""The verbs of many boxes: hub, push, pull, rollback, fleet status, plan-capacity; each imports its package itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import listed
from anomalysd_edge.errors import BackendError, InputError
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table

Into = Annotated[Path, Option("--into", help="Folder of bundles on this box; serve its FOLDER/NAME.")]
BoxUrl = Annotated[
    str | None,
    Option("--box", help="Address of the running box, which then opens the version without an interruption."),
]


def hub(
    bundle: options.BundleDir,
    out: Annotated[Path, Option(help="Folder to write.")],
    run: Annotated[
        Path | None, Option(metavar="RUN", help="Run that it was exported from: its weights, in diffusers' layout.")
    ] = None,
    figures: Annotated[
        Path | None, Option(metavar="REPORT", help="What eval --out wrote of this bundle: figures for the card.")
    ] = None,
) -> None:
    """Write a bundle as a model hub expects it: model card, bundle, and with --run the trained weights. No photo goes.

    Look at its README.md before it is pushed.

    Example: sd-edge hub BUNDLE --out FOLDER --run RUN --figures REPORT
    """
    from anomalysd_edge.workflows.hub import write_hub_folder

    write_hub_folder(bundle, out, run, figures)
    say(f"written: {out}; look at {out / 'README.md'}; next: sd-edge push {out} hf://OWNER/NAME")


def push(
    bundle: Annotated[Path, Argument(metavar="BUNDLE", help="Bundle folder; for hf:// the folder that hub wrote.")],
    registry: Annotated[
        str, Argument(metavar="REGISTRY", help="Folder, or URL for fsspec: s3://, sftp://; or hf://OWNER/NAME.")
    ],
    name: Annotated[str | None, Option(help="Name in the registry; the folder's if left out.")] = None,
    require_signature: options.PublicKey = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Upload a bundle to a registry as the latest version of its name; files that it holds are not sent again.

    To a model hub (hf://) goes what hub wrote; a new repository is private.

    Example: sd-edge push BUNDLE s3://models/registry --name line
    """
    from anomalysd_edge.fleet.hub import SCHEME, push_folder
    from anomalysd_edge.fleet.registry import push as put

    if registry.startswith(SCHEME):
        if name is not None:
            raise InputError(f"--name is for registries; the name on a hub stands in its address: {registry}")
        version, page = push_folder(bundle, registry, require_signature)
        if as_json:
            show_json({"version": version, "page": page})
        say(f"pushed {version} to {page}; next: sd-edge pull {registry} --into BUNDLES")
        return

    with progress_bars(quiet) as progress:
        done = put(bundle, registry, name, progress, require_signature)
    if as_json:
        show_json(done)
    signed = "signed" if done.signed else "not signed"
    say(f"pushed {done.name} {done.version} ({signed}): {done.sent_bytes} of {done.total_bytes} bytes were sent")


def pull(
    registry: Annotated[
        str, Argument(metavar="REGISTRY", help="Folder or URL that push wrote to: http(s)://, hf://OWNER/NAME.")
    ],
    into: Into,
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Name of the bundle; of an hf:// address its own if left out.")
    ] = None,
    version: Annotated[str | None, Option(help="Version; the latest if left out.")] = None,
    require_signature: options.PublicKey = None,
    box: BoxUrl = None,
    older: Annotated[
        bool, Option("--older", help="Accept a latest version that is older than the one in use.")
    ] = False,
    keep: Annotated[int, Option(help="Versions to keep on the box, the current one included.", min=2)] = 2,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Download a bundle from a registry, check it, and switch to it in one step; the version before is kept.

    Example: sd-edge pull s3://models/registry line --into BUNDLES
    """
    from anomalysd_edge.fleet.hub import SCHEME, bundle_name
    from anomalysd_edge.fleet.pulling import pull as get

    if name is None:
        if not registry.startswith(SCHEME):
            raise InputError(f"pull needs the bundle's name in {registry}: sd-edge pull {registry} NAME --into {into}")
        name = bundle_name(registry)
    with progress_bars(quiet) as progress:
        done = get(
            registry, name, into, progress, version=version, public_key=require_signature, older=older, keep=keep
        )
    if as_json:
        show_json(done)
    before = f", before: {done.before}" if done.switched and done.before else ""
    say(
        f"{into / name} is {done.version}{'' if done.switched else ', as it was'}{before}; "
        f"{done.fetched_bytes} of {done.total_bytes} bytes were fetched"
    )
    if box is not None:
        _reload(into, name, box, done.before if done.switched else None)


def rollback(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the bundle.")],
    into: Into,
    box: BoxUrl = None,
) -> None:
    """Return to the version in use before the last pull; a second call returns to the newer one.

    Example: sd-edge rollback line --into BUNDLES
    """
    from anomalysd_edge.fleet.installed import Installed

    installed = Installed(into, name)
    with installed.locked():
        before = installed.current
        now = installed.rollback()
    say(f"{into / name} is {now} again, before: {before}")
    if box is not None:
        _reload(into, name, box, before)


def _reload(into: Path, name: str, box: str, before: str | None) -> None:
    """Let the box open the new version; where it cannot, switch back to the one before and exit with code 1."""
    from anomalysd_edge.fleet.box_client import reload
    from anomalysd_edge.fleet.installed import Installed

    try:
        opened = reload(box, name, os.environ.get("SD_EDGE_TOKEN"))
    except BackendError as error:
        say(f"sd-edge: {error}")
        if before is not None:
            installed = Installed(into, name)
            with installed.locked():
                installed.switch(before)
            say(f"{into / name} is {before} again, which the box still serves")
        raise typer.Exit(1) from error
    say(f"{box} has {opened} open" if opened else f"no box answers at {box}; it opens this version when it starts")


fleet = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@fleet.callback()
def _fleet() -> None:
    """Show the state of many boxes.

    Example: sd-edge fleet status http://10.0.0.7:8080
    """


@fleet.command(short_help="Show health, verdicts and load of each box.")
def status(
    boxes: Annotated[list[str] | None, Argument(metavar="BOX", help="Addresses, as http://10.0.0.7:8080.")] = None,
    file: Annotated[Path | None, Option("--boxes", help="File of addresses, one a line.")] = None,
    timeout_s: Annotated[float, Option(help="Seconds that a box may take to answer.")] = 5.0,
    as_json: options.AsJson = False,
) -> None:
    """Show health, verdicts and load of each box; exit code 1 where one is not ok.

    Reads /health and /metrics of each; a token, where they need one, is taken from SD_EDGE_TOKEN.
    """
    from anomalysd_edge.fleet.box_client import fleet_state, read_boxes

    urls = [*(boxes or ()), *(read_boxes(file) if file else ())]
    found = fleet_state(urls, os.environ.get("SD_EDGE_TOKEN"), timeout_s)
    if as_json:
        show_json(found)
    else:
        rows = [
            (
                box.url, box.status, sum(box.verdicts.values()), box.verdicts.get("anomalous", 0),
                box.verdicts.get("uncertain", 0), box.refused, box.waiting,
                "-" if box.mean_s is None else f"{box.mean_s * 1e3:.0f}", box.restarts,
                ", ".join(f"{name} {version or 'closed'}" for name, version in box.bundles.items()),
            )
            for box in found
        ]  # fmt: skip
        columns = (
            "box", "status", "verdicts", "anomalous", "uncertain", "refused", "waiting", "mean ms", "restarts",
            "bundles",
        )  # fmt: skip
        show_table(f"{sum(box.fine for box in found)} of {len(found)} boxes are ok", columns, rows)
    for box in found:
        for reason in box.reasons:
            say(f"{box.url}: {reason}")
    if not all(box.fine for box in found):
        raise typer.Exit(1)


def plan_capacity(
    measured: Annotated[Path, Argument(metavar="MEASURED", help="bench.json, or its folder, as bench --out wrote it.")],
    photos_per_second: Annotated[float, Option(help="Photos per second, of all boxes together.")],
    deadline_ms: Annotated[float, Option(help="Milliseconds from arrival at a box to the verdict.")],
    gpu: Annotated[str | None, Option(help="GPUs to estimate, as l4,h100 or NAME=TFLOPS:GB/S.")] = None,
    preset: Annotated[str, Option(help="Preset whose fastest row in the file is used.")] = "edge",
    share: Annotated[float, Option(help="Percent of the photos that must meet the deadline.")] = 99.0,
    steady: Annotated[bool, Option("--steady", help="Photos arrive at even intervals, as on a belt.")] = False,
    spare: Annotated[int, Option(help="Boxes that may fail at a time.")] = 0,
    group: Annotated[int, Option(help="Photos that a box inspects together, as serve --group.")] = 4,
    as_json: options.AsJson = False,
) -> None:
    """Estimate how many boxes meet a photo rate and a deadline; exit code 1 where no number does.

    For the measured machine, and for GPUs by their published rates.

    Example: sd-edge plan-capacity OUT --photos-per-second 6 --deadline-ms 3000
    """
    from anomalysd_edge.core.files import read_json
    from anomalysd_edge.fleet import capacity

    file = measured / "bench.json" if measured.is_dir() else measured
    value = read_json(file)
    read = capacity.read_bench(value, str(file))
    costs = [cost for row, cost in zip(value["rows"], read, strict=True) if row.get("plan") == preset]
    if not costs:
        raise InputError(f"{file} holds no row of the preset {preset!r}; measure it: sd-edge bench --preset {preset}")
    wanted = capacity.LineDemand(photos_per_second, deadline_ms / 1e3, share / 100, steady, spare, group)
    best = min(costs, key=lambda cost: cost.seconds)
    found = capacity.plans(best, capacity.machine_of(value, best), listed(gpu), wanted)
    if as_json:
        show_json(found)
    else:
        show_table(
            f"Boxes for {photos_per_second:g} photos/s, {share:g} % within {deadline_ms:g} ms",
            ("box", "from", "ms a photo", "photos/s a box", "use", "boxes", f"p{share:g} ms"),
            [capacity.table_row(plans) for plans in found],
        )
    if any(len(plans) > 1 for plans in found):
        say("estimates: expected, and in brackets low to high; measure on such a box before you buy several")
    if all(plan.boxes is None for plans in found for plan in plans):
        say(f"no number of boxes keeps {deadline_ms:g} ms: a photo alone takes longer; use a faster preset or box")
        raise typer.Exit(1)
