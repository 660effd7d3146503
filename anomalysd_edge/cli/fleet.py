"""The verbs and options of many boxes: --ray, push, pull, rollback, fleet status, plan-capacity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomalysd_edge.errors import BackendError, InputError, SettingsError
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table

if TYPE_CHECKING:
    from anomalysd_runtime.distributed.ray_inspect import RaySettings

EXTRAS = {"ray": "ray", "fsspec": "fleet"}
"""Which extra brings what these verbs import."""

Ray = Annotated[
    str | None, typer.Option(help="Judge over Ray: 'local' starts it here, or a cluster's address, or auto.")
]
Workers = Annotated[int, typer.Option(help="With --ray: workers, each with --threads threads (1 if left out).")]
Gpus = Annotated[float, typer.Option(help="With --ray: GPUs that a worker claims; 0.5 lets two share one.")]
JournalFile = Annotated[
    Path | None, typer.Option(help="With --ray: keep answers in this file; the same command goes on from it.")
]
PublicKey = Annotated[
    Path | None, typer.Option("--require-signature", help="Public key (PEM) that must have signed the bundle.")
]
Into = Annotated[Path, typer.Option("--into", help="The box's folder of bundles; serve FOLDER/NAME from it.")]
BoxUrl = Annotated[
    str | None, typer.Option("--box", help="Address of the running box, to let it open the bundle without a hole.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


TritonDir = Annotated[
    Path | None, typer.Option("--triton", help="Write a model repository for Triton there, from the bundle.")
]
TritonName = Annotated[str | None, typer.Option(help="With --triton: the model's name; the bundle's if left out.")]
TritonBackend = Annotated[
    str,
    typer.Option(help="With --triton: cpu, cuda or ort-tensorrt, with a precision as in cuda:fp16."),
]
TritonInstances = Annotated[int, typer.Option(help="With --triton: groups of photos that are on their way at once.")]


def is_bundle(path: Path) -> bool:
    """Whether `path` is a bundle and not a run."""
    from anomalysd_edge.bundle.reader import MANIFEST

    return (path / MANIFEST).is_file()


def write_triton(
    bundle: Path, out: Path | None, name: str | None, backend: str, preset: str, instances: int, force: bool
) -> None:
    """The body of `sd-edge export BUNDLE --triton DIR`. Raises InputError without a DIR."""
    from anomalysd_edge.bundle.reader import read_bundle
    from anomalysd_edge.fleet.registry import check_name
    from anomalysd_export.triton.repository import TritonSettings, write_repository

    if out is None:
        raise InputError(f"{bundle} is a bundle already; give --triton DIR for a model repository of it")
    settings = TritonSettings(
        check_name(name or bundle.resolve().name), backend, preset, instances=instances, force=force
    )
    models = write_repository(read_bundle(bundle), out, settings)
    say(f"model repository written: {out} ({', '.join(models)}); next: tritonserver --model-repository {out}")


def cluster(ray: str | None, workers: int, gpus: float, journal: Path | None) -> RaySettings | None:
    """What the options ask for; None without --ray. Raises SettingsError."""
    if ray is None:
        if journal is not None:
            raise SettingsError("--journal goes with --ray; give --ray local to use this machine's cores")
        return None
    from anomalysd_runtime.distributed.ray_inspect import RaySettings

    return RaySettings(ray, workers, gpus, journal)


def push(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    registry: Annotated[str, typer.Argument(help="Folder, or a URL of fsspec: s3://..., sftp://..., file://...")],
    name: Annotated[str | None, typer.Option(help="Its name there; the folder's if left out.")] = None,
    require_signature: PublicKey = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put a bundle into a registry as the latest of its name; what is there already is not sent again."""
    from anomalysd_edge.fleet.registry import push as put

    with progress_bars(quiet) as progress:
        done = put(bundle, registry, name, progress, require_signature)
    if as_json:
        show_json(done)
    signed = "signed" if done.signed else "not signed"
    say(f"pushed {done.name} {done.version} ({signed}): {done.sent_bytes} of {done.total_bytes} bytes were sent")


