"""`sd-edge hub`: a bundle, its card and its trained weights as a model hub expects them (the layout: fleet/hub.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.reader import MANIFEST, Bundle, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.versions import bundle_id, link
from anomalysd_edge.core.files import folder_aside, read_json
from anomalysd_edge.errors import InputError
from anomalysd_edge.fleet.hub import BUNDLE, CARD, PLACEHOLDER
from anomalysd_edge.fleet.registry import transferred_files
from anomalysd_edge.reports.model_card import model_card


def write_hub_folder(bundle_path: Path, out: Path, run: Path | None = None, figures: Path | None = None) -> Bundle:
    """Write `out`; files are linked where the file system allows it. Photos of the run stay out.

    `run`: the run that the bundle was exported from, for its trained weights; `figures`: results.json of an eval of
    this very bundle, or its folder. Raises InputError for a run or figures of another bundle, and what read_bundle and
    read_run raise.
    """
    bundle = read_bundle(bundle_path)
    measured = None if figures is None else _measured(figures, bundle_path)
    weights = None if run is None else _weights(run, bundle)
    with folder_aside(out, marker=CARD) as aside:
        if weights is not None:
            for part in sorted(weights.iterdir()):
                link(part, aside / part.name)
            for name in ("lora", "contexts.safetensors"):
                if (part := weights.parent / name).exists():
                    link(part, aside / name)
        named = (MANIFEST, SIGNATURE, *(record.path for record in transferred_files(bundle.manifest)))
        for name in named:
            if (bundle_path / name).is_file():
                target = aside / BUNDLE / name
                target.parent.mkdir(parents=True, exist_ok=True)
                link(bundle_path / name, target)
        card = model_card(out.resolve().name, PLACEHOLDER, bundle.manifest, measured, weights is not None)
        (aside / CARD).write_text(card, encoding="utf-8")
    return bundle


def _measured(figures: Path, bundle: Path) -> Mapping[str, Any]:
    file = figures / "results.json" if figures.is_dir() else figures
    value = read_json(file)
    found, wanted = value.get("bundle_id") if isinstance(value, dict) else None, bundle_id(bundle)
    if found != wanted:
        of = f"of the bundle {found}" if found else "of no bundle that it names"
        raise InputError(
            f"{file} has figures {of}, and {bundle} is {wanted}; measure it: sd-edge eval {bundle} --out ..."
        )
    measured: Mapping[str, Any] = value
    return measured


def _weights(run: Path, bundle: Bundle) -> Path:
    """RUN/model, unchanged, of the run that the bundle came from."""
    from anomalysd_edge.training.models.base import folder_sha256
    from anomalysd_edge.training.run import read_run

    found = read_run(run)
    if bundle.manifest.training.get("run_sha256") != found.sha256:
        raise InputError(f"{bundle.path} was not exported from {run}; name the run that it was exported from")
    if folder_sha256(found.model) != found.record["model_sha256"]:
        raise InputError(f"a file in {found.model} was changed since the run was written; restore it")
    return found.model
