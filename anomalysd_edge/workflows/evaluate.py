"""`sd-edge eval`: AUROC, AUPRO and the like of a bundle on labelled photos; results.json and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.bundle.versions import bundle_id
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.data.datasets import NamedFolders
from anomalysd_edge.errors import ClassError, DatasetError
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.reports import gallery, inspection
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.datasets import of_bundle, open_described
from anomalysd_edge.workflows.open_options import InspectOptions

if TYPE_CHECKING:
    from anomalysd_runtime.distributed.ray_inspect import RaySettings


@dataclass(frozen=True)
class EvalResult:
    """What `sd-edge eval` measured."""

    results: list[evaluate.ClassResult]
    """One for each class."""
    facts: dict[str, str]
    """Bundle, its id, data set, preset, backend, mode."""
    columns: tuple[str, ...] = evaluate.COLUMNS
    """Titles of the columns of `rows`."""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """One row a class, then the mean."""
        return evaluate.table_rows(self.results)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.facts, **evaluate.to_json(self.results)}


def evaluate_bundle(
    bundle_path: Path,
    data: Path,
    classes: list[str] | None,
    out: Path | None,
    options: InspectOptions,
    progress: Progress,
    cluster: RaySettings | None = None,
    dataset: str | None = None,
    named: NamedFolders | None = None,
) -> EvalResult:
    """Inspect every test photo; with `out`, write results.json and report.html; with `cluster`, inspect over Ray.

    Raises ClassError for a class that the bundle does not hold, DatasetError where no photo is labelled.
    """
    found = open_described(data, classes, dataset, named)
    bundle = read_bundle(bundle_path, public_key=options.public_key)
    known = bundle.manifest.classes
    if named is not None:
        found = of_bundle(found, known)
    else:  # A folder of photos that is not named after its class is refused, not taken for the only one.
        found = found.renamed(lambda name: find_class(name, known) or name)
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
        with options.detector(bundle) as detector:
            results = evaluate.evaluate(detector, found, progress, watch)
            ran = {"backend": detector.networks.backend, "mode": detector.mode}
    else:
        from anomalysd_edge.workflows.ray import ClusterJudge

        judge = ClusterJudge(bundle, options, cluster)
        results = evaluate.measure(judge.judge(found, progress), found, None, watch)
        ran = judge.facts
    facts = {
        "bundle": bundle_path.name,
        "bundle_id": bundle_id(bundle_path),
        "data": dataset or data.resolve().name,
        "preset": options.preset,
        **ran,
    }
    measured = EvalResult(results, facts)
    if out:
        write_json(out / "results.json", measured.to_json())
        if (picture := inspection.examples_picture(rows)) is not None:
            images.save_png(out / "examples.png", picture)
        table = gallery.TableData(
            measured.columns,
            tuple(measured.rows),
            "Balanced error as shipped and at best, F1, pixel F1; image/pixel AUROC per map; percent",
        )
        gallery.write_report(
            out / "report.html", f"Inspection of {data.name}", rows, table, list(facts.items()), side_px=128
        )
    return measured
