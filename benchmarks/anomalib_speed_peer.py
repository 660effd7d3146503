"""anomalib's detectors from a photo's file to its score; run by peer_speed.py, in an environment that has anomalib.

    python anomalib_speed_peer.py prepare JOB.json FOLDER      fits and exports, as a user would
    python anomalib_speed_peer.py judge JOB.json OUT.json      opens what was exported and judges photos one by one
    python anomalib_speed_peer.py draw RESULTS.json OUT.png    accuracy against milliseconds (matplotlib comes with it)

It imports nothing of this project. PatchCore gets timm's EfficientNet-Lite2 with given weights (patchcore_peer.py).
EfficientAD-S keeps random weights: its teacher and the photos that it is taught beside must be downloaded, and a
network's speed does not depend on its weights. Both are exported by anomalib to torch and to OpenVINO and run by
anomalib's own inferencers.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any


def prepare(job: dict[str, Any], folder: Path) -> None:
    """Fit PatchCore to each class's shots; export it, and EfficientAD-S once."""
    import torch
    from anomalib.data.utils import read_image
    from anomalib.models import EfficientAd, Patchcore

    # Beside this file, which is run by its path.
    give_weights = import_module("patchcore_peer").give_weights
    torch.set_num_threads(job["threads"])
    for number, shots in enumerate(job["shots"]):
        model = Patchcore(
            backbone="tf_efficientnet_lite2", layers=job["layers"], pre_trained=False, evaluator=False, visualizer=False
        )
        give_weights(model.model.feature_extractor.feature_extractor, torch.load(job["weights"], weights_only=True))
        transform = model.pre_processor.transform
        model.model.train()
        model.model.feature_extractor.eval()
        with torch.no_grad():
            model.model(torch.stack([transform(read_image(path, as_tensor=True)) for path in shots]))
            model.fit()
        exported(model.eval(), folder / f"patchcore-{number}")
    exported(EfficientAd(model_size="small", evaluator=False, visualizer=False).eval(), folder / "efficientad-0")


def exported(model: Any, folder: Path) -> None:
    """In both of anomalib's forms. Its default leaves the batch open: PatchCore's graph then wants batches of two."""
    from torch.export import Dim

    model.to_torch(folder)
    model.to_openvino(folder, onnx_kwargs={"dynamic_shapes": ({2: Dim("height"), 3: Dim("width")},)})


def judge(job: dict[str, Any]) -> dict[str, Any]:
    """Scores, seconds a photo after the first, and from `began` (time.monotonic) to the first score."""
    if job["form"] == "openvino":
        from anomalib.deploy import OpenVINOInferencer

        threads = {"INFERENCE_NUM_THREADS": job["threads"]}
        model = OpenVINOInferencer(Path(job["model"]) / "weights/openvino/model.xml", device="CPU", config=threads)
    else:
        import os

        os.environ["TRUST_REMOTE_CODE"] = "1"
        import torch
        from anomalib.deploy import TorchInferencer

        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)  # it keeps the graph of every photo otherwise
        model = TorchInferencer(Path(job["model"]) / "weights/torch/model.pt", device="cpu")
    scores: list[float] = []
    seconds: list[float] = []
    first = 0.0
    for path in job["photos"]:
        at = time.perf_counter()
        scores.append(float(model.predict(path).pred_score.item()))
        seconds.append(time.perf_counter() - at)
        first = first or time.monotonic() - job["began"]
    # Of this program: ru_maxrss begins with the parent's.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert peak is not None
    return {"scores": scores, "seconds": seconds[1:], "first_s": first, "peak_bytes": int(peak[1]) * 1024}


def draw(results: dict[str, Any], out: Path) -> None:
    """Every line of peer_speed's results: its median time, and its image AUROC where it has one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"image_auroc": "image AUROC, percent", "balanced_error": "balanced error as shipped, percent"}
    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, (figure_name, title) in zip(both, panels.items(), strict=True):
        for name, found in results["lines"].items():
            at, own = found["median_ms"], name.startswith("sd-edge")
            if figure_name in found:
                place = (at, 100 * found[figure_name])
                axes.plot(*place, "o" if own else "s", color="tab:blue" if own else "tab:orange", markersize=8)
                axes.annotate(name, place, xytext=(2, 6), textcoords="offset points", rotation=40, fontsize=8)
            else:
                axes.axvline(at, color="0.7", linestyle="--", linewidth=1)
                axes.text(
                    at, 0.02, f"{name} (random weights)", transform=axes.get_xaxis_transform(), rotation=90, ha="right",
                    fontsize=8, color="0.4",
                )  # fmt: skip
        axes.set(xscale="log", xlabel="milliseconds a photo, file to verdict, median", title=title)
        axes.set_xlim(5, 3000)
        axes.grid(visible=True, linewidth=0.3)
    both[0].set_ylim(60, 100)
    both[1].set_ylim(60, 0)
    figure.savefig(out, dpi=110)


def main() -> None:
    """One of the three."""
    warnings.simplefilter("ignore")
    what, job, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
    if what == "prepare":
        prepare(job, out)
    elif what == "draw":
        draw(job, out)
    else:
        out.write_text(json.dumps(judge(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
