"""anomalib's PatchCore on given shots and test photos, with given EfficientNet-Lite2 weights; run by peers.py.

    python patchcore_peer.py JOB.json OUT

It runs in a virtual environment of its own (peers-requirements.txt) and imports nothing of this project. JOB.json
names the weights file, the layers, the coreset ratio, the seed, the classes' shots and test photos, and a probe: an
input with the features that this project's own network gives for it, so that both are shown to see the same. OUT gets
an npz per class (scores (N,), maps (N,256,256) float32, seconds, bank, thresholds (2,)) and peer.json; a class that is
there is kept. The thresholds are those of anomalib's default rule, F1AdaptiveThreshold over a validation set: with the
shots alone for one, which is all that there is where nobody has a photo of a defect, and with the labelled test photos
themselves, as its data modules of published data sets have it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIDE_PX = 256
BATCH = 8


def main() -> None:
    """Read the job, fit and judge class by class."""
    warnings.simplefilter("ignore")
    import numpy as np
    import torch
    from anomalib.data.utils import read_image
    from anomalib.metrics.threshold.f1_adaptive_threshold import _F1AdaptiveThreshold
    from anomalib.models import Patchcore

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    weights = torch.load(job["weights"], map_location="cpu", weights_only=True)
    transform = Patchcore.configure_pre_processor(image_size=(SIDE_PX, SIDE_PX)).transform
    facts: dict[str, Any] = {
        "versions": {name: version(name) for name in ("anomalib", "timm", "torch", "torchvision")},
        "layers": job["layers"],
        "coreset": job["coreset"],
    }
    for photos in job["classes"].values():
        done = out / f"{photos['file']}.npz"
        if done.is_file() and "feature_difference" in facts:
            continue
        began = time.monotonic()
        model = Patchcore(
            backbone="tf_efficientnet_lite2",
            layers=job["layers"],
            pre_trained=False,
            coreset_sampling_ratio=job["coreset"],
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
        give_weights(model.model.feature_extractor.feature_extractor, weights)
        facts["feature_difference"] = probe(model.model, job["probe"], np, torch)
        if done.is_file():
            continue

        def seen(paths: list[str]) -> Any:
            return torch.stack([transform(read_image(path, as_tensor=True)) for path in paths])

        model.model.train()
        model.model.feature_extractor.eval()
        with torch.no_grad():
            model.model(seen(photos["shots"]))
            torch.manual_seed(job["seed"])  # the coreset begins at a random patch
            model.fit()
            model.model.eval()
            answers = [model.model(seen(paths)) for paths in batches(photos["test"])]
            normals = [model.model(seen(paths)).pred_score for paths in batches(photos["shots"])]

        def threshold(scores: list[Any], labels: list[int]) -> float:
            rule = _F1AdaptiveThreshold()
            rule.update(torch.cat(scores).flatten(), torch.tensor(labels))
            return float(rule.compute())

        thresholds = (
            threshold(normals, [0] * len(photos["shots"])),
            threshold([a.pred_score for a in answers], photos["labels"]),
        )
        aside = done.with_suffix(".aside.npz")
        np.savez(
            aside,
            scores=np.concatenate([a.pred_score.numpy() for a in answers]).astype(np.float32),
            maps=np.concatenate([a.anomaly_map[:, 0].numpy() for a in answers]).astype(np.float32),
            seconds=time.monotonic() - began,
            bank=len(model.model.memory_bank),
            thresholds=np.array(thresholds),
        )
        aside.replace(done)
    (out / "peer.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def batches(paths: list[str]) -> list[list[str]]:
    """The same, BATCH at a time."""
    return [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]


def give_weights(network: Any, weights: dict[str, Any]) -> None:
    """Put the file's tensors into timm's network: other names, the same order. Every shape must fit."""
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = [(k, v) for k, v in weights.items() if not k.endswith("num_batches_tracked")]
    chosen = {}
    for (name, mine), (theirs, value) in zip(own.items(), given, strict=False):
        if mine.shape != value.shape:
            sys.exit(f"the weights' {theirs} is {tuple(value.shape)}, timm's {name} is {tuple(mine.shape)}")
        chosen[name] = value
    missing = own.keys() - chosen.keys()
    if missing:
        sys.exit(f"the weights file ended before timm's {sorted(missing)[0]}")
    network.load_state_dict(chosen, strict=False)


def probe(model: Any, file: str, np: Any, torch: Any) -> float:
    """Largest difference between timm's features and the project's own, as a share of the largest feature."""
    known = np.load(file)
    model.feature_extractor.eval()
    with torch.no_grad():
        found = model.feature_extractor(torch.from_numpy(known["input"]))
    worst = 0.0
    for layer, features in found.items():
        own = known[layer]
        # np.maximum keeps NaN, max would drop it.
        worst = float(np.maximum(worst, np.abs(features.numpy() - own).max() / np.abs(own).max()))
    return worst


if __name__ == "__main__":
    main()
