"""A verdict as it is returned, recorded and published: one layout for HTTP, page, folders, MQTT and webhooks."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision import heatmap, images
from anomalysd_edge.vision.morphology import label_regions
from anomalysd_runtime.server.errors import BadRequest, NotFound

SCHEMA = "sd-edge.verdict.1"
"""Named in every verdict that leaves the box; a change of a field's meaning raises its number."""
OUTPUTS = ("map", "heat", "overlay", "repaint", "evidence", "mask")
"""Pictures that a client may ask for."""
MAX_REGIONS = 50
RECORDED_PX = 512
"""Side of a photo's picture where no score map gives one."""
Correction = Literal["ok", "ng"]
"""An operator's correction of a verdict."""


def _about(description: str, json_name: str | None = None, unique: bool = False, check: str = "") -> dict[str, Any]:
    """What the JSON answer and the SQL table say of a field beyond its name and type."""
    return {"description": description, "json_name": json_name, "unique": unique, "check": check}


@dataclass(frozen=True)
class Verdict:
    """Everything that is known of one inspected photo, in plain values.

    The one definition of a verdict: the table of the record and the schema of the HTTP answer are derived from it.
    """

    uid: str = field(metadata=_about("32 hexadecimal digits, made by this box.", unique=True))
    at: float = field(metadata=_about("UTC, seconds since 1970."))
    source: str = field(metadata=_about("http, v2, watch or mqtt."))
    client: str = field(metadata=_about("Name of its token or its address, and its X-Client label."))
    photo: str = field(metadata=_about("Name that the client gave the photo."))
    photo_sha256: str = field(metadata=_about("SHA-256 of the bytes that came."))
    width_px: int = field(metadata=_about("Width of the photo."))
    height_px: int = field(metadata=_about("Height of the photo."))
    bundle: str = field(metadata=_about("Name of the bundle."))
    bundle_id: str = field(metadata=_about("Digest of its manifest."))
    preset: str = field(metadata=_about("Inspection preset."))
    settings: dict[str, Any] = field(metadata=_about("The preset's settings."))
    class_name: str = field(metadata=_about("Class that the photo was inspected as.", json_name="class"))
    pred_score: float = field(metadata=_about("Larger is more anomalous."))
    threshold: float | None = field(
        metadata=_about("A score at or above it is anomalous; null where the class has none.")
    )
    pred_label: int | None = field(metadata=_about("1 anomalous, 0 good, null where the class has no threshold."))
    verdict: Literal["good", "anomalous", "uncertain", "unknown"] = field(
        metadata=_about("uncertain between the class's limits, unknown where the class has no threshold.")
    )
    pred_probability: float | None = field(
        metadata=_about("Probability of a defect in [0,1]; null where the class has no score model.")
    )
    limits: dict[str, float] | None = field(
        metadata=_about("A score below `good` is good, one at or above `anomalous` anomalous; null without limits.")
    )
    scores: dict[str, float] = field(metadata=_about("Image score of each map."))
    regions: list[dict[str, Any]] = field(
        metadata=_about("Connected parts of pred_mask in the photo's pixels: box_px [x0,y0,x1,y1], area_px, peak.")
    )
    evidence: dict[str, Any] = field(metadata=_about("The mask with the largest reconstruction error."))
    mode: str = field(metadata=_about("Mask plan, scales, lambda and passes in words."))
    backend: str = field(metadata=_about("What ran the networks."))
    timings_ms: dict[str, float] = field(
        metadata=_about("Milliseconds by stage, with waited_ms (in the queue) and group_ms (its whole group).")
    )
    group: int = field(default=1, metadata=_about("Photos that were inspected together."))
    request_key: str | None = field(
        default=None, metadata=_about("The client's name for the request: sent twice, inspected once.", unique=True)
    )
    brightness: float | None = field(
        default=None, metadata=_about("Mean grey level of the photo in [0,1]; null in old records.")
    )
    sharpness: float | None = field(
        default=None, metadata=_about("How sharp the photo is, 0 to 1; null in old records.")
    )
    correction: Correction | None = field(
        default=None, metadata=_about("An operator's correction.", check="IN ('ok', 'ng')")
    )
    schema: str = field(default=SCHEMA, metadata=_about("Version of this layout."))

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the class under `class` as everywhere else."""
        plain = dict(vars(self))
        plain["class"] = plain.pop("class_name")
        return plain


@dataclass(frozen=True)
class VerdictPictures:
    """What the pictures of a verdict are drawn from, compressed: JPEG and PNG bytes of S x S pixels."""

    photo_jpeg: bytes
    """The photo, squashed to the map's size."""
    repaint_jpeg: bytes
    """The reconstruction; empty where it was not kept."""
    map_png: bytes
    """Empty where it was not kept, else (S,S) 16-bit gray: value = low + gray / 65535 * (high - low)."""
    low: float
    """Score-map value of gray 0."""
    high: float
    """Score-map value of gray 65535."""
    heat_low: float
    """Score-map value that is drawn dark."""
    heat_high: float
    """Score-map value that is drawn bright."""
    cell: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Box of the mask with the largest error: x0, y0, x1, y1."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return len(self.photo_jpeg) + len(self.repaint_jpeg) + len(self.map_png)


