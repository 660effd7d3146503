"""Engines of a bundle: profiles by the memory budget, a building process each, the manifest at the end."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.engine_records import EngineRecord, Fingerprint
from anomalysd_edge.bundle.reader import Bundle, inside, read_bundle
from anomalysd_edge.bundle.update import read_manifest, remove_folders, write_manifest
from anomalysd_edge.core.files import read_json, sha256_file, write_aside, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import BackendError
from anomalysd_export.engines.profiles import Profiles, choose_profiles, planned_batches
from anomalysd_runtime.onnx.step_graph import step_graph
from anomalysd_runtime.tensorrt.engine_files import STEPS, engine_networks, graph_sha256
from anomalysd_runtime.tensorrt.library import PORTABLE, Library, load_library

_MEMORY_WORDS = ("out of memory", "bad_alloc", "outofmemory", "cannot allocate", "failed to map segment")
_STILL_S = 120.0
"""Seconds without processor time after which a builder counts as stuck: even one that waits for a GPU looks at it."""
LOG = logging.getLogger("anomalysd_export")


@dataclass(frozen=True)
class BuildSettings:
    """What to build."""

    kind: str = "rtx"
    """rtx (TensorRT for RTX, ahead of time) or tensorrt (on the device itself)."""
    precision: str = "fp16"
    """fp32, fp16, bf16, int8 or fp8; the bundle holds its graphs already."""
    targets: tuple[str, ...] = (PORTABLE,)
    """Architectures for rtx, as sm86; 'portable' for library.PORTABLE_ON. Empty for tensorrt."""
    batches: tuple[int, ...] | None = None
    """Static batch sizes; None asks the planner of every preset."""
    memory_budget_bytes: int | None = None
    """Device memory that the engines together may need; sizes that do not fit are left out."""
    host_memory_bytes: int | None = None
    """Memory that the building process may take: above it the build fails, and the machine stays up."""
    rebuild: bool = False
    """Build also what is there with the same fingerprint."""


@dataclass
class Built:
    """What a build left."""

    bundle: Bundle
    """Read anew."""
    engines: list[EngineRecord] = field(default_factory=list)
    """Of this library, precision and target: built now or already there."""
    kept: list[str] = field(default_factory=list)
    """Networks whose engine was there with the same fingerprint."""
    profiles: Profiles | None = None
    """The sizes, and the predicted memory."""


def build_engines(bundle: Bundle, settings: BuildSettings, progress: Progress | None = None) -> Built:
    """Build every engine of `bundle` that is missing. Call it inside `bundle_update.writing`.

    Each engine is entered in the manifest when it is done, so a build that fails midway goes on from there.
    Raises SettingsError (unknown target, budget too small), MissingExtra, and BackendError with the library's words.
    """
    library = load_library(settings.kind)
    library.check_targets(settings.targets)
    gpu = settings.targets if library.ahead_of_time else (_gpu_here(),)
    networks = bundle.manifest.networks
    files = {name: bundle.network_file(name, settings.precision) for name in networks}
    asked = settings.batches or planned_batches(bundle)
    profiles = choose_profiles(files, bundle.manifest.sizes, asked, settings.memory_budget_bytes)
    built = Built(bundle, profiles=profiles)
    with tempfile.TemporaryDirectory() as work:
        names = list(engine_networks(bundle))
        for number, name in enumerate(names):
            if progress:
                progress(f"build {settings.kind}", number, len(names), name)
            sizes = _sizes(name, profiles)
            mark = Fingerprint(
                network=name,
                onnx_sha256=graph_sha256(bundle, name, settings.precision),
                library=library.name,
                library_version=library.version,
                gpu=tuple(sorted(gpu)),
                precision="fp32" if name in STEPS else settings.precision,
                batches=sizes,
                recipe=library.recipe,
            )
            there = _there(bundle, mark)
            if there is not None and not settings.rebuild:
                built.kept.append(name)
                built.engines.append(there)
                continue
            job = _job(bundle, library, settings, name, sizes, files, Path(work))
            if settings.memory_budget_bytes is not None:
                # Kernels may ask for scratch memory beside tensors: never more than the budget leaves after weights.
                job["workspace_bytes"] = max(0, settings.memory_budget_bytes - profiles.weights_bytes)
            record = _build(bundle.path, mark, job, profiles.peak_bytes, Path(work))
            _enter(bundle.path, record)
            built.engines.append(record)
        if progress:
            progress(f"build {settings.kind}", len(names), len(names), "done")
    built.bundle = read_bundle(bundle.path, verify=False)
    return built


def _gpu_here() -> str:
    from anomalysd_runtime.tensorrt.cuda_device import gpu

    major, minor = gpu().capability
    return f"sm{major}{minor}"


def _sizes(name: str, profiles: Profiles) -> tuple[int, ...]:
    if name == "step_guided":
        return tuple(sorted({size // 2 for size in profiles.batches["unet"] if size % 2 == 0}))
    return profiles.batches["unet" if name == "step" else name]


def _there(bundle: Bundle, mark: Fingerprint) -> EngineRecord | None:
    for record in bundle.manifest.engines:
        if record.fingerprint == mark:
            file = inside(bundle.path, record.file)
            if file.is_file() and file.stat().st_size == record.bytes and sha256_file(file) == record.sha256:
                return record
    return None


def _job(
    bundle: Bundle,
    library: Library,
    settings: BuildSettings,
    name: str,
    sizes: tuple[int, ...],
    files: dict[str, Path],
    work: Path,
) -> dict[str, Any]:
    axes: dict[str, str | int] = {"references": "references"}
    if name in STEPS:
        graph = work / f"{name}.onnx"
        graph.write_bytes(step_graph(STEPS[name]))
        channels, side = bundle.manifest.sizes.latent_channels, bundle.manifest.sizes.latent_side
        axes = {"channels": channels, "m": channels + 1, "h": side, "w": side}
        axes["passes"] = "passes" if STEPS[name] else "batch"
    else:
        graph = files[name]
    cache = bundle.path / "engines" / f"timing-{library.version}.cache"
    return {
        "onnx": str(graph),
        "kind": settings.kind,
        "targets": list(settings.targets),
        "batches": list(sizes),
        "axes": axes,
        "timing_cache": str(cache),
        "memory_limit_bytes": settings.host_memory_bytes,
        "workspace_bytes": None,
    }


def _build(path: Path, mark: Fingerprint, job: dict[str, Any], predicted: int, work: Path) -> EngineRecord:
    name = f"engines/{mark.digest}/{mark.network}.plan"
    try:
        with write_aside(path / name) as aside:
            result = run_worker({**job, "out": str(aside)}, mark.network, work)
            digest, length = sha256_file(aside), aside.stat().st_size
    except BaseException:
        with suppress(OSError):  # it stays where an older engine lies in it
            (path / name).parent.rmdir()
        raise
    cost = (result["seconds"], result["cpu_seconds"], result["peak_bytes"])
    return EngineRecord(mark, name, length, digest, predicted, *cost)


def run_worker(job: dict[str, Any], network: str, work: Path) -> dict[str, Any]:
    """Run one building process; its result. Raises BackendError with the builder's last words."""
    file = work / f"{network}.json"
    write_json(file, job)
    result_file = file.with_suffix(".result.json")
    result_file.unlink(missing_ok=True)
    log = work / f"{network}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "anomalysd_export.engines.worker", str(file)],
            stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        stuck = not finished(process)
    if stuck:
        raise BackendError(
            f"building the {job['kind']} engine of {network!r} stood still for {_STILL_S:.0f} s and was ended, as "
            "happens where memory runs out inside the library: nothing was written; raise --host-memory, or build on a "
            "machine with more memory"
        )
    if process.returncode == 0:
        result: dict[str, Any] = read_json(result_file)
        return result
    raise BackendError(_reason(process.returncode, result_file, log, network, job))


