"""One model for all classes of a folder, on its test photos: prototypes alone, S_ms, S_pg and fused, side by side.

    python benchmarks/accuracy.py --data DIR --shots 1,4 --steps 2400 \\
        --class-file benchmarks/classes.toml --out out/accuracy

Trains, exports and evaluates for each number of shots; a training that lies in --out is taken up where it stopped.
Prints a table each and writes results.json with the machine and the versions. The first K of the sorted good photos are
the shots unless --shot-seed chooses others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from anomalysd_edge.console import progress_bars, show_table
from anomalysd_edge.doctor import examine
from anomalysd_edge.files import write_json
from anomalysd_edge.workflow import evaluate_bundle, export_to, train_on


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set in MVTec-AD layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, bundles, reports and results.json")
    parser.add_argument("--shots", default="1,4", help="numbers of good photos per class, by commas")
    parser.add_argument("--class-file", type=Path, default=None, help="TOML with nouns, kinds and symmetries")
    parser.add_argument("--base", default="nano", help="model to fine-tune")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--shot-seed", type=int, default=None, help="choose the shots by this seed")
    parser.add_argument("--steps", type=int, default=None, help="UNet steps; the base's default if left out")
    parser.add_argument("--preset", default="edge", help="inspection preset")
    settings = parser.parse_args()
    machine = {finding.what: finding.because for finding in examine()}
    # Names, not paths: where the data lay on one machine says nothing to another.
    asked = {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(settings).items()}
    collected: dict[str, object] = {"machine": machine, "settings": asked}
    for shots in (int(k) for k in settings.shots.split(",")):
        place: Path = settings.out / f"{shots}-shot"
        chosen = {"shots": shots, "seed": settings.seed, "steps": settings.steps}
        with progress_bars() as progress:
            run = train_on(
                settings.data, place / "run", settings.base, chosen, settings.shot_seed, None, settings.class_file,
                True, progress,
            )  # fmt: skip
            trained = time.monotonic()
            export_to(place / "run", place / "bundle", None, None, progress)
            exported = time.monotonic()
            how = (settings.preset, "cpu", None)
            found = evaluate_bundle(place / "bundle", settings.data, None, place / "report", how, progress)
        # The run's own clock counts every sitting of a training that was taken up.
        seconds = {"train": run.record["seconds"], "export": exported - trained, "eval": time.monotonic() - exported}
        collected[f"{shots}-shot"] = {"seconds": seconds, **found.to_json()}
        write_json(settings.out / "results.json", collected)
        show_table(
            f"{shots}-shot, image/pixel AUROC per map, then the fused map, in percent", found.columns, found.rows
        )


if __name__ == "__main__":
    main()
