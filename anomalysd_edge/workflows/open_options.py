"""Opening a bundle for the command line: with a deadline, a memory budget, and engines built where they do not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import BackendChoice, backend_choice
from anomalysd_edge.bundle.open_options import OpenOptions
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.reports.console import say


@dataclass(frozen=True, kw_only=True)
class InspectOptions(OpenOptions):
    """How inspect and eval open a bundle."""

    deadline_ms: float | None = None
    """Milliseconds that a photo may take, from its pixels to its verdict; picks the mode from the table of modes."""
    memory_budget_bytes: int | None = None
    """Memory that the process may take; lowers `max_batch` by what the table of modes measured on this machine."""

    def detector(self, source: Path | Bundle) -> Detector:
        """Open a bundle, by its folder or as it was read; a context manager. Raises what open_with raises.

        With a deadline, in the best mode of this machine's table that keeps it; without a table in the preset's own.
        """
        from anomalysd_runtime.loading import open_with

        folder = source.path if isinstance(source, Bundle) else source
        opened = open_with(source, replace(self, max_batch=self._batch(folder)), rebuild=rebuilt)
        if self.deadline_ms is None:
            return opened
        try:
            if self.deadline_ms <= 0:
                raise SettingsError(f"the deadline is {self.deadline_ms:g} ms, expected more than 0")
            return self._within(opened, folder, self.deadline_ms)
        except BaseException:
            opened.networks.close()
            raise

    def _batch(self, bundle: Path) -> int:
        """`max_batch`, or less where the memory budget asks for it."""
        from anomalysd_edge.profiling.operating_points import batch_within, read_table

        if self.memory_budget_bytes is None:
            return self.largest_batch
        table = read_table(bundle, self.preset, str(backend_choice(self.backend)), machine_name())
        return min(
            self.largest_batch, batch_within({} if table is None else table.peak_bytes, self.memory_budget_bytes)
        )

    def _within(self, opened: Detector, bundle: Path, deadline_ms: float) -> Detector:
        from anomalysd_edge.profiling.operating_points import at_operating_point, pick, read_table

        opened.group = 1
        table = read_table(bundle, self.preset, str(backend_choice(self.backend)), machine_name())
        if table is None:
            say(f"no table of modes beside {bundle} (sd-edge bench --pareto makes it): the preset, cut at the deadline")
            return opened
        mode = pick(table.modes, deadline_ms)
        found = at_operating_point(opened, mode, opened.settings)
        found.label = mode.name
        return found


@cache
def machine_name() -> str:
    """Processor, cores and GPU in words: what a table of modes was measured on. nvidia-smi is asked once a process."""
    facts = machine_facts()
    gpu = f", {facts['gpu']['name']}" if "gpu" in facts else ""
    return f"{facts['processor']}, {facts['cores']} cores{gpu}"


def rebuilt(bundle: Bundle, choice: BackendChoice) -> Bundle:
    """Build engines for the GPU of this machine and read the bundle again."""
    from anomalysd_edge.workflows.build import BuildRequest, build
    from anomalysd_runtime.tensorrt.cuda_device import gpu

    major, minor = gpu().capability
    targets = (f"sm{major}{minor}",) if choice.kind == "rtx" else ()
    request = BuildRequest(bundle=bundle.path, engine=choice.kind, precision=choice.precision, targets=targets)
    build(request, lambda *_: None)
    return read_bundle(bundle.path, verify=False)
