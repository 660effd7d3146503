"""Subcommands parity and engines: the same photos on the CPU and on the GPU, verdict by verdict."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np

from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.data.samples import Sample
from anomalysd_edge.evaluation.backend_parity import GateSettings, ParityReport, compare_backends
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision import images
from benchmarks.gpu.claims import Claim, Kit, Lines, Part
from benchmarks.gpu.needs import first_missing
from benchmarks.gpu.prepared import CLASS, Prepared, prepared

PHOTOS = 20
ROUNDING = 1e-4
"""What float32 on two devices may differ by in a score."""
CLOSE = f"{PHOTOS} photos: scores within {ROUNDING:g}, no verdict flips"
GATE = f"{PHOTOS} photos: no verdict flips, AUROC falls by at most 0.002"
BATCHES = (1, 4, 16)

PARITY = (
    Claim("parity.torch", "torch in float32 on the GPU judges as torch on the CPU", CLOSE, True),
    Claim("parity.float32", "ONNX Runtime's CUDA in float32 judges as its CPU", CLOSE, True),
    Claim("parity.half", "fp16 on CUDA passes the gate", GATE, True),
    Claim(
        "parity.batches", "a photo's score does not depend on its batch", f"within {ROUNDING:g} at {BATCHES}, 1 or 8"
    ),
    Claim("parity.again", "a photo judged again gets the same score", "equal to the bit"),
)
ENGINES = (
    Claim("engines.float32", "TensorRT RTX in float32 judges as the CPU", CLOSE),
    Claim("engines.half", "TensorRT RTX in fp16 passes the gate", GATE),
    Claim("engines.int8", "TensorRT RTX runs a UNet of int8 weights and activations, and it passes the gate", GATE),
    Claim("engines.captured", "the denoising loop is captured and replayed to the bit", "1 graph or more, 0 differ"),
    Claim("engines.memory", "the engines' memory was foretold", "at most 1.15 times what build foretells"),
    Claim("engines.start", "kernels are not compiled anew at every start", "at most half the first opening's seconds"),
)


def compared(
    kit: Kit, at: Prepared, backend: str, gate: GateSettings, labels: bool = False, reference: str = "cpu"
) -> ParityReport:
    """Judge the test photos with the CPU and with `backend`; 'torch' is the run on the kit's device."""
    with ExitStack() as stack:
        right = stack.enter_context(detector(at, reference))
        other = stack.enter_context(detector(at, backend))
        return compare_backends(right, other, samples(kit, at), gate, labels)


def samples(kit: Kit, at: Prepared) -> list[Sample]:
    """The test photos with their labels, good ones and bad ones in turn; four of them in a rehearsal."""
    from anomalysd_edge.evaluation.backend_parity import spread_over_classes
    from anomalysd_edge.workflows.photo_sources import samples_of

    found = samples_of(at.data, read_bundle(at.bundle, verify=False))
    return spread_over_classes(found, 4 if kit.rehearsal else PHOTOS)


def detector(at: Prepared, backend: str, max_batch: int = 16) -> Detector:
    """The bundle on a backend, or, as 'torch DEVICE', the run it came from."""
    from anomalysd_runtime.loading import open_detector

    if not backend.startswith("torch"):
        return open_detector(at.bundle, "edge", backend, max_batch=max_batch, verify=False, force=True)
    from anomalysd_edge.bundle.detector_factory import detector_of
    from anomalysd_edge.training.run import networks_of_run, read_run

    networks = networks_of_run(read_run(at.run), max_batch=max_batch, device=backend.split()[1])
    return detector_of(read_bundle(at.bundle, verify=False), networks, "edge")


def report(lines: Lines, name: str, found: ParityReport) -> None:
    """A comparison's line."""
    measured = {"flips": found.flips, "score_difference": found.score_difference, "auroc_drop": found.auroc_drop}
    networks = {network: vars(far) for network, far in found.networks.items()}
    enough = len(found.photos) == PHOTOS or lines.rehearsal
    lines.shown(
        name, measured, found.passed and enough, photos=len(found.photos), networks=networks, backends=found.backends,
        map_error=found.map_error,
    )  # fmt: skip