@dataclass(frozen=True)
class VerdictResult:
    """A verdict with the inspection and photo that it was made of, from which pictures can be drawn."""

    verdict: Verdict
    """The answer."""
    inspection: Inspection | None = field(default=None, repr=False)
    """The detector's result; None where an earlier verdict is returned again."""
    photo: U8 | None = field(default=None, repr=False)
    """(H,W,3) the photo."""
    repeated: bool = False
    """Whether it is the verdict of an earlier request with the same key."""


def regions_of(answer: Inspection, width_px: int, height_px: int) -> list[dict[str, Any]]:
    """Connected parts of pred_mask, the largest first, in pixels of the photo; [] without a pixel threshold."""
    if answer.pred_mask is None or not answer.pred_mask.any():
        return []
    labels, count = label_regions(answer.pred_mask)
    side_y, side_x = labels.shape
    sx, sy = width_px / side_x, height_px / side_y
    found: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        inside = labels == number
        ys, xs = np.nonzero(inside)
        box = [xs.min() * sx, ys.min() * sy, (xs.max() + 1) * sx, (ys.max() + 1) * sy]
        found.append(
            {
                "box_px": [round(float(v)) for v in box],
                "area_px": round(float(len(xs) * sx * sy)),
                "peak": float(answer.anomaly_map[inside].max()),
            }
        )
    found.sort(key=lambda region: float(region["area_px"]), reverse=True)
    return found[:MAX_REGIONS]


def pictures_of(answer: Inspection, photo: U8) -> VerdictPictures:
    """The compressed pictures of an inspection of `photo`, (H,W,3) uint8."""
    small = images.resize(photo, answer.anomaly_map.shape[0])
    gray, low, high = map_to_gray(answer.anomaly_map)
    heat_low, heat_high = inspection.heat_range(answer)
    ys, xs = np.nonzero(answer.evidence.cell)
    cell = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return VerdictPictures(_jpeg(small), _jpeg(answer.repaint), gray, low, high, heat_low, heat_high, cell)


def pictures_of_record(photo: U8, values: F32 | None, threshold: float | None) -> VerdictPictures:
    """What a record kept of an inspection: the photo (H,W,3) and, perhaps, its score map (S,S)."""
    if values is None:
        return VerdictPictures(_jpeg(images.resize(photo, RECORDED_PX)), b"", b"", 0, 1, 0, 1)
    gray, low, high = map_to_gray(values)
    return VerdictPictures(
        _jpeg(images.resize(photo, values.shape[0])), b"", gray, low, high, *heatmap.heat_range(values, threshold)
    )


