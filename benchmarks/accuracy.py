"""Side by side on the same shots and test photos: the detector's maps alone, its presets, and anomalib's PatchCore.

    python -m benchmarks.accuracy --data DIR --shots 1,4 --seeds 0,1,2 --class-file benchmarks/classes.toml \\
        --peer-python /somewhere/peer/bin/python --paper 12 --out out/accuracy

Runs `sd-edge protocol` first (prototypes alone, S_ms, S_pg, fused), in the same folder, so what is trained is used
again; then the peer with the same backbone weights (peers-requirements.txt), and the paper preset beside the edge
preset on a seeded few of the test photos. Whatever is finished is kept; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalysd_edge.cli.measuring import numbers
from anomalysd_edge.core.files import read_json, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Dataset, few_tests
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import ClassResult, evaluate, result_of
from anomalysd_edge.method.result import MAPS
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.reports.protocol import write
from anomalysd_edge.workflows.doctor import examine
from anomalysd_edge.workflows.protocol import (
    Cell,
    ProtocolRequest,
    ProtocolResult,
    read_result,
    result_file,
    run_protocol,
)
from anomalysd_edge.workflows.train import choose_shots
from benchmarks.peers import MAP, PatchcoreSettings, patchcore


def main() -> None:
    """Measure, print, write results.json."""
    settings = _parser().parse_args()
    asked = ProtocolRequest(
        data=settings.data,
        out=settings.out,
        classes=tuple(settings.classes.split(",")) if settings.classes else None,
        shots=numbers(settings.shots),
        seeds=tuple(settings.seeds.split(",")),
        class_file=settings.class_file,
        base=settings.base,
        steps=settings.steps,
        calibrate=settings.calibrate,
    )
    # Names, not paths: where the data lay on one machine says nothing to another.
    said = {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(settings).items()}
    collected: dict[str, Any] = {"machine": {f.what: f.because for f in examine()}, "settings": said}
    with progress_bars() as progress:
        measured = run_protocol(asked, progress)
        write(measured.report(), measured.to_json(), asked.out)
        collected.update(measured.to_json())
        columns = {"edge preset": measured}
        for ratio in settings.peer_coreset.split(",") if settings.peer_python else ():
            peer, facts = _peer(measured, settings.peer_python, float(ratio), progress)
            columns[f"PatchCore, coreset {ratio}"] = peer
            kept = {"facts": facts, "summary": summary_of(peer, MAP)}
            collected.setdefault("patchcore", {})[ratio] = kept
        presets = _presets(measured, settings.paper, progress) if settings.paper else {}
    for shots, seeds in measured.by_shots().items():
        show_table(f"{shots}-shot, image / pixel AUROC", ("class", *_ways(columns)), _rows(columns, shots))
        show_table(f"{shots}-shot, fused", aggregate.COLUMNS, aggregate.rows(seeds))
    if presets:
        collected["presets"] = {"photos_per_class": settings.paper, **{k: v.to_json() for k, v in presets.items()}}
        for shots in presets["paper"].by_shots():
            both = {"edge": presets["edge"], "paper": presets["paper"]}
            names = [f"{preset}: {aggregate.MAP_NAMES[kind]}" for preset in both for kind in MAPS]
            title = f"{shots}-shot, {settings.paper} photos a class, image / pixel AUROC"
            show_table(title, ("class", *names), [
                (name, *(_pair(found, shots, name, kind) for found in both.values() for kind in MAPS))
                for name in _names(presets["edge"], shots)
            ])  # fmt: skip
    write_json(settings.out / "accuracy.json", collected)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled photos, as for sd-edge protocol")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, bundles, reports, accuracy.json")
    parser.add_argument("--classes", default=None, help="some of them, by commas")
    parser.add_argument("--shots", default="1,4", help="numbers of good photos per class, by commas")
    parser.add_argument("--seeds", default="0,1,2", help="by commas; 'first' takes the first photos")
    parser.add_argument("--class-file", type=Path, default=None, help="TOML with nouns, kinds and symmetries")
    parser.add_argument("--base", default="nano", help="model to fine-tune")
    parser.add_argument("--steps", type=int, default=None, help="UNet steps; the base's default if left out")
    parser.add_argument("--calibrate", action="store_true", help="let each class choose its own settings")
    parser.add_argument("--peer-python", type=Path, default=None, help="Python that has anomalib")
    parser.add_argument("--peer-coreset", default="0.1,1", help="shares of patches that PatchCore keeps")
    parser.add_argument("--paper", type=int, default=0, help="test photos a class for the paper preset; 0 = none")
    return parser


def _peer(
    measured: ProtocolResult, python: Path, coreset: float, progress: Progress
) -> tuple[ProtocolResult, dict[str, Any]]:
    """PatchCore on every cell with shots; its facts are the last cell's."""
    cells = [cell for cell in measured.cells if cell.shots]
    found: dict[Cell, list[ClassResult]] = {}
    facts: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        progress(f"peer {coreset:g}", number, len(cells), cell.label)
        how = PatchcoreSettings(python, coreset=coreset, seed=cell.shot_seed or 0)
        shots = choose_shots(measured.data, cell.shots, cell.shot_seed)
        found[cell], facts = patchcore(how, measured.data, shots, cell.folder)
    progress(f"peer {coreset:g}", len(cells), len(cells), "done")
    return replace(measured, cells=found), facts


