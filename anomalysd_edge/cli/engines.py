"""The verbs that prepare a bundle for its machines: build and sign. Each imports its workflow when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import listed, numbers, size_bytes
from anomalysd_edge.reports.console import progress_bars, say, show_json


def build(
    bundle: Annotated[Path, Argument(metavar="BUNDLE", help="Bundle folder; graphs and engines are added to it.")],
    engine: Annotated[str, Option(help="rtx, tensorrt, or onnx for the graphs of the precision alone.")],
    precision: Annotated[str, Option(help="fp32, fp16, bf16, int8 or fp8.")] = "fp16",
    targets: Annotated[str | None, Option(help="For rtx: GPU architectures, as sm86,sm89; else portable.")] = None,
    static_batches: options.StaticBatches = None,
    memory_budget: Annotated[str | None, Option(metavar="SIZE", help="Device memory for the engines, as 6GiB.")] = None,
    host_memory: Annotated[str | None, Option(metavar="SIZE", help="Memory for a building process, as 8GiB.")] = None,
    photos: Annotated[Path | None, Option(help="Good photos for int8 and fp8: data set, folder or RUN.")] = None,
    quantise: Annotated[str, Option(help="Networks that int8 and fp8 quantise, by commas; others are fp16.")] = "unet",
    rebuild: Annotated[bool, Option("--rebuild", help="Make graphs and engines again that exist.")] = False,
    preset: options.Preset = "edge",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Build the graphs of a precision and, from them, TensorRT engines with fixed batch sizes.

    Sizes and batches that are left out follow from the bundle's presets. Each engine is built in its own process.

    Example: sd-edge build BUNDLE --engine rtx --precision fp16
    """
    from anomalysd_edge.workflows.build import BuildRequest
    from anomalysd_edge.workflows.build import build as body

    request = BuildRequest(
        bundle=bundle, engine=engine, precision=precision, targets=listed(targets),
        batches=tuple(sorted(set(numbers(static_batches, "--static-batches", 1)))) if static_batches else None,
        memory_budget_bytes=size_bytes(memory_budget, "--memory-budget"),
        host_memory_bytes=size_bytes(host_memory, "--host-memory"), photos=photos, quantised=listed(quantise),
        preset=preset, threads=threads, rebuild=rebuild,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        done = body(request, progress)
    show_json(done.to_json()) if as_json else done.show()
    say(done.sentence())
    if done.signature_void:
        say(f"the bundle was signed and has changed: sign it again with sd-edge sign {bundle} --key KEY")


def sign(
    bundle: options.BundleDir,
    key: Annotated[Path, Option(help="Private key (ed25519, PEM).")],
    new_key: Annotated[bool, Option("--new-key", help="Create the key first; the public key goes to KEY.pub.")] = False,
) -> None:
    """Sign a bundle: its manifest, and by the digests in it every file and engine.

    Example: sd-edge sign BUNDLE --key line.pem --new-key
    """
    from anomalysd_edge.bundle.reader import MANIFEST, check_engines, read_bundle
    from anomalysd_edge.bundle.signing import new_key as make_key
    from anomalysd_edge.bundle.signing import sign as put

    check_engines(read_bundle(bundle))
    if new_key:
        say(f"key made: {key} (keep it secret) and {make_key(key)}")
    say(f"signed: {put(bundle / MANIFEST, key)}")