def parity(kit: Kit, lines: Lines) -> None:
    """Show PARITY."""
    at = prepared(kit)
    close = GateSettings(score_difference=ROUNDING)
    why = first_missing(kit, ("torch", "training"))
    if why:
        lines.not_shown("parity.torch", why)
    with lines.showing("parity.torch"):
        report(lines, "parity.torch", compared(kit, at, f"torch {kit.device}", close, reference="torch cpu"))
    why = first_missing(kit, ("onnxruntime-gpu",))
    if why:
        lines.not_shown_rest(why)
        return
    with lines.showing("parity.float32"):
        report(lines, "parity.float32", compared(kit, at, kit.device, close))
    with lines.showing("parity.half"):
        report(lines, "parity.half", compared(kit, at, f"{kit.device}:fp16", GateSettings(), labels=True))
    with lines.showing("parity.batches", "parity.again"):
        photos = [images.load_rgb(file) for file in at.test_photos()[: 3 if kit.rehearsal else 8]]
        scores: dict[str, list[float]] = {}
        for batch in BATCHES:
            with detector(at, kit.device, batch) as opened:
                scores[f"{batch}, alone"] = [opened.inspect([photo], CLASS)[0].pred_score for photo in photos]
                opened.group = len(photos)
                scores[f"{batch}, together"] = [answer.pred_score for answer in opened.inspect(photos, CLASS)]
                opened.group = 1
                again = [opened.inspect([photo], CLASS)[0].pred_score for photo in photos]
        far = float(np.ptp(np.array(list(scores.values())), axis=0).max())
        lines.shown("parity.batches", far, far <= ROUNDING, scores=scores)
        apart = sum(a != b for a, b in zip(scores[f"{BATCHES[-1]}, alone"], again, strict=True))
        lines.shown("parity.again", apart, apart == 0)


def engines(kit: Kit, lines: Lines) -> None:
    """Show ENGINES."""
    import torch

    from anomalysd_edge.workflows.build import BuildRequest, build
    from anomalysd_runtime.tensorrt.library import load_library

    at = prepared(kit)
    major, minor = torch.cuda.get_device_capability()
    here, library = f"sm{major}{minor}", load_library("rtx")
    if here not in library.targets():
        lines.not_shown_rest(f"{library.name} {library.version} has no {here}, only {', '.join(library.targets())}")
        return
    foretold: dict[str, Any] = {}
    gates = {
        "fp32": ("engines.float32", GateSettings(score_difference=ROUNDING), False),
        "fp16": ("engines.half", GateSettings(), True),
        "int8": ("engines.int8", GateSettings(), True),
    }
    for precision, (name, gate, labels) in gates.items():
        with lines.showing(name):
            request = BuildRequest(
                bundle=at.bundle, engine="rtx", precision=precision, targets=(here,), batches=BATCHES,
                photos=at.run if precision == "int8" else None,
            )  # fmt: skip
            made = build(request, lambda *_: None)
            foretold[precision] = made
            report(lines, name, compared(kit, at, f"rtx:{precision}", gate, labels))
    with lines.showing("engines.memory"):
        half = foretold["fp16"]
        if half.seen_peak_bytes is None:
            lines.not_shown("engines.memory", half.unseen_because)
        else:
            ratio = half.seen_peak_bytes / half.predicted_peak_bytes
            lines.shown("engines.memory", ratio, ratio <= 1.15, seen_bytes=half.seen_peak_bytes)
    with lines.showing("engines.captured"):
        _captured(lines, at)
    with lines.showing("engines.start"):
        opening = [_opening_s(at, fresh) for fresh in (True, False)]
        lines.shown("engines.start", opening[1] / opening[0], opening[1] <= 0.5 * opening[0], seconds=opening)


def _captured(lines: Lines, at: Prepared) -> None:
    """Count the captures that CUDA took, and judge a photo uncaptured, then twice replayed."""
    from anomalysd_runtime.tensorrt.cuda_device import CudaDevice

    taken = 0
    capture = CudaDevice.capture

    def counted(device: CudaDevice, work: Any) -> Any:
        nonlocal taken
        replay = capture(device, work)
        taken += 1
        return replay

    photo = images.load_rgb(at.test_photos()[0])
    with mock.patch.object(CudaDevice, "capture", counted), detector(at, "rtx:fp16") as opened:
        maps = [opened.inspect([photo], CLASS)[0].anomaly_map for _ in range(3)]
    apart = sum(int((found != maps[0]).sum()) for found in maps[1:])
    lines.shown("engines.captured", [taken, apart], taken > 0 and apart == 0)


def _opening_s(at: Prepared, fresh: bool) -> float:
    """Seconds to open the fp16 engines in a new process; `fresh`: without what an earlier start left behind."""
    from anomalysd_edge.profiling.measurement import BenchRequest
    from anomalysd_edge.workflows.bench import in_own_process

    if fresh:
        for file in (at.bundle / "engines").glob("kernels-*.cache"):
            file.unlink()
    photos = [(str(at.test_photos()[0]), CLASS)]
    request = BenchRequest(bundle=str(at.bundle), photos=photos, backend="rtx:fp16", rounds=1, warm_up=1, force=True)
    return in_own_process(request).open_s


PARTS = (
    Part(
        "parity", "CPU against CUDA on twenty photos, the gate of fp16, batches", 120, ("torch", "bundle"),
        PARITY, parity,
    ),
    Part(
        "engines", "TensorRT for RTX: built, judged, captured", 180,
        ("torch", "cuda-bindings", "tensorrt-rtx", "bundle"), ENGINES, engines,
    ),
)  # fmt: skip
