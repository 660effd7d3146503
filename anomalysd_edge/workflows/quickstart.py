"""The whole chain in one call: `sd-edge quickstart` on one's own photos, and what `sd-edge demo` does with its parts.

OUT/run         the fine-tuned model
OUT/bundle      what a box needs
OUT/report      figures and pictures, where the photos are labelled
OUT/MARKER      what was asked for, how far it came, and the results
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.bundle.versions import bundle_id
from anomalysd_edge.core.files import json_ready, sha256_bytes, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import Dataset, open_dataset
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.workflows.evaluate import EvalResult, evaluate_bundle
from anomalysd_edge.workflows.export import export_to
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.train import train_on
from anomalysd_edge.workflows.verify import EXPORT_GATE, VerifyRequest, verify_backends

MARKER = "quickstart.json"
RUN_MARKER = "run.json"
"""Of a finished training (training/run.py, which needs torch)."""


@dataclass(frozen=True)
class ChainResult:
    """What the chain made."""

    bundle: Bundle
    """The bundle, as it was read."""
    verified: Mapping[str, Any]
    """The bundle's networks against those of the run, in torch: ParityReport.to_json(), and its sentence."""
    measured: EvalResult | None
    """Figures on the labelled test photos; None where there are not good and bad ones of any class."""
    seconds: dict[str, float]
    """By part: train, export, verify, inspect; of a part that an earlier call had finished, what it took then."""

    @property
    def passed(self) -> bool:
        """Whether torch and ONNX Runtime agreed."""
        return bool(self.verified["passed"])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        measured = None if self.measured is None else self.measured.to_json()
        return {"seconds": self.seconds, "verify": self.verified, "results": measured}

    @property
    def parts(self) -> str:
        """How long each part took, in words."""
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())


def quickstart(
    photos: Path, out: Path, chosen: Mapping[str, Any], classes: Sequence[str] | None, class_file: Path | None,
    progress: Progress, base: str = "nano",
) -> ChainResult:  # fmt: skip
    """Train, export, verify and, where `photos` has labelled test photos, measure; the same call goes on after a stop.

    `chosen` and `base`: training settings and base model, as train_on takes them. Raises InputError where `out` holds
    something else, or what was begun with other photos or settings, and whatever the parts raise.
    """
    if Path(base).exists() and base != "nano":
        base = str(Path(base).resolve())  # one spelling, wherever the next call is made from
    asked = {
        "photos": str(photos.resolve()),
        "base": base,
        "settings": {name: value for name, value in chosen.items() if value is not None},
        "classes": None if classes is None else list(classes),
        "class_file": None if class_file is None else class_file.read_text(encoding="utf-8"),
    }
    open_dataset(photos)  # before anything is written
    noted = begin(out, MARKER, asked)

    def note(done: Mapping[str, Any]) -> None:
        write_json(out / MARKER, {"asked": asked, "finished": False, **done})

    try:
        found = run_chain(photos, out, chosen, progress, classes, class_file, base=base, noted=noted, note=note)
    except BaseException:
        # Refused before anything was made: what was mistyped must not bind the next call.
        if [file.name for file in out.iterdir()] == [MARKER]:
            (out / MARKER).unlink()
            out.rmdir()
        raise
    write_json(out / MARKER, {**json.loads((out / MARKER).read_text(encoding="utf-8")), "finished": True})
    return found


def begin(out: Path, marker: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make the folder `out`, or go on in it: what was noted there. Raises InputError where it was not begun so."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / marker).is_file())):
        raise InputError(f"{out} is there and was not begun by this command; name another folder with --out")
    if (out / marker).is_file():
        try:
            noted = dict(json.loads((out / marker).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise InputError(f"{out / marker} is damaged ({error}); name another folder with --out") from error
        before = noted.get("asked") or {}
        differ = sorted(key for key in asked if before.get(key) != asked[key])
        if differ:
            raise InputError(f"{out} was begun with other {', '.join(differ)}; name another folder with --out")
        return noted
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / marker, {"asked": asked, "finished": False})
    return {}


def run_chain(
    photos: Path,
    out: Path,
    chosen: Mapping[str, Any],
    progress: Progress,
    classes: Sequence[str] | None = None,
    class_file: Path | None = None,
    *,
    base: str = "nano",
    noted: Mapping[str, Any] | None = None,
    note: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> ChainResult:
    """The parts in their order, below `out`. Finished ones are kept, a training that was stopped goes on.

    `noted`: what `note` got last in an earlier call: seconds, and of which bundle and photos verify and results are.
    """
    run, bundle = out / "run", out / "bundle"
    names = None if classes is None else list(classes)
    before = dict(noted or {})
    state: dict[str, Any] = {"seconds": dict(before.get("seconds", {}))}
    began = time.monotonic()

    def done(name: str, worked: bool) -> None:
        nonlocal began
        if worked or name not in state["seconds"]:
            state["seconds"][name] = round(time.monotonic() - began, 1)
        note(state)
        began = time.monotonic()

    trained = (run / RUN_MARKER).is_file()
    train_on(photos, run, base, chosen, None, names, class_file, True, progress)
    done("train", not trained)
    if exported := not (bundle / MANIFEST).is_file():
        export_to(run, bundle, class_file, None, progress)
    done("export", exported)
    data = open_dataset(photos)
    labelled = any({sample.label for sample in part.test} == {0, 1} for part in data.classes.values())
    state["of"] = {"bundle_id": bundle_id(bundle), "photos": _state_of(data)}
    if before.get("of") == state["of"]:  # else: calibrated meanwhile, or other photos lie there
        state |= {name: before[name] for name in ("verify", "results") if name in before}
    unverified = "verify" not in state
    if unverified:
        agreed = verify_backends(VerifyRequest(bundle=bundle, run=run, photos=photos, gate=EXPORT_GATE), progress)
        state["verify"] = json_ready({**agreed.to_json(), "sentence": agreed.sentence()})
    done("verify", unverified)
    state.setdefault("results", None)
    if labelled:
        unmeasured = state["results"] is None or not (out / "report/report.html").is_file()
        if unmeasured:
            measured = evaluate_bundle(bundle, photos, names, out / "report", InspectOptions(), progress)
            state["results"] = json_ready(measured.to_json())
        done("inspect", unmeasured)
    return ChainResult(read_bundle(bundle), state["verify"], _measured(state["results"]), state["seconds"])


def _state_of(data: Dataset) -> str:
    """A digest that changes when photos or masks come, go or change."""
    files = {
        file
        for part in data.classes.values()
        for file in (*part.train, *(f for sample in part.test for f in (sample.path, sample.mask_path) if f))
    }
    facts = ((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files))
    return sha256_bytes(repr([*facts]).encode(errors="surrogateescape"))


def _measured(results: Mapping[str, Any] | None) -> EvalResult | None:
    """The inverse of EvalResult.to_json."""
    if results is None:
        return None
    found = [evaluate.result_of({**values, "class_name": name}) for name, values in results["classes"].items()]
    return EvalResult(found, {key: value for key, value in results.items() if isinstance(value, str)})
