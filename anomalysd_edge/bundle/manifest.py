"""manifest.json: everything that a bundle says about itself, as frozen dataclasses.

Reading is strict about what it knows (a missing key or a wrong type names its place) and ignores keys that it does
not know, so that a later release may add some without a new schema version.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anomalysd_edge import __version__
from anomalysd_edge.bundle.engine_records import EngineRecord, PrecisionRecord
from anomalysd_edge.errors import BundleError
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.method.networks import NetworkSizes

SCHEMA_VERSION = 1
"""Raised when an older reader would misread the file; adding a key does not raise it."""

PRODUCT = "anomalysd-edge"

RESIZE_KERNEL = "pillow-bicubic-antialias-squash"
"""The one resize: Pillow's BICUBIC with its antialiasing, the aspect squashed to a square."""


@dataclass(frozen=True)
class TensorRecord:
    """One input or output of a graph."""

    name: str
    """Its name in the ONNX file."""
    dtype: str
    """numpy's name of its type, for instance float32."""
    shape: tuple[int | str, ...]
    """A number where the axis is fixed, a name where it may vary."""


@dataclass(frozen=True)
class NetworkRecord:
    """One ONNX graph of the bundle."""

    file: str
    """Path inside the bundle, with slashes."""
    dtype: str
    """Type of its weights and activations."""
    opset: int
    """ONNX operator set."""
    inputs: tuple[TensorRecord, ...]
    """In the graph's order."""
    outputs: tuple[TensorRecord, ...]
    """In the graph's order."""
    tolerance: float
    """Largest absolute difference from torch that the export accepted."""
    parity: dict[str, float]
    """What the export measured: max_abs (largest absolute difference) and batch (the batch size it was measured at)."""
    static: dict[str, str] = field(default_factory=dict)
    """By batch size: the same network at that size alone, where no axis may vary; the sizes share their weights."""


@dataclass(frozen=True)
class PromptPair:
    """The two levels of a class's prompt."""

    whole: str
    """For instance 'A perfect bottle.'"""
    detail: str | None = None
    """For instance 'A bottle with intact neck, body and rim.'; absent for a class without named parts."""


@dataclass(frozen=True)
class ClassRecord:
    """One class that the bundle can judge."""

    kind: str
    """object or texture."""
    noun: str
    """The noun in its prompts."""
    prompts: PromptPair
    """Their text; the states are in constants.safetensors."""
    shots: int
    """How many good photos it was fitted to; 0 = none, and then it has no prototypes."""
    parts: tuple[str, ...] = ()
    """Named parts, for the detail prompt."""
    symmetries: tuple[str, ...] = ()
    """Turns and mirrors that leave a good part good: rotate90, rotate180, flip_x, flip_y."""
    aspect: float | None = None
    """Width / height of its photos; another shape is mirrored out to it. Absent for a class without shots."""
    guided_threshold: float | None = None
    """Of older bundles, where `guided` is empty: one value for every preset."""
    calibration: dict[str, Calibration] = field(default_factory=dict)
    """By preset: other settings give other scores. A preset that is not in it gives scores without verdicts."""
    tiles: int = 1
    """Windows along a side through which its prototypes see a photo."""
    guided: dict[str, float] = field(default_factory=dict)
    """By kind of prototype map (ClassModel.map_kind), the value from which a patch goes into the guided mask; empty for
    a class without prototypes."""


@dataclass(frozen=True)
class BaseRecord:
    """The inpainting model that was fine-tuned."""

    name: str
    """nano, a folder's name or a hub id."""
    sha256: str
    """Digest over its weight files."""


@dataclass(frozen=True)
class GoldenResize:
    """A resize whose result is known: bundle.golden_image(seed, height, width), resized to size_px."""

    seed: int
    """Seed of the image."""
    height: int
    """Its height in pixels."""
    width: int
    """Its width in pixels."""
    size_px: int
    """Side of the square it is resized to."""
    sha256: str
    """Of the (size_px, size_px, 3) uint8 result, row by row."""


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes an input."""

    kernel: str = RESIZE_KERNEL
    """Name of the resize."""
    normalise: str = "x / 127.5 - 1"
    """From uint8 to the networks' float32 in [-1,1]."""
    golden: tuple[GoldenResize, ...] = ()
    """Checked when the bundle is read: another resize would give other scores."""


