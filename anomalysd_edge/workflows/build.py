"""`sd-edge build`: the graphs of a precision, then TensorRT engines from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.backend_spec import ENGINES, BackendChoice
from anomalysd_edge.bundle.engine_records import PRECISIONS, QUANTISED, EngineRecord
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.update import writing
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import BackendError, SettingsError
from anomalysd_edge.reports.console import show_table
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.photo_sources import good_photos

ENGINE_KINDS = ("onnx", *ENGINES)
"""onnx makes the precision's graphs and stops there: ONNX Runtime runs them as they are."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What `sd-edge build` shall make."""

    bundle: Path
    """The bundle; it is changed."""
    engine: str
    """One of ENGINE_KINDS."""
    precision: str = "fp16"
    """fp32, fp16, bf16, int8 or fp8."""
    targets: tuple[str, ...] = ()
    """For rtx: GPU architectures, as sm86; portable if empty."""
    batches: tuple[int, ...] | None = None
    """Static batch sizes; those that the bundle's presets ask for if None."""
    memory_budget_bytes: int | None = None
    """Device memory for the engines; no limit if None."""
    host_memory_bytes: int | None = None
    """Memory of a building process; no limit if None."""
    photos: Path | None = None
    """Good photos for the value ranges of int8 and fp8: a run, a data set or a folder."""
    quantised: tuple[str, ...] = ("unet",)
    """Networks that int8 and fp8 quantise."""
    preset: str = "edge"
    """Preset whose latents and timesteps the ranges are found with."""
    threads: int | None = None
    """CPU threads; all cores if None."""
    rebuild: bool = False
    """Make graphs and engines again where they exist."""