def finished(process: subprocess.Popen[bytes], still_s: float = _STILL_S) -> bool:
    """Wait for `process`; False, and it is killed, once it has used no processor time for `still_s` seconds.

    Where the system does not tell its processor time (/proc), it is waited for without end.
    """
    used, since = _cpu_ticks(process.pid), time.monotonic()
    try:
        while True:
            try:
                process.wait(timeout=min(1.0, still_s))
                return True
            except subprocess.TimeoutExpired:
                now = _cpu_ticks(process.pid)
            if now is None or now != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since > still_s:
                return False
    finally:
        if process.poll() is None:  # stuck, or the user interrupted
            process.kill()
            process.wait()


def _cpu_ticks(pid: int) -> int | None:
    """Processor time of a process and its finished children; None where it cannot be read."""
    try:
        # After the name, which may hold spaces: state is field 3, utime to cstime are 14 to 17 (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return sum(int(value) for value in fields[11:15])


def _reason(code: int, result_file: Path, log: Path, network: str, job: dict[str, Any]) -> str:
    """Why a build failed, in one sentence."""
    message = read_json(result_file)["error"] if result_file.is_file() else None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition("]")[2].strip() for line in lines if line.startswith(("[E]", "[!]"))]
    output = " ".join(errors) + " " + (message or "") + " " + "\n".join(lines[-5:])
    what = f"the {job['kind']} engine of {network!r} at batch {', '.join(map(str, job['batches']))}"
    memory = any(word in output.lower() for word in _MEMORY_WORDS)
    if code == -signal.SIGKILL or memory or (code < 0 and job["memory_limit_bytes"]):
        limit = job["memory_limit_bytes"]
        bound = f" (limit {limit / 2**20:.0f} MiB)" if limit else ""
        return (
            f"out of memory while building {what}{bound}: nothing was written; build fewer or smaller --batch sizes, a "
            "lower --precision, or on a machine with more memory"
        )
    if code < 0:
        return f"building {what} ended by signal {signal.Signals(-code).name}: nothing was written; update the library"
    first = next(iter(errors), None) or message or (lines[-1] if lines else f"exit code {code}")
    return f"{what} could not be built: {first}"


def _enter(path: Path, record: EngineRecord) -> None:
    """Name the engine in the manifest; engines of the same kind from another graph or library version go."""
    manifest = read_manifest(path)

    def replaced(old: EngineRecord) -> bool:
        a, b = old.fingerprint, record.fingerprint
        return (a.network, a.library, a.precision, a.gpu) == (b.network, b.library, b.precision, b.gpu)

    gone = [old for old in manifest.engines if replaced(old)]
    kept = tuple(old for old in manifest.engines if not replaced(old))
    write_manifest(path, replace(manifest, engines=(*kept, record)))
    folder = record.file.rpartition("/")[0]
    remove_folders(path, {old.file.rpartition("/")[0] for old in gone} - {folder})
