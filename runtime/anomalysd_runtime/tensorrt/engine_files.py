"""Which engine of a bundle fits here: its fingerprint is compared field by field before a byte of it is read."""

from __future__ import annotations

from collections.abc import Iterable

from anomalysd_edge.bundle.backend_spec import BackendChoice
from anomalysd_edge.bundle.engine_records import EngineRecord
from anomalysd_edge.bundle.reader import Bundle, inside
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.errors import BundleError, EngineMismatch
from anomalysd_runtime.onnx.step_graph import step_graph
from anomalysd_runtime.tensorrt.library import Library

STEPS = {"step": False, "step_guided": True}
"""The DDIM update as an engine of its own, by whether it holds guidance."""


def graph_sha256(bundle: Bundle, network: str, precision: str) -> str:
    """The digest of the graph that an engine of `network` must have been built from."""
    if network in STEPS:
        return sha256_bytes(step_graph(STEPS[network]))
    return bundle.graph_sha256(network, precision)


def find_engine(
    bundle: Bundle, network: str, choice: BackendChoice, library: Library, capability: tuple[int, int]
) -> EngineRecord:
    """The engine of `network` that fits this library and a GPU of this compute capability.

    Raises EngineMismatch: there is none, or the nearest one differs in a field, which the message names.
    """
    precision = "fp32" if network in STEPS else choice.precision
    engines = [
        record
        for record in bundle.manifest.engines
        if record.fingerprint.network == network
        and record.fingerprint.library == library.name
        and record.fingerprint.precision == precision
    ]
    here = f"sm{capability[0]}{capability[1]}"
    build = f"sd-edge build {bundle.path} --engine {choice.kind} --precision {choice.precision}"
    if not engines:
        raise EngineMismatch(
            f"{bundle.path} has no {library.name} engine of {network!r} in {precision}: build it with '{build}', or "
            "run ONNX Runtime with --on-mismatch onnxruntime"
        )
    differing = [(record, _differences(record, bundle, precision, library, capability)) for record in engines]
    record, fields = min(differing, key=lambda pair: len(pair[1]))
    if fields:
        unlike = "; ".join(f"{field} is {found}, expected {expected}" for field, found, expected in fields)
        raise EngineMismatch(
            f"the engine of {network!r} in {bundle.path} does not fit this machine ({here}): {unlike}; build it here "
            f"with '{build}', or choose --on-mismatch rebuild or onnxruntime"
        )
    return record


def _differences(
    record: EngineRecord, bundle: Bundle, precision: str, library: Library, capability: tuple[int, int]
) -> list[tuple[str, str, str]]:
    """(field, found, expected) where the fingerprint does not fit."""
    mark = record.fingerprint
    found = []
    graph = graph_sha256(bundle, mark.network, precision)
    if mark.onnx_sha256 != graph:
        found.append(("onnx_sha256", mark.onnx_sha256[:12], graph[:12]))
    if mark.library_version != library.version:
        found.append(("library_version", mark.library_version, library.version))
    if mark.recipe != library.recipe:
        found.append(("recipe", str(mark.recipe), str(library.recipe)))
    if not library.fits(mark.gpu, capability):
        found.append(("gpu", "+".join(mark.gpu), f"sm{capability[0]}{capability[1]}"))
    return found


def read_engine(bundle: Bundle, record: EngineRecord) -> bytes:
    """The engine's bytes. Raises BundleError where the file is missing, truncated or changed."""
    file = inside(bundle.path, record.file)
    again = "build it again with 'sd-edge build --rebuild'"
    if not file.is_file():
        raise BundleError(f"{file} is missing although the manifest lists it: {again}")
    length = file.stat().st_size
    if length != record.bytes:
        raise BundleError(f"{file} has {length} bytes and the manifest says {record.bytes}, it is truncated: {again}")
    data = file.read_bytes()
    if sha256_bytes(data) != record.sha256:
        raise BundleError(f"{file} was changed since it was built (its sha256 differs from the manifest): {again}")
    return data


def engine_networks(bundle: Bundle) -> Iterable[str]:
    """Names of all engines that a bundle needs: networks, the DDIM step, its guided form where a preset guides."""
    yield from bundle.manifest.networks
    yield "step"
    if any(float(preset.get("guidance_scale", 1)) > 1 for preset in bundle.manifest.presets.values()):
        yield "step_guided"
