"""The README.md of a bundle on a model hub: front matter that the hub reads, and text for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from anomalysd_edge.bundle.manifest import PRODUCT, Manifest

FIGURES = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "balanced_error": "Balanced error at the shipped threshold",
    "f1": "F1 at the shipped threshold",
}
"""What a card tells of what was measured: the hub's metric type -> its name. Fractions in [0,1]."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def model_card(name: str, address: str, manifest: Manifest, measured: Mapping[str, Any] | None, weights: bool) -> str:
    """The card of a bundle.

    `name`: of the model; `address`: OWNER/NAME on the hub; `measured`: results.json of `sd-edge eval`, None where
    nothing was measured; `weights`: whether the trained weights lie beside the bundle.
    """
    rows = [] if measured is None else [(part, figures(values)) for part, values in measured["classes"].items()]
    head: dict[str, Any] = {
        **_license(manifest),
        "library_name": PRODUCT,
        "pipeline_tag": "image-segmentation",
        "tags": [
            "anomaly-detection", "visual-inspection", "few-shot", "onnx", "stable-diffusion",
            *(["diffusers", "safetensors"] if weights else []),
        ],
    }  # fmt: skip
    if _HUB_ID.fullmatch(manifest.base.name):
        head |= {"base_model": manifest.base.name, "base_model_relation": "finetune"}
    if measured is not None:
        head["model-index"] = [{"name": name, "results": [_result(measured, *row) for row in rows]}]
    # A JSON value is a YAML value.
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in head.items())
    return f"---\n{front}---\n\n{_text(name, address, manifest, measured, rows, weights)}"


def figures(values: Mapping[str, Any]) -> dict[str, float]:
    """FIGURES of a class of results.json, those that are defined."""
    found = {**values["figures"].get("fused", {}), **values.get("verdicts", {})}
    return {key: float(found[key]) for key in FIGURES if found.get(key) is not None}


def _license(manifest: Manifest) -> dict[str, str]:
    """The base's decides: the other networks' (Apache-2.0, BSD) ask for no more than a notice."""
    base = manifest.base.name
    if base == "nano":
        return {"license": "apache-2.0"}
    link = {"license_link": f"https://huggingface.co/{base}"} if _HUB_ID.fullmatch(base) else {}
    return {"license": "other", "license_name": "of-the-base-model", **link}


def _result(measured: Mapping[str, Any], part: str, found: Mapping[str, float]) -> dict[str, Any]:
    data = str(measured["data"])
    return {
        "task": {"type": "image-segmentation", "name": "Anomaly detection"},
        "dataset": {"type": data, "name": f"{data}, {part}"},
        "metrics": [{"type": key, "name": FIGURES[key], "value": value} for key, value in found.items()],
    }


def _text(
    name: str,
    address: str,
    manifest: Manifest,
    measured: Mapping[str, Any] | None,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    weights: bool,
) -> str:
    size = manifest.sizes.size_px
    classes = [
        (_cell(part), record.kind, record.shots, _cell(record.prompts.whole))
        for part, record in manifest.classes.items()
    ]
    if measured is None:
        told = "Not measured on labelled photos before it was published."
    else:
        table = [(_cell(part), *(_percent(found.get(key)) for key in FIGURES)) for part, found in rows]
        told = (
            f"On {_cell(str(measured['data']))}, preset {measured['preset']}, {measured['backend']}, percent:\n\n"
            + _table(("class", *FIGURES.values()), table).rstrip()
        )
    base = f"`{manifest.base.name}` (sha256 {manifest.base.sha256[:16]})"
    trained = (
        "\nThe trained model lies beside it in diffusers' layout: "
        f'`StableDiffusionInpaintPipeline.from_pretrained("{address}")`, or `sd-edge train --base {address}`.\n'
        if weights
        else ""
    )
    return f"""# {name}

Few-shot anomaly detection by repainting, written by {PRODUCT} {manifest.version}: masked regions of a photo are
repainted as they would look if the part were good, and photo and repaint are compared. `bundle/` holds ONNX graphs at
{size} px, prompt states, memory banks of good parts and thresholds. It runs without torch.

## Use

```text
pip install "anomalysd-edge[fleet,cpu]"
sd-edge pull hf://{address} --into BUNDLES
sd-edge inspect BUNDLES/{address.partition("/")[2]} PHOTO --class {json.dumps(next(iter(manifest.classes)))}
```
{trained}
## Classes

It judges photos of these parts, taken as the good photos were that it was made from, and no others:

{_table(("class", "kind", "good photos", "prompt"), classes)}
A verdict is good, anomalous or uncertain. Another camera, light or position of the part needs thresholds of its own:
`sd-edge calibrate`.

## Measured

{told}

## Made from

Base model: {base}. Method: AnomalySD, [arXiv:2408.01960](https://arxiv.org/abs/2408.01960). Licences of the weights:

{"".join(f"- {line}" + chr(10) for line in manifest.licenses) or "- none was recorded" + chr(10)}"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cell(text: str) -> str:
    """Text of a table's cell: names of folders may hold anything."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", " ".join(text.split()))