def pull(
    registry: Annotated[str, typer.Argument(help="Folder or URL that push wrote to; http(s):// will do to read.")],
    name: Annotated[str, typer.Argument(help="The bundle's name there.")],
    into: Into,
    version: Annotated[str | None, typer.Option(help="A version; the latest if left out.")] = None,
    require_signature: PublicKey = None,
    box: BoxUrl = None,
    older: Annotated[bool, typer.Option("--older", help="Take a latest that is older than the one in use.")] = False,
    keep: Annotated[int, typer.Option(help="Versions to keep, the current one among them.", min=2)] = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring a bundle from a registry: whole, checked, then switched to in one step; the one before is kept."""
    from anomalysd_edge.fleet.pulling import pull as get

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
    name: Annotated[str, typer.Argument(help="The bundle's name.")],
    into: Into,
    box: BoxUrl = None,
) -> None:
    """Go back to the version that counted before the last pull; a second time goes forward again."""
    from anomalysd_edge.fleet.installed import Installed

    installed = Installed(into, name)
    with installed.locked():
        before = installed.current
        now = installed.rollback()
    say(f"{into / name} is {now} again, before: {before}")
    if box is not None:
        _reload(into, name, box, before)


def _reload(into: Path, name: str, box: str, before: str | None) -> None:
    """Tell the box; where it cannot open the new version, the one before counts again and the exit code is 1."""
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


fleet = typer.Typer(help="The boxes together.", no_args_is_help=True, rich_markup_mode=None)


@fleet.callback()
def _fleet() -> None:
    """The boxes together."""


@fleet.command()
def status(
    boxes: Annotated[list[str] | None, typer.Argument(help="Addresses, as http://10.0.0.7:8080.")] = None,
    file: Annotated[Path | None, typer.Option("--boxes", help="File with an address a line.")] = None,
    timeout_s: Annotated[float, typer.Option(help="How long a box may take to answer.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """How the boxes are, by their /health and /metrics; exit code 1 where one is not ok. SD_EDGE_TOKEN if they ask."""
    from anomalysd_edge.fleet.box_client import fleet_state, read_boxes

    urls = [*(boxes or ()), *(read_boxes(file) if file else ())]
    found = fleet_state(urls, os.environ.get("SD_EDGE_TOKEN"), timeout_s)
    if as_json:
        show_json(found)
    else:
        rows = [
            (
                box.url, box.status, sum(box.verdicts.values()), box.verdicts.get("anomalous", 0), box.refused,
                box.waiting, "-" if box.mean_s is None else f"{box.mean_s * 1e3:.0f}", box.restarts,
                ", ".join(f"{name} {version or 'closed'}" for name, version in box.bundles.items()),
            )
            for box in found
        ]  # fmt: skip
        columns = ("box", "status", "verdicts", "anomalous", "refused", "waiting", "mean ms", "restarts", "bundles")
        show_table(f"{sum(box.fine for box in found)} of {len(found)} boxes are ok", columns, rows)
    for box in found:
        for reason in box.reasons:
            say(f"{box.url}: {reason}")
    if not all(box.fine for box in found):
        raise typer.Exit(1)


def plan_capacity(
    measured: Annotated[Path, typer.Argument(help="bench.json of 'sd-edge bench BUNDLE --photos DIR --out DIR'.")],
    photos_per_second: Annotated[float, typer.Option(help="Photos a second, all boxes together.")],
    deadline_ms: Annotated[float, typer.Option(help="From arrival at a box to the verdict.")],
    gpu: Annotated[
        str | None, typer.Option(help="GPUs to estimate for, by commas: l4,h100,... or NAME=TFLOPS:GB/S.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Which rows of the file: those of this preset; the fastest counts.")
    ] = "edge",
    share: Annotated[float, typer.Option(help="Percent of the photos that must keep the deadline.")] = 99.0,
    steady: Annotated[bool, typer.Option("--steady", help="Photos come at even times, as on a belt.")] = False,
    spare: Annotated[int, typer.Option(help="Boxes that may be down.")] = 0,
    group: Annotated[int, typer.Option(help="Photos that a box judges at once, as serve --group.")] = 4,
    as_json: AsJson = False,
) -> None:
    """How many boxes, of the measured kind and of GPUs by estimate; exit code 1 where no number keeps the deadline."""
    from anomalysd_edge.core.files import read_json
    from anomalysd_edge.fleet import capacity

    file = measured / "bench.json" if measured.is_dir() else measured
    value = read_json(file)
    read = capacity.read_bench(value, str(file))
    costs = [cost for row, cost in zip(value["rows"], read, strict=True) if row.get("plan") == preset]
    if not costs:
        raise InputError(f"{file} holds no row of the preset {preset!r}; measure it: sd-edge bench --plan {preset}")
    wanted = capacity.Wanted(photos_per_second, deadline_ms / 1e3, share / 100, steady, spare, group)
    names = [word.strip() for word in (gpu or "").split(",") if word.strip()]
    best = min(costs, key=lambda cost: cost.seconds)
    found = capacity.plans(best, capacity.machine_of(value, best), names, wanted)
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


def register(app: typer.Typer) -> None:
    """Hang the verbs into the command."""
    app.command()(push)
    app.command()(pull)
    app.command()(rollback)
    app.add_typer(fleet, name="fleet")
    app.command("plan-capacity")(plan_capacity)
