"""Hierarchical prompts, an ablation: the model told the whole level, the detail level, both in turn, or nothing.

    python -m benchmarks.prompts --data DIR --shots 4 --seeds 0 --out out/prompts

"A perfect bottle." (whole), "A bottle with intact neck, body and rim." (detail), one of the two drawn for each training
sample (both, the product's way), or the empty prompt (none). One model each for all classes, told the same at
inspection; the one told both is inspected under either level. Classes without named parts have the whole level alone.
Finished trainings and figures are kept in --out; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.reader import MANIFEST, NEGATIVE_PROMPT, read_bundle
from anomalysd_edge.core.files import read_json, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import ClassSpec, Prompts
from anomalysd_edge.data.datasets import Dataset, few_tests, open_dataset
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import FIGURES, ClassResult, evaluate, result_of
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.result import MAPS
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.workflows.doctor import examine
from anomalysd_edge.workflows.open_options import Opening
from anomalysd_edge.workflows.train import choose_shots, specs_of

WAYS = ("whole", "detail", "both", "none")
INSPECTED = {"whole": ("whole",), "detail": ("whole",), "both": ("whole", "detail"), "none": ("whole",)}
"""Levels told at inspection; a model told one thing only knows it as its whole level."""


@dataclass(frozen=True)
class Told(ClassSpec):
    """A class whose prompts are cut down to one level, or to nothing."""

    told: str = "both"
    """One of WAYS."""

    def prompts(self) -> Prompts:
        """What the model is told; one level always stands as the whole one."""
        full = super().prompts()
        if self.told == "none":
            return Prompts("", None)
        if self.told == "detail":
            return Prompts(full.detail or full.whole, None)
        return full if self.told == "both" else Prompts(full.whole, None)


def told(spec: ClassSpec, way: str) -> Told:
    """`spec` with its prompts cut down to `way`."""
    return Told(**{f.name: getattr(spec, f.name) for f in fields(ClassSpec)}, told=way)


def main() -> None:
    """Train four models a seed, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled photos, as for sd-edge eval")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, bundles and prompts.json")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seeds", default="0", help="by commas; each chooses the shots and seeds the training")
    parser.add_argument("--steps", type=int, default=None, help="UNet steps; the base's default if left out")
    parser.add_argument("--class-file", type=Path, default=None, help="TOML with nouns, parts, kinds and symmetries")
    parser.add_argument("--tests", type=int, default=None, help="test photos a class, half of them good; default: all")
    parser.add_argument("--ways", default=",".join(WAYS), help="some of them")
    asked = parser.parse_args()
    data = open_dataset(asked.data)
    if asked.tests is not None:
        data = few_tests(data, asked.tests)
    found: dict[str, list[list[ClassResult]]] = {}
    with progress_bars() as progress:
        for seed in map(int, asked.seeds.split(",")):
            for way in asked.ways.split(","):
                for name, results in _measure(asked, data, way, seed, progress):
                    found.setdefault(name, []).append(results)
    for figure, title in (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC")):
        for kind in ("multiscale", "fused"):
            names = [*data.classes, aggregate.MEAN]
            rows = [(n, *(str(aggregate.figure(seeds, n, kind, figure)) for seeds in found.values())) for n in names]
            show_table(f"{aggregate.MAP_NAMES[kind]}, {title}, percent", ("class", *found), rows)
    figures = {
        name: {
            kind: {f: aggregate.figure(seeds, aggregate.MEAN, kind, f).values for f in FIGURES}
            for kind in MAPS
        }
        for name, seeds in found.items()
    }  # fmt: skip
    machine = {finding.what: finding.because for finding in examine()}
    said = {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(asked).items()}
    write_json(asked.out / "prompts.json", {"machine": machine, "settings": said, "mean": figures, "results": found})


def _measure(
    asked: argparse.Namespace, data: Dataset, way: str, seed: int, progress: Progress
) -> Iterator[tuple[str, list[ClassResult]]]:
    """Name of the way (with the level told at inspection where it has two) and its results."""
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.train import train
    from anomalysd_export.exporting import export_run

    def said(phase: str, done: int, total: int, detail: str) -> None:
        progress(f"{way} s{seed} {phase}", done, total, detail)

    folder = asked.out / f"{way}-seed{seed}"
    shots = choose_shots(data, asked.shots, seed)
    specs = {name: told(spec, way) for name, spec in specs_of(shots, asked.class_file, said).items()}
    chosen: dict[str, Any] = {"shots": asked.shots, "seed": seed}
    if asked.steps is not None:
        chosen["steps"] = asked.steps
    settings = TrainSettings.for_base("nano", **chosen)
    run = train(settings, shots, folder / "run", specs, True, said)
    bundle_path = folder / "bundle"
    if not (bundle_path / MANIFEST).is_file():
        export_run(run, bundle_path, specs=specs, progress=said)
    bundle, state = read_bundle(bundle_path), sha256_file(bundle_path / MANIFEST)
    for level in INSPECTED[way]:
        name = way if len(INSPECTED[way]) == 1 else f"{way}, inspected as {level}"
        kept = folder / f"{level}.json"
        if kept.is_file() and (stored := read_json(kept))["key"] == [state, asked.tests]:
            yield name, [result_of(r) for r in stored["results"]]
            continue
        with Opening().detector(bundle_path) as opened:
            detector = Detector(
                opened.networks,
                bundle.schedule(),
                opened.classes,
                replace(opened.settings, prompt=level),
                bundle.constants[NEGATIVE_PROMPT],
            )
            results = evaluate(detector, data, said)
        write_json(kept, {"key": [state, asked.tests], "results": results})
        yield name, results


if __name__ == "__main__":
    main()