def map_to_gray(values: F32) -> tuple[bytes, float, float]:
    """(S,S) float32 -> 16-bit gray PNG, and the values of its 0 and its 65535."""
    low, high = float(values.min()), float(values.max())
    gray = np.round((values - low) / max(high - low, 1e-12) * 65535).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(gray).save(out, format="PNG", compress_level=1)
    return out.getvalue(), low, high


def gray_to_map(data: bytes, low: float, high: float) -> F32:
    """The inverse of map_to_gray, to 1/65535 of the range."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        gray = np.asarray(image, dtype=np.float32)
    return np.asarray(low + gray / 65535 * (high - low), dtype=np.float32)


def draw(kind: str, pictures: VerdictPictures) -> tuple[bytes, str]:
    """One picture of a verdict and its media type: photo, repaint, map, heat, overlay or evidence."""
    if kind == "photo":
        return pictures.photo_jpeg, "image/jpeg"
    if (kind in ("repaint", "evidence") and not pictures.repaint_jpeg) or (kind != "photo" and not pictures.map_png):
        raise NotFound(
            f"the picture {kind!r} of this verdict is no longer in memory; 'sd-edge history' can make it again"
        )
    if kind == "repaint":
        return pictures.repaint_jpeg, "image/jpeg"
    if kind == "map":
        return pictures.map_png, "image/png"
    values = gray_to_map(pictures.map_png, pictures.low, pictures.high)
    if kind == "heat":
        return _heat_layer(values, pictures.heat_low, pictures.heat_high), "image/png"
    with Image.open(io.BytesIO(pictures.photo_jpeg), formats=("JPEG",)) as image:
        photo = np.array(image.convert("RGB"))
    if kind == "overlay":
        return images.encode_png(heatmap.overlay(photo, values, pictures.heat_low, pictures.heat_high)), "image/png"
    if kind == "evidence":
        mask = np.zeros(photo.shape[:2], np.bool_)
        x0, y0, x1, y1 = pictures.cell
        mask[y0:y1, x0:x1] = True
        return images.encode_png(heatmap.spotlight(photo, mask)), "image/png"
    raise BadRequest(f"there is no picture {kind!r}; there are: photo, repaint, map, heat, overlay, evidence")


def wanted_outputs(text: str | None) -> tuple[str, ...]:
    """A comma-separated list of OUTPUTS. Raises BadRequest naming the unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        raise BadRequest(f"unknown output {unknown[0]!r}; use {', '.join(OUTPUTS)}, separated by commas")
    return names


def encoded_outputs(result: VerdictResult, outputs: tuple[str, ...]) -> dict[str, str]:
    """The requested pictures as base64 PNG, at the map's size; `map` is 16-bit gray (see map_range)."""
    answer = result.inspection
    if answer is None or result.photo is None or not outputs:
        return {}
    drawn = inspection.pictures(answer, result.photo)
    found: dict[str, bytes] = {}
    for name in outputs:
        if name == "map":
            found[name] = map_to_gray(answer.anomaly_map)[0]
        elif name == "mask":
            if answer.pred_mask is not None:
                found[name] = images.encode_png(answer.pred_mask)
        else:
            found[name] = images.encode_png(drawn["map" if name == "heat" else name])
    return {name: base64.b64encode(data).decode() for name, data in found.items()}


def _heat_layer(values: F32, low: float, high: float) -> bytes:
    """The heat map as a layer to lay over the photo: the higher, the more opaque."""
    share = np.clip((values - low) / (high - low), 0, 1)
    alpha = np.asarray(255 * np.sqrt(share) + 0.5).astype(np.uint8)
    out = io.BytesIO()
    layer = np.concatenate([heatmap.heat_map(values, low, high), alpha[..., None]], axis=2)
    Image.fromarray(layer).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _jpeg(picture: U8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(out, format="JPEG", quality=90, subsampling=0)
    return out.getvalue()
