"""From a photo's file to its verdict beside anomalib, in one run: the same photos and shots, as many threads.

    python -m benchmarks.peer_speed --bundle BUNDLE --run RUN --data DIR --tests 16 --peer-python PEER --out FILE

BUNDLE was exported from RUN, whose shots PatchCore is fitted to (the same EfficientNet-Lite2 weights, anomalib's
defaults). Every line is a process of its own for each class, and they take turns class by class: photos one at a time,
from file to verdict, the first one apart, since it is part of starting up. EfficientAD-S has random weights
(anomalib_speed_peer.py), so that it has no accuracy here. PatchCore's balanced error is at the highest score of its
shots, which is its threshold rule where nobody has a photo of a defect. PEER is a Python that has anomalib and openvino
(peers-requirements.txt). A picture of accuracy against milliseconds lies beside FILE, as .png.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.data.datasets import Dataset, open_dataset
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation.metrics import balanced_error, best_balanced_error, image_auroc
from anomalysd_edge.profiling.hardware import peak_rss_bytes
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb
from benchmarks import harness
from benchmarks.peers import LAYERS, PatchcoreSettings, backbone_weights

PEER = Path(__file__).with_name("anomalib_speed_peer.py")
OWN = {"sd-edge": "default", "sd-edge --full": "full", "sd-edge, prototypes alone": "prototypes"}
"""Lines of the table, and how each judges."""
PEERS = {
    "anomalib PatchCore, OpenVINO": ("patchcore", "openvino"),
    "anomalib PatchCore, torch": ("patchcore", "torch"),
    "anomalib EfficientAD-S, OpenVINO": ("efficientad", "openvino"),
    "anomalib EfficientAD-S, torch": ("efficientad", "torch"),
}
COLUMNS = (
    "line",
    "median ms",
    "p95 ms",
    "photos/s",
    "start-up s",
    "peak MiB",
    "installed MiB",
    "image AUROC",
    "bal. error",
)


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    bundle: Path
    peer_python: Path
    threads: int


@dataclass
class Line:
    """What one way of judging took and said."""

    seconds: list[float] = field(default_factory=list)
    """A photo, after the first of a process."""
    first_s: list[float] = field(default_factory=list)
    """From the start of a process to its first verdict."""
    peak_bytes: list[int] = field(default_factory=list)
    figures: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each class: image AUROC, balanced error as shipped, and at the best threshold."""

    def summary(self) -> dict[str, float]:
        """Plain figures over all classes."""
        median, late = np.percentile(1e3 * np.array(self.seconds), [50, 95])
        found = {
            "median_ms": float(median),
            "p95_ms": float(late),
            "photos_per_second": len(self.seconds) / sum(self.seconds),
            "start_s": float(np.median(self.first_s)),
            "peak_mib": max(self.peak_bytes) / 2**20,
        }
        if self.figures:
            means = np.mean(self.figures, axis=0).tolist()
            found |= dict(zip(("image_auroc", "balanced_error", "best_balanced_error"), means, strict=True))
        return found


def judge_own(job: Mapping[str, Any]) -> dict[str, Any]:
    """This project's side of anomalib_speed_peer.judge; with its verdicts."""
    from anomalysd_runtime.loading import open_detector

    scores: list[float] = []
    labels: list[int] = []
    seconds: list[float] = []
    first = 0.0
    with open_detector(job["model"], threads=job["threads"]) as opened:
        alone = replace(opened.settings, cells="none")
        detector = opened.under(alone, opened.classes) if job["form"] == "prototypes" else opened
        for path in job["photos"]:
            at = time.perf_counter()
            (answer,) = detector.inspect([load_rgb(Path(path))], job["class"], full=job["form"] == "full")
            seconds.append(time.perf_counter() - at)
            first = first or time.monotonic() - job["began"]
            scores.append(answer.pred_score)
            labels.append(int(answer.pred_label or 0))
    return {
        "scores": scores,
        "labels": labels,
        "seconds": seconds[1:],
        "first_s": first,
        "peak_bytes": peak_rss_bytes(),
    }


