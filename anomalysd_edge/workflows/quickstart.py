"""The whole chain in one call: `sd-edge quickstart` on one's own photos, and what `sd-edge demo` does with its parts.

OUT/run         the fine-tuned model
OUT/bundle      what a box needs
OUT/report      figures and pictures, where the photos are labelled
OUT/MARKER      what was asked for, how far it came, and at the end the results
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation.backend_parity import ParityReport
from anomalysd_edge.workflows.evaluate import EvalResult, evaluate_bundle
from anomalysd_edge.workflows.export import export_to
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.train import train_on
from anomalysd_edge.workflows.verify import EXPORT_GATE, VerifyRequest, verify_backends

MARKER = "quickstart.json"


@dataclass(frozen=True)
class ChainResult:
    """What the chain made."""

    bundle: Bundle
    """The bundle, as it was read."""
    agreed: ParityReport
    """The bundle's networks against those of the run, in torch."""
    measured: EvalResult | None
    """Figures on the labelled test photos; None where there are not good and bad ones of any class."""
    seconds: dict[str, float]
    """By part: train, export, verify, inspect. A part that was there already took none."""

    @property
    def parts(self) -> str:
        """How long each part took, in words."""
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        measured = None if self.measured is None else self.measured.to_json()
        return {"seconds": self.seconds, "verify": self.agreed.to_json(), "results": measured}


def quickstart(
    photos: Path, out: Path, chosen: Mapping[str, Any], classes: Sequence[str] | None, class_file: Path | None,
    progress: Progress,
) -> ChainResult:  # fmt: skip
    """Train, export, verify and, where `photos` has labelled test photos, measure; the same call goes on after a stop.

    `chosen`: training settings, as train_on takes them. Raises InputError where `out` holds something else, or what was
    begun with other photos or settings, and whatever the parts raise.
    """
    asked = {
        "photos": str(photos.resolve()),
        "settings": {name: value for name, value in chosen.items() if value is not None},
        "classes": None if classes is None else list(classes),
        "class_file": None if class_file is None else class_file.read_text(encoding="utf-8"),
    }
    open_dataset(photos)  # before anything is written
    begin(out, MARKER, asked)
    try:
        found = run_chain(photos, out, chosen, progress, classes, class_file)
    except BaseException:
        # Refused before anything was made: what was mistyped must not bind the next call.
        if [file.name for file in out.iterdir()] == [MARKER]:
            (out / MARKER).unlink()
            out.rmdir()
        raise
    write_json(out / MARKER, {"asked": asked, "finished": True, **found.to_json()})
    return found


def begin(out: Path, marker: str, asked: Mapping[str, Any]) -> None:
    """Make the folder `out`, or go on in it. Raises InputError where it holds something that was not begun so."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / marker).is_file())):
        raise InputError(f"{out} is there and was not begun by this command; name another folder with --out")
    if (out / marker).is_file():
        try:
            before = json.loads((out / marker).read_text(encoding="utf-8")).get("asked")
        except ValueError as error:
            raise InputError(f"{out / marker} is damaged ({error}); name another folder with --out") from error
        differ = sorted(key for key in asked if (before or {}).get(key) != asked[key])
        if differ:
            raise InputError(f"{out} was begun with other {', '.join(differ)}; name another folder with --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / marker, {"asked": asked, "finished": False})


def run_chain(
    photos: Path,
    out: Path,
    chosen: Mapping[str, Any],
    progress: Progress,
    classes: Sequence[str] | None = None,
    class_file: Path | None = None,
) -> ChainResult:
    """The parts in their order, below `out`. Finished ones are kept, a training that was stopped goes on."""
    run, bundle = out / "run", out / "bundle"
    names = None if classes is None else list(classes)
    took: dict[str, float] = {}
    began = time.monotonic()

    def done(name: str) -> None:
        nonlocal began
        took[name], began = round(time.monotonic() - began, 1), time.monotonic()

    train_on(photos, run, "nano", chosen, None, names, class_file, True, progress)
    done("train")
    if not (bundle / MANIFEST).is_file():
        export_to(run, bundle, class_file, None, progress)
    done("export")
    agreed = verify_backends(VerifyRequest(bundle=bundle, run=run, photos=photos, gate=EXPORT_GATE), progress)
    done("verify")
    measured = None
    if any({sample.label for sample in part.test} == {0, 1} for part in open_dataset(photos).classes.values()):
        measured = evaluate_bundle(bundle, photos, names, out / "report", InspectOptions(), progress)
        done("inspect")
    return ChainResult(read_bundle(bundle), agreed, measured, took)
