"""Whether learned prompt contexts help: the same training with the words alone and with vectors in front of them.

    python benchmarks/learned_prompts.py --data DIR --tokens 0,4 --seeds 0,1 --out OUT

Trains, exports and evaluates once for every pair, everything else alike; a row each. S_ms is what prompts can change:
prototypes do not see them. OUT/results.json holds the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import write_json
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.workflows.evaluate import evaluate_bundle
from anomalysd_edge.workflows.export import export_to
from anomalysd_edge.workflows.train import train_on

FIGURES = (
    ("multiscale", "image_auroc"),
    ("multiscale", "pixel_auroc"),
    ("fused", "image_auroc"),
    ("fused", "pixel_auroc"),
)


def main() -> None:
    """Run the pairs; those that lie finished in OUT are not trained again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--class-file", type=Path, default=None)
    parser.add_argument("--tokens", default="0,4", help="numbers of learned vectors, by commas; 0 = the words alone")
    parser.add_argument("--seeds", default="0", help="of training, by commas")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of the vectors")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in (int(word) for word in asked.seeds.split(",")):
        for tokens in (int(word) for word in asked.tokens.split(",")):
            place: Path = asked.out / f"tokens-{tokens}-seed-{seed}"
            chosen = {
                "shots": asked.shots, "seed": seed, "steps": asked.steps, "context_tokens": tokens,
                "context_lr": asked.lr,
            }  # fmt: skip
            with progress_bars() as progress:
                train_on(asked.data, place / "run", "nano", chosen, None, None, asked.class_file, True, progress)
                export_to(place / "run", place / "bundle", None, None, progress)
                found = evaluate_bundle(place / "bundle", asked.data, None, None, ("edge", "cpu", None), progress)
            figures = {f"{which} {what}": evaluate.mean_figure(found.results, which, what) for which, what in FIGURES}
            rows.append({"tokens": tokens, "seed": seed, **figures})
            write_json(asked.out / "results.json", {"data": asked.data.name, "rows": rows})
    columns = ("tokens", "seed", *(f"{which} {what}" for which, what in FIGURES))
    cells = [
        tuple(v if isinstance(v, str) else f"{v:.3f}" if isinstance(v, float) else str(v) for v in r.values())
        for r in rows
    ]
    show_table(f"Learned prompts on {asked.data.name}", columns, cells)


if __name__ == "__main__":
    main()