def judged(command: Sequence[str], job: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run one judging process. Raises InputError with its last words where it fails."""
    asked, out = work / "job.json", work / "out.json"
    write_json(asked, {**job, "began": time.monotonic()})
    done = subprocess.run([*command, str(asked), str(out)], capture_output=True, text=True, check=False, cwd=work)
    if done.returncode:
        raise InputError(
            f"{command[0]} ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        )
    return dict(read_json(out))


def measure(asked: Asked, data: Dataset, shots: Mapping[str, Sequence[Path]], work: Path) -> dict[str, Line]:
    """Every line on every class, in turns."""
    files = [[str(file.resolve()) for file in shots[name]] for name in data.classes]
    prepared = {
        "shots": files,
        "weights": str(backbone_weights()),
        "layers": [layer for layer in PatchcoreSettings(asked.peer_python).layers if layer in LAYERS],
        "threads": asked.threads,
    }
    write_json(work / "prepare.json", prepared)
    peer = [str(asked.peer_python), str(PEER)]
    made = subprocess.run(
        [*peer, "prepare", str(work / "prepare.json"), str(work)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise InputError(f"anomalib could not be prepared: {made.stderr.strip().splitlines()[-1]}")
    found: dict[str, Line] = {name: Line() for name in (*OWN, *PEERS)}
    own = [sys.executable, "-m", "benchmarks.peer_speed", "--judge"]
    with progress_bars() as progress:
        for number, (name, part) in enumerate(data.classes.items()):
            progress("judge", number, len(data.classes), name)
            labels = [sample.label for sample in part.test]
            photos = [str(sample.path.resolve()) for sample in part.test]
            # The first photo is judged once more, so that every photo's time is of a process that has started up.
            job = {"threads": asked.threads, "photos": [photos[0], *photos], "class": name}
            for line, form in OWN.items():
                answer = judged(own, {**job, "form": form, "model": str(asked.bundle.resolve())}, work)
                note(found[line], answer, labels, answer["labels"][1:])
            for line, (kind, form) in PEERS.items():
                model = work / (f"{kind}-{number}" if kind == "patchcore" else f"{kind}-0")
                answer = judged([*peer, "judge"], {**job, "form": form, "model": str(model)}, work)
                if kind == "patchcore":
                    own_shots = judged(
                        [*peer, "judge"],
                        {**job, "photos": files[number], "form": form, "model": str(model)},
                        work,
                    )
                    called = np.array(answer["scores"][1:]) > max(own_shots["scores"])
                    note(found[line], answer, labels, called.astype(int).tolist())
                else:
                    note(found[line], answer, labels, None)
    return found


def note(line: Line, answer: Mapping[str, Any], labels: Sequence[int], called: Sequence[int] | None) -> None:
    """Add one class to a line; without verdicts its accuracy is left out."""
    line.seconds += answer["seconds"]
    line.first_s.append(answer["first_s"])
    line.peak_bytes.append(answer["peak_bytes"])
    if called is not None:
        scores = answer["scores"][1:]
        line.figures.append(
            (image_auroc(labels, scores), balanced_error(labels, called), best_balanced_error(labels, scores)[0])
        )


def installed_mib(python: Path) -> float:
    """Size of what is installed for an interpreter, without pip and setuptools."""
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    folder = Path(subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    files = (f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return sum(f.stat().st_size for f in files if f.relative_to(folder).parts[0] not in ("pip", "setuptools")) / 2**20


def main() -> None:
    """Measure and print, or judge for a measuring process."""
    if sys.argv[1:2] == ["--judge"]:
        job, out = Path(sys.argv[2]), Path(sys.argv[3])
        out.write_text(json.dumps(judge_own(read_json(job))), encoding="utf-8")
        return
    from anomalysd_edge.training.run import read_run  # torch, which a judging process must not count

    parser = harness.parser_of(__doc__, "--bundle", "--data", "--classes", "--tests", "--threads", "--out")
    parser.add_argument("--run", type=Path, required=True, help="the run that BUNDLE came from")
    parser.add_argument("--peer-python", type=Path, required=True, help="Python that has anomalib and openvino")
    parser.add_argument("--box-python", type=Path, default=None, help="Python of an installed box: its size is stated")
    asked = parser.parse_args()
    run = read_run(asked.run)
    classes = asked.classes.split(",") if asked.classes else list(run.specs)
    data = harness.few_tests(open_dataset(asked.data, classes), asked.tests)
    with tempfile.TemporaryDirectory() as folder:
        how = Asked(asked.bundle, asked.peer_python, asked.threads)
        lines = measure(how, data, {name: run.shots[name] for name in data.classes}, Path(folder))
    sizes = {"anomalib": installed_mib(asked.peer_python)}
    if asked.box_python:
        sizes["sd-edge"] = installed_mib(asked.box_python)
    found = {line: one.summary() for line, one in lines.items()}
    write_json(asked.out, {**harness.facts(asked), "installed_mib": sizes, "lines": found})
    picture = [str(asked.peer_python), str(PEER), "draw", str(asked.out), str(asked.out.with_suffix(".png"))]
    subprocess.run(picture, check=True)
    show_table("From file to verdict", COLUMNS, [row_of(line, figures, sizes) for line, figures in found.items()])


def row_of(line: str, figures: Mapping[str, float], sizes: Mapping[str, float]) -> tuple[str, ...]:
    """A line of the table."""
    size = sizes.get(line.split(maxsplit=1)[0].rstrip(","))
    return (
        line,
        *(f"{figures[key]:.0f}" for key in ("median_ms", "p95_ms")),
        *(f"{figures[key]:.1f}" for key in ("photos_per_second", "start_s")),
        f"{figures['peak_mib']:.0f}",
        "" if size is None else f"{size:.0f}",
        *(f"{100 * figures[key]:.1f}" if key in figures else "" for key in ("image_auroc", "balanced_error")),
    )


if __name__ == "__main__":
    main()