def _presets(measured: ProtocolResult, count: int, progress: Progress) -> dict[str, ProtocolResult]:
    """The paper and the edge preset on the same few photos, for the first seed of every number of shots."""
    few = few_tests(measured.data, count)
    first = {cell.shots: cell for cell in reversed(measured.cells)}.values()
    return {
        preset: replace(
            measured,
            data=few,
            cells={
                cell: list(_preset(measured, cell, few, preset, count, progress))
                for cell in first
            },
        )
        for preset in ("edge", "paper")
    }  # fmt: skip


def _preset(
    measured: ProtocolResult, cell: Cell, few: Dataset, preset: str, count: int, progress: Progress
) -> Iterator[ClassResult]:
    """One preset on one bundle, class by class, kept beside the protocol's own results."""
    bundle, folder = cell.folder / "bundle", cell.folder / f"{preset}-{count}"
    state = sha256_file(bundle / "manifest.json")
    opening = replace(measured.request.opening, preset=preset)
    for name, part in few.classes.items():
        kept = read_result(folder, name)
        if kept is None or kept["key"] != state:
            one = Dataset(few.root, few.layout, {name: part})

            def told(_phase: str, done: int, total: int, detail: str) -> None:
                progress(f"{cell.label} {preset}", done, total, detail)

            with opening.detector(bundle) as detector:
                (made,) = evaluate(detector, one, told)
            write_json(result_file(folder, name), {"key": state, "result": made})
            kept = read_json(result_file(folder, name))
        yield result_of(kept["result"])


def summary_of(found: ProtocolResult, kind: str) -> dict[str, Any]:
    """By number of shots, class and figure: mean, spread and values of one map."""
    return {
        str(shots): {
            name: {
                what: {"mean": s.mean, "spread": s.spread, "values": list(s.values)}
                for what in ("image_auroc", "pixel_auroc", "aupro", "f1_max", "average_precision")
                for s in [aggregate.figure(seeds, name, kind, what)]
            }
            for name in [*aggregate.class_names(seeds), aggregate.MEAN]
        }
        for shots, seeds in found.by_shots().items()
    }


def _ways(columns: dict[str, ProtocolResult]) -> list[str]:
    return [*(aggregate.MAP_NAMES[kind] for kind in MAPS[:-1]), *columns]


def _rows(columns: dict[str, ProtocolResult], shots: int) -> list[tuple[str, ...]]:
    own = columns["edge preset"]
    peers = [found for name, found in columns.items() if name != "edge preset"]
    return [
        (name, *(_pair(own, shots, name, kind) for kind in MAPS), *(_pair(p, shots, name, MAP) for p in peers))
        for name in _names(own, shots)
    ]


def _names(found: ProtocolResult, shots: int) -> list[str]:
    return [*aggregate.class_names(found.by_shots()[shots]), aggregate.MEAN]


def _pair(found: ProtocolResult, shots: int, name: str, kind: str) -> str:
    seeds = found.by_shots().get(shots, [])
    return " / ".join(str(aggregate.figure(seeds, name, kind, what)) for what in ("image_auroc", "pixel_auroc"))


if __name__ == "__main__":
    main()
