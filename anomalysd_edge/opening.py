"""How the verbs open a bundle: one place for its options, and the way back to a build where an engine does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.backends import BackendChoice
from anomalysd_edge.bundle import Bundle, read_bundle
from anomalysd_edge.detector import Detector


@dataclass(frozen=True)
class Opening:
    """Options of inspect, eval and serve."""

    preset: str = "edge"
    """Inspection preset of the bundle."""
    backend: str = "cpu"
    """KIND or KIND:PRECISION, see backends.py."""
    threads: int | None = None
    """CPU threads; all cores if None."""
    max_batch: int = 16
    """Largest UNet batch; never changes a verdict."""
    force: bool = False
    """Serve a precision that the gate refused."""
    public_key: Path | None = None
    """Public key that must have signed the bundle."""
    on_mismatch: str = "error"
    """Where no engine fits this machine: error, rebuild or onnxruntime."""

    def detector(self, bundle: Path) -> Detector:
        """Open `bundle`; a context manager. Raises what anomalysd_runtime.loading.open_detector raises."""
        from anomalysd_runtime.loading import open_detector

        return open_detector(
            bundle,
            self.preset,
            self.backend,
            self.threads,
            self.max_batch,
            force=self.force,
            public_key=self.public_key,
            on_mismatch=self.on_mismatch,
            rebuild=rebuilt,
        )


def rebuilt(bundle: Bundle, choice: BackendChoice) -> Bundle:
    """Build engines for this machine and read the bundle back: for rtx, for the GPU that is here."""
    from anomalysd_edge.building import BuildRequest, build
    from anomalysd_runtime.cuda_device import gpu

    major, minor = gpu().capability
    targets = f"sm{major}{minor}" if choice.kind == "rtx" else None
    build(BuildRequest(bundle.path, choice.kind, choice.precision, targets), lambda *_: None)
    return read_bundle(bundle.path, verify=False)