@dataclass
class BuildReport:
    """What `sd-edge build` made."""

    precision: str
    """The precision."""
    made_graphs: bool
    """Whether its graphs were made by this build."""
    graphs: dict[str, dict[str, int]]
    """Per network: bytes, float32 islands, quantised nodes."""
    engines: list[EngineRecord] = field(default_factory=list)
    """Engines, new and kept."""
    kept: list[str] = field(default_factory=list)
    """Networks whose engine existed with the same fingerprint."""
    predicted_peak_bytes: int = 0
    """Predicted device memory: the engines (or their weights, if larger) and the largest activations."""
    dropped: tuple[str, ...] = ()
    """Batch sizes that did not fit the budget."""
    over_budget: bool = False
    """Whether the finished engines are larger than the weights that the sizes were chosen by, and too large."""
    seen_peak_bytes: int | None = None
    """Device memory after opening and running the engines; None where there is no GPU here."""
    unseen_because: str = ""
    """Why it was not measured."""
    signature_void: bool = False
    """Whether the bundle was signed before and has to be signed again."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        from anomalysd_edge.core.files import json_ready

        found: dict[str, Any] = json_ready(self)
        return found

    def show(self) -> None:
        """Tables on stdout."""
        rows = [
            (name, f"{g['bytes'] / 1e6:.1f}", str(g["islands"]), str(g["quantised"])) for name, g in self.graphs.items()
        ]
        show_table(f"Graphs in {self.precision}", ("network", "MB", "float32 nodes", "quantised nodes"), rows)
        if self.engines:
            lines = [
                (
                    e.fingerprint.network,
                    "+".join(e.fingerprint.gpu),
                    ",".join(map(str, e.fingerprint.batches)),
                    f"{e.bytes / 1e6:.1f}",
                    "kept" if e.fingerprint.network in self.kept else f"{e.build_seconds:.1f}",
                    f"{e.build_peak_bytes / 2**20:.0f}",
                )
                for e in self.engines
            ]
            columns = ("engine", "for", "batches", "MB", "seconds", "build peak MiB")
            show_table(f"Engines in {self.precision}", columns, lines)

    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.engines:
            return f"graphs in {self.precision} {'made' if self.made_graphs else 'were there'}; next: sd-edge verify"
        seen = (
            f"seen {self.seen_peak_bytes / 2**20:.0f} MiB"
            if self.seen_peak_bytes is not None
            else f"not compared: {self.unseen_because}"
        )
        left_out = f"; over the budget and left out: {', '.join(self.dropped)}" if self.dropped else ""
        if self.over_budget:
            left_out += (
                "; this is ABOVE the budget, since every profile adds to an engine: build with fewer --batch sizes"
            )
        return (
            f"{len(self.engines) - len(self.kept)} engines built, {len(self.kept)} kept; device memory foretold "
            f"{self.predicted_peak_bytes / 2**20:.0f} MiB ({seen}){left_out}"
        )


def build(request: BuildRequest, progress: Progress) -> BuildReport:
    """Make what the bundle lacks. Raises SettingsError for unknown names, BackendError where a build fails."""
    if request.engine not in ENGINE_KINDS:
        raise SettingsError(f"the engine {request.engine!r} is unknown, expected one of {', '.join(ENGINE_KINDS)}")
    if request.precision not in PRECISIONS:
        raise SettingsError(f"the precision {request.precision!r} is unknown, expected one of {', '.join(PRECISIONS)}")
    with writing(request.bundle):
        bundle = read_bundle(request.bundle)
        made = request.precision != "fp32" and (
            not _has_graphs(bundle, request.precision)
            or (request.rebuild and request.engine == "onnx")
            or _outdated(bundle, request)
        )
        if made:
            bundle = _graphs(bundle, request, progress)
        report = BuildReport(request.precision, made, _graph_sizes(bundle, request.precision))
        if request.engine != "onnx":
            _engines(bundle, request, report, progress)
    if (made or len(report.kept) < len(report.engines)) and (request.bundle / SIGNATURE).is_file():
        report.signature_void = True
    return report


def _has_graphs(bundle: Bundle, precision: str) -> bool:
    """A gate alone may be on record: of a backend that rounds the exported graphs by itself."""
    record = bundle.manifest.precisions.get(precision)
    return record is not None and bool(record.networks)


def _outdated(bundle: Bundle, request: BuildRequest) -> bool:
    """Whether int8 or fp8 graphs exist that quantise other networks than the request names."""
    record = bundle.manifest.precisions.get(request.precision)
    return (
        record is not None
        and request.precision in QUANTISED
        and request.photos is not None
        and sorted(record.calibration.get("quantised", ())) != sorted(request.quantised)
    )


def _graphs(bundle: Bundle, request: BuildRequest, progress: Progress) -> Bundle:
    from anomalysd_export.engines.precisions import PrecisionSettings, make_precision

    settings = PrecisionSettings(request.precision, request.quantised, request.preset)
    photos = []
    if request.precision in QUANTISED:
        if request.photos is None:
            raise SettingsError(
                f"{request.precision} needs good photos to find its ranges: give the data that the run was trained on "
                "with --photos"
            )
        files = good_photos(request.photos, bundle.manifest.classes, None, partial=True)
        photos = [(name, images.load_rgb(path)) for name, mine in files.items() for path in mine]
    return make_precision(bundle, settings, photos, request.threads, progress)


def _graph_sizes(bundle: Bundle, precision: str) -> dict[str, dict[str, int]]:
    found = {}
    for name in bundle.manifest.networks:
        file = bundle.network_file(name, precision)
        data = file.with_name(file.name + ".data")
        length = file.stat().st_size + (data.stat().st_size if data.is_file() else 0)
        variant = bundle.manifest.precisions[precision].networks[name] if precision != "fp32" else None
        found[name] = {
            "bytes": length,
            "islands": variant.float32_nodes if variant else 0,
            "quantised": variant.quantised_nodes if variant else 0,
        }
    return found


def _engines(bundle: Bundle, request: BuildRequest, report: BuildReport, progress: Progress) -> None:
    from anomalysd_export.engines.building import BuildSettings, build_engines
    from anomalysd_runtime.tensorrt.library import PORTABLE

    default = (PORTABLE,) if request.engine == "rtx" else ()
    settings = BuildSettings(
        kind=request.engine,
        precision=request.precision,
        targets=request.targets or default,
        batches=request.batches,
        memory_budget_bytes=request.memory_budget_bytes,
        host_memory_bytes=request.host_memory_bytes,
        rebuild=request.rebuild,
    )
    built = build_engines(bundle, settings, progress)
    assert built.profiles is not None
    report.engines, report.kept = built.engines, built.kept
    # TensorRT for RTX keeps weights for every profile: engines may be larger than the graphs they were predicted from.
    weights = max(built.profiles.weights_bytes, sum(record.bytes for record in built.engines))
    report.predicted_peak_bytes, report.dropped = weights + built.profiles.activations_bytes, built.profiles.dropped
    budget = settings.memory_budget_bytes
    report.over_budget = budget is not None and report.predicted_peak_bytes > budget
    try:
        report.seen_peak_bytes = _seen(built.bundle, BackendChoice(request.engine, request.precision))
    except BackendError as error:
        report.unseen_because = str(error)


def _seen(bundle: Bundle, choice: BackendChoice) -> int:
    """Device memory that opening the engines and running each once took. Raises BackendError without a fitting GPU."""
    from anomalysd_runtime.tensorrt.cuda_device import CudaDevice
    from anomalysd_runtime.tensorrt.networks import TensorrtNetworks

    with CudaDevice() as device:
        before = device.used_bytes()
        with TensorrtNetworks.of_bundle(bundle, choice):
            return device.used_bytes() - before
