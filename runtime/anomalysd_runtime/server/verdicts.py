"""A verdict as it is answered, recorded and published: one shape for HTTP, page, folders, MQTT and webhooks."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.reports import inspection
from anomalysd_edge.vision import heatmap, images
from anomalysd_edge.vision.morphology import label_regions
from anomalysd_runtime.server.errors import BadRequest

SCHEMA = "sd-edge.verdict.1"
"""Named in every verdict that leaves the box; a change of a field's meaning raises its number."""
OUTPUTS = ("map", "heat", "overlay", "repaint", "evidence", "mask")
"""Pictures that a client may ask for."""
MAX_REGIONS = 50


@dataclass(frozen=True)
class Verdict:
    """Everything that is known of one inspected photo, in plain values."""

    uid: str
    """32 hexadecimal digits, made by this box."""
    at: float
    """UTC, seconds since 1970."""
    source: str
    """http, v2, watch or mqtt."""
    client: str
    """Who asked, as far as it is known."""
    photo: str
    """What the client calls the photo."""
    photo_sha256: str
    """Of the bytes that came."""
    width_px: int
    """Of the photo."""
    height_px: int
    """Of the photo."""
    bundle: str
    """Name of the bundle."""
    bundle_id: str
    """Digest of its manifest."""
    preset: str
    """Inspection preset."""
    settings: dict[str, Any]
    """The preset's settings."""
    class_name: str
    """Judged as."""
    pred_score: float
    """Larger is more anomalous."""
    threshold: float | None
    """What the score was held against."""
    pred_label: int | None
    """1 anomalous, 0 good, None without a threshold."""
    verdict: str
    """anomalous, good or unknown."""
    scores: dict[str, float]
    """Image score of each map."""
    regions: list[dict[str, Any]]
    """Connected parts of pred_mask in the photo's pixels: box_px [x0,y0,x1,y1], area_px, peak."""
    evidence: dict[str, Any]
    """The mask that raised the alarm."""
    mode: str
    """Plan, scales, lambda, passes in words."""
    backend: str
    """What ran the networks."""
    timings_ms: dict[str, float]
    """By stage, and waited_ms, group_ms."""
    group: int = 1
    """Photos in its group."""
    request_key: str | None = None
    """The client's name for the request: asked twice, judged once."""
    correction: str | None = None
    """What an operator said: ok or ng."""
    schema: str = SCHEMA
    """Version of this layout."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the class under `class` as everywhere else."""
        plain = dict(vars(self))
        plain["class"] = plain.pop("class_name")
        return plain


@dataclass(frozen=True)
class Pictures:
    """What is needed to draw a verdict, in little memory: JPEG and PNG bytes of S x S pixels."""

    photo_jpeg: bytes
    """The photo, squashed to the map's size."""
    repaint_jpeg: bytes
    """As the model would have it."""
    map_png: bytes
    """(S,S) 16-bit gray: value = low + gray / 65535 * (high - low)."""
    low: float
    """Score-map value of gray 0."""
    high: float
    """Score-map value of gray 65535."""
    heat_low: float
    """Score-map value that is drawn dark."""
    heat_high: float
    """Score-map value that is drawn bright."""
    cell: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Box of the mask that raised the alarm: x0, y0, x1, y1."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return len(self.photo_jpeg) + len(self.repaint_jpeg) + len(self.map_png)


@dataclass(frozen=True)
class Told:
    """A verdict with what it was made of, as long as somebody may still ask for pictures."""

    verdict: Verdict
    """The answer."""
    inspection: Inspection | None = field(default=None, repr=False)
    """The detector's own; None where an earlier answer is told again."""
    photo: U8 | None = field(default=None, repr=False)
    """(H,W,3) the photo."""
    repeated: bool = False
    """Whether it was judged before, under the same request key."""


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


def pictures_of(answer: Inspection, photo: U8) -> Pictures:
    """What the page shows of a verdict."""
    small = images.resize(photo, answer.anomaly_map.shape[0])
    gray, low, high = map_to_gray(answer.anomaly_map)
    heat_low, heat_high = inspection.heat_range(answer)
    ys, xs = np.nonzero(answer.evidence.cell)
    cell = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return Pictures(_jpeg(small), _jpeg(answer.repaint), gray, low, high, heat_low, heat_high, cell)


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


def draw(kind: str, told: Pictures) -> tuple[bytes, str]:
    """One picture of a verdict and its media type: photo, repaint, map, heat, overlay or evidence."""
    if kind == "photo":
        return told.photo_jpeg, "image/jpeg"
    if kind == "repaint":
        return told.repaint_jpeg, "image/jpeg"
    if kind == "map":
        return told.map_png, "image/png"
    values = gray_to_map(told.map_png, told.low, told.high)
    if kind == "heat":
        return _heat_layer(values, told.heat_low, told.heat_high), "image/png"
    with Image.open(io.BytesIO(told.photo_jpeg), formats=("JPEG",)) as image:
        photo = np.array(image.convert("RGB"))
    if kind == "overlay":
        return images.encode_png(heatmap.overlay(photo, values, told.heat_low, told.heat_high)), "image/png"
    if kind == "evidence":
        mask = np.zeros(photo.shape[:2], np.bool_)
        x0, y0, x1, y1 = told.cell
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


def encoded_outputs(told: Told, outputs: tuple[str, ...]) -> dict[str, str]:
    """The asked-for pictures as base64 PNG, at the map's size; `map` is 16-bit gray (see map_range)."""
    answer = told.inspection
    if answer is None or told.photo is None or not outputs:
        return {}
    drawn = inspection.pictures(answer, told.photo)
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
