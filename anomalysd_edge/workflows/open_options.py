"""How the verbs open a bundle: one place for its options, and the way back to a build where an engine does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import BackendChoice, backend_choice
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.reports.console import say


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

    deadline_ms: float | None = None
    """Milliseconds that a photo may take, from its pixels to its verdict; picks the mode (modes.py)."""

    memory_budget: str | None = None
    """Memory that the process may take, as 600MiB; lowers `max_batch` by what this machine's table measured."""

    def detector(self, bundle: Path) -> Detector:
        """Open `bundle`; a context manager. Raises what anomalysd_runtime.loading.open_detector raises.

        With a deadline, in the best mode that this machine's table has for it; without a table in the preset's own.
        """
        opened = self._whole(bundle, self._batch(bundle))
        if self.deadline_ms is None:
            return opened
        try:
            if self.deadline_ms <= 0:
                raise SettingsError(f"the deadline is {self.deadline_ms:g} ms, expected more than 0")
            return self._within(opened, bundle, self.deadline_ms)
        except BaseException:
            opened.networks.close()
            raise

    def _batch(self, bundle: Path) -> int:
        """`max_batch`, or less where the memory budget asks for it."""
        from anomalysd_edge.profiling.operating_points import batch_within, read_table
        from anomalysd_edge.workflows.build import memory_bytes

        budget = memory_bytes(self.memory_budget, "--memory-budget")
        if budget is None:
            return self.max_batch
        table = read_table(bundle, self.preset, str(backend_choice(self.backend)), machine_name())
        return min(self.max_batch, batch_within({} if table is None else table.peak_bytes, budget))

    def _within(self, opened: Detector, bundle: Path, deadline_ms: float) -> Detector:
        from anomalysd_edge.profiling.operating_points import pick, read_table, under_mode

        opened.group = 1
        table = read_table(bundle, self.preset, str(backend_choice(self.backend)), machine_name())
        if table is None:
            say(f"no table of modes beside {bundle} (sd-edge bench --pareto makes it): the preset, cut at the deadline")
            return opened
        mode = pick(table.modes, deadline_ms)
        found = under_mode(opened, mode, opened.settings)
        found.label = mode.name
        return found

    def _whole(self, bundle: Path, max_batch: int) -> Detector:
        from anomalysd_runtime.loading import open_detector

        return open_detector(
            bundle,
            self.preset,
            self.backend,
            self.threads,
            max_batch,
            force=self.force,
            public_key=self.public_key,
            on_mismatch=self.on_mismatch,
            rebuild=rebuilt,
        )


def machine_name() -> str:
    """Processor, cores and GPU in words: what a table of modes was measured on."""
    facts = machine_facts()
    gpu = f", {facts['gpu']['name']}" if "gpu" in facts else ""
    return f"{facts['processor']}, {facts['cores']} cores{gpu}"


def rebuilt(bundle: Bundle, choice: BackendChoice) -> Bundle:
    """Build engines for this machine and read the bundle back: for rtx, for the GPU that is here."""
    from anomalysd_edge.workflows.build import BuildRequest, build
    from anomalysd_runtime.tensorrt.cuda_device import gpu

    major, minor = gpu().capability
    targets = f"sm{major}{minor}" if choice.kind == "rtx" else None
    build(BuildRequest(bundle.path, choice.kind, choice.precision, targets), lambda *_: None)
    return read_bundle(bundle.path, verify=False)