@dataclass(frozen=True)
class FileRecord:
    """One file of the bundle."""

    path: str
    """Inside the bundle, with slashes."""
    bytes: int
    """Its length."""
    sha256: str
    """Its digest."""


@dataclass(frozen=True)
class SourceRecord:
    """Where a network's weights came from."""

    kind: str
    """For instance lpips_alex, shift_tolerant or efficientnet_lite2."""
    source: str = ""
    """Package, version and file, or path."""


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json."""

    base: BaseRecord
    """The model that was fine-tuned."""
    sizes: NetworkSizes
    """What the algorithm must know of the networks."""
    prediction_type: str
    """What the UNet predicts: epsilon or v_prediction."""
    scheduler: dict[str, Any]
    """The base's diffusers scheduler configuration: betas and number of training timesteps."""
    classes: dict[str, ClassRecord]
    """By name."""
    presets: dict[str, dict[str, Any]]
    """Inspection settings by preset name (paper, edge)."""
    preprocessing: Preprocessing
    """How a photo becomes an input."""
    networks: dict[str, NetworkRecord]
    """By name: unet, vae_encoder, vae_decoder, perceptual, features."""
    perceptual: SourceRecord | None = None
    """Which perceptual distance; absent where the bundle has none."""
    features: SourceRecord | None = None
    """Which feature network; absent where the bundle has none."""
    precisions: dict[str, PrecisionRecord] = field(default_factory=dict)
    """Graphs in other precisions, by fp16, bf16, int8, fp8; `networks` are float32."""
    engines: tuple[EngineRecord, ...] = ()
    """Engines built from this bundle's graphs. They are checked when they are opened, not when the bundle is read."""
    training: dict[str, Any] = field(default_factory=dict)
    """Digest of run.json and its settings."""
    licenses: tuple[str, ...] = ()
    """What the weights' owners ask for."""
    files: tuple[FileRecord, ...] = ()
    """Every file but manifest.json itself."""
    created: str = ""
    """UTC, ISO 8601."""
    change: str = ""
    """In a sentence, what the last rewriting did to the bundle that it replaced; empty for an export."""
    product: str = PRODUCT
    """Who wrote it."""
    version: str = __version__
    """Version of the product that wrote it."""
    schema_version: int = SCHEMA_VERSION
    """Layout of this file."""


def manifest_from_json(value: object, where: str) -> Manifest:
    """The manifest in a decoded JSON value; `where` (its path) opens every message. Raises BundleError."""
    if not isinstance(value, Mapping):
        raise BundleError(f"{where} holds a {type(value).__name__}, not an object: it is no bundle manifest")
    if value.get("product") != PRODUCT:
        raise BundleError(
            f"{where} was written by {value.get('product')!r}, not by {PRODUCT!r}: it is no bundle of ours"
        )
    version = value.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version} and this {PRODUCT} {__version__} reads up to {SCHEMA_VERSION}: "
            f"update {PRODUCT}, or export the bundle again"
        )
    return _decode_dataclass(Manifest, value, where)


T = TypeVar("T")


def calibration_from_json(value: object, where: str) -> Calibration:
    """A class's calibration from JSON. Raises BundleError, naming the place that is wrong."""
    return _decode_dataclass(Calibration, value, where)


def _decode_dataclass(kind: type[T], value: object, where: str) -> T:
    if not isinstance(value, Mapping):
        raise BundleError(f"{where} is {value!r}, expected an object")
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(typing.cast(Any, kind)):
        if entry.name in value:
            found[entry.name] = _decode(hints[entry.name], value[entry.name], f"{where}: {entry.name}")
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise BundleError(f"{where}: {entry.name} is missing; export the bundle again")
    return kind(**found)


def _decode(kind: Any, value: object, where: str) -> Any:
    """`value` as the annotated type `kind`; JSON has no tuples, and writes 1.0 as 1 at times."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        choices = [choice for choice in inner if choice is not type(None)]
        for choice in choices[:-1]:
            if type(value) is choice:
                return value
        return _decode(choices[-1], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise BundleError(f"{where} is {value!r}, expected a list")
        return tuple(_decode(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise BundleError(f"{where} is {value!r}, expected an object")
        return {str(key): _decode(inner[1], item, f"{where}: {key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast("type[Any]", kind), value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BundleError(f"{where} is {value!r}, expected {kind.__name__}")
    return value
