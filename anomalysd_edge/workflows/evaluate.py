"""`sd-edge eval`: a bundle judged on labelled photos; results.json and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import ClassError, DatasetError
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.reports import gallery, inspection
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.open_options import Opening

if TYPE_CHECKING:
    from anomalysd_runtime.distributed.ray_inspect import RaySettings


@dataclass(frozen=True)
class Measured:
    """What eval found."""

    results: list[evaluate.ClassResult]
    """Per class."""
    facts: dict[str, str]
    """Bundle, preset, backend, mode."""
    columns: tuple[str, ...] = evaluate.COLUMNS
    """Of `rows`."""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The table."""
        return evaluate.table_rows(self.results)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.facts, **evaluate.to_json(self.results)}


def evaluate_bundle(
    bundle_path: Path,
    data: Path,
    classes: list[str] | None,
    out: Path | None,
    how: Opening | tuple[str, str, int | None],
    progress: Progress,
    cluster: RaySettings | None = None,
) -> Measured:
    """`sd-edge eval`; with `out`, results.json and report.html; with `cluster` the photos are judged over Ray."""
    how = how if isinstance(how, Opening) else Opening(*how)
    found = open_dataset(data, classes)
    # On one machine the detector's opening checks the files.
    bundle = read_bundle(bundle_path, cluster is not None, how.public_key if cluster else None)
    known = bundle.manifest.classes
    unknown = [name for name in found.classes if name not in known]
    if unknown:
        raise ClassError(f"the bundle does not hold: {', '.join(unknown)}; it holds: {', '.join(sorted(known))}")
    if not any(part.test for part in found.classes.values()):
        raise DatasetError(
            f"{data} has no test photos; eval needs labelled ones (test/good and test/DEFECT, or good/ and bad/)"
        )
    rows: list[gallery.ReportRow] = []

    def keep(sample: Any, photo: Any, answer: Any) -> None:
        name = f"{sample.class_name}/{sample.defect}/{sample.path.name}"
        rows.append(inspection.report_row(answer, photo, name, sample.defect))

    watch = keep if out else None
    if cluster is None:
        with how.detector(bundle_path) as detector:
            results = evaluate.evaluate(detector, found, progress, watch)
            ran = {"backend": detector.networks.backend, "mode": detector.mode}
    else:
        from anomalysd_edge.workflows.ray import ClusterJudge

        judge = ClusterJudge(bundle, how, cluster)
        results = evaluate.measure(judge.judge(found, progress), found, None, watch)
        ran = judge.facts
    facts = {"bundle": bundle_path.name, "preset": how.preset, **ran}
    measured = Measured(results, facts)
    if out:
        write_json(out / "results.json", measured.to_json())
        if (picture := inspection.examples_picture(rows)) is not None:
            images.save_png(out / "examples.png", picture)
        table = gallery.TableData(
            measured.columns, tuple(measured.rows), "Image/pixel AUROC per map, then the fused map, in percent"
        )
        gallery.write_report(
            out / "report.html", f"Inspection of {data.name}", rows, table, list(facts.items()), side_px=128
        )
    return measured
